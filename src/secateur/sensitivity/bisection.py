"""Find the last level of every group that is within a boundary, by halving; all groups at once."""

from collections.abc import Callable, Mapping, Sequence

Measured = Callable[[Sequence[tuple[str, int]]], Sequence[bool]]


def bisect(levels: Mapping[str, int], within: Measured) -> dict[str, int]:
    """The last level that is within, for each name, where damage rises with the level.

    Level 0 is within. Each round asks for one level of every name that is not decided, so there are at most
    log2(levels + 1) rounds, rounded up. Where damage does not rise, what is found is within and the next level is not.

    Args:
        levels: name -> its last level.
        within: asked for (name, level) pairs.

    >>> bisect({"a": 9, "b": 3}, lambda asked: [level <= {"a": 6, "b": 0}[name] for name, level in asked])
    {'a': 6, 'b': 0}
    """
    good = dict.fromkeys(levels, 0)
    bad = {name: last + 1 for name, last in levels.items()}
    while asked := [(name, (good[name] + bad[name]) // 2) for name in levels if bad[name] - good[name] > 1]:
        for (name, level), is_within in zip(asked, within(asked), strict=True):
            (good if is_within else bad)[name] = level
    return good
