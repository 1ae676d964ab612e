"""Find the last level of every group that is within a boundary, by halving; all groups at once."""

from collections.abc import Callable, Mapping, Sequence

Measured = Callable[[Sequence[tuple[str, int]]], Sequence[bool]]

GUESSES = 2
"""Levels of a group that are asked for by prediction; where they decide nothing, halving goes on."""


def bisect(
    levels: Mapping[str, int], within: Measured, predicted: Mapping[str, Sequence[float]] | None = None
) -> dict[str, int]:
    """The last level that is within, for each name, where damage rises with the level.

    Level 0 is within. Each round asks for one level of every name that is not decided, so there are at most
    log2(levels + 1) rounds, rounded up. Where damage does not rise, what is found is within and the next level is not.

    With predictions, in any unit, the boundary in that unit is read off the answers so far, and the levels on both
    sides of it are asked for first; at most two more than by halving if they mislead.

    Args:
        levels: name -> its last level.
        within: asked for (name, level) pairs.
        predicted: name -> what is predicted for levels 1, 2, ...; names without are halved.

    >>> bisect({"a": 9, "b": 3}, lambda asked: [level <= {"a": 6, "b": 0}[name] for name, level in asked])
    {'a': 6, 'b': 0}
    """
    known = predicted or {}
    good = dict.fromkeys(levels, 0)
    bad = {name: last + 1 for name, last in levels.items()}
    answers: list[tuple[float, bool]] = []
    guesses = dict.fromkeys(levels, GUESSES)
    while open_names := [name for name in levels if bad[name] - good[name] > 1]:
        split = separating(answers)
        asked = []
        for name in open_names:
            level = (good[name] + bad[name]) // 2
            if name in known and split is not None and guesses[name] > 0:
                guesses[name] -= 1
                last = sum(value <= split for value in known[name])
                level = min(max(last, good[name] + 1), bad[name] - 1)
            asked.append((name, level))
        for (name, level), is_within in zip(asked, within(asked), strict=True):
            (good if is_within else bad)[name] = level
            if name in known:
                answers.append((known[name][level - 1], is_within))
    return good


def separating(answers: Sequence[tuple[float, bool]]) -> float | None:
    """The value up to which most are within and beyond which most are not; None where the answers are all alike.

    >>> separating([(1.0, True), (4.0, False), (2.0, True)])
    3.0
    """
    ordered = sorted(answers)
    # contradicted[k]: answers against a split before number k.
    contradicted = [sum(answer for _, answer in ordered)]
    for _, answer in ordered:
        contradicted.append(contradicted[-1] + (-1 if answer else 1))
    at = contradicted.index(min(contradicted))
    return (ordered[at - 1][0] + ordered[at][0]) / 2 if 0 < at < len(ordered) else None
