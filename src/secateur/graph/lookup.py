"""What inference noted, by axis and by parameter: read once, so that each group finds its own at once."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from secateur.graph.axes import Axis, Dims, leaves
from secateur.graph.typing import Contraction, Typing
from secateur.types import Fallback, Slice

Place = tuple[str, int]


@dataclass(frozen=True, eq=False)
class Lookup:
    """Resolved types of parameters, and what is known of their axes.

    Attributes:
        state: parameter -> its types.
        bare: axes that something sums over without a parameter: only their makers can be zeroed.
        summed: dimensions of parameters that an operator sums over.
        reshaped: parameter -> axes that are summed over after it was reshaped.
        remarks: axis -> numbers of the remarks about it.
        texts: of all remarks.
        tied: axis -> why layers of a stack stay equally wide.
        ranked: axes whose units are chosen by rank.
        minimums: axis -> the least width that an operator asks for.
    """

    state: Mapping[str, Dims]
    bare: frozenset[int]
    summed: frozenset[Place]
    reshaped: Mapping[str, frozenset[int]]
    remarks: Mapping[int, Sequence[int]]
    texts: Sequence[str]
    tied: Mapping[int, Sequence[str]]
    ranked: frozenset[int]
    minimums: Mapping[int, int]

    def is_consumer(self, s: Slice, axis: int) -> bool:
        """Whether an operator sums over this dimension of the parameter, or over the axis in another shape of it."""
        return (s.parameter, s.dim) in self.summed or axis in self.reshaped.get(s.parameter, ())

    def why_inexact(self, axes: Iterable[int]) -> tuple[str, ...]:
        """The remarks about any of the axes, in the order in which they were made."""
        numbers = sorted({number for id_ in axes for number in self.remarks.get(id_, ())})
        return tuple(dict.fromkeys(self.texts[number] for number in numbers))

    def why_tied(self, axes: Iterable[int]) -> tuple[str, ...]:
        """Why layers that were to be apart stay equally wide."""
        return tuple(dict.fromkeys(text for id_ in axes for text in self.tied.get(id_, ())))

    def least(self, axes: Iterable[int]) -> int:
        """The least width of axes that stay equally wide."""
        return max((self.minimums.get(id_, 1) for id_ in axes), default=1)


def bare_axes(typing: Typing, contraction: Contraction) -> list[Axis]:
    """Axes of a contraction that the parameter does not hold, if there is one: those are summed without a weight."""
    resolve = typing.unifier.resolve
    held = typing.state[contraction.source] if contraction.source is not None else ()
    own = {axis.id for dim in held for axis in leaves(resolve(dim))}
    return [axis for axis in dict.fromkeys(leaves(resolve(contraction.dim))) if axis.id not in own]


def look_up(typing: Typing, fallback: Fallback = "error") -> Lookup:
    """Read what inference noted off the types as they are now; a graph needs no remarks on what it pins."""
    resolve = typing.unifier.resolve
    reshaped: dict[str, set[int]] = defaultdict(set)
    bare: set[int] = set()
    for c in typing.contractions:
        bare.update(axis.id for axis in bare_axes(typing, c))
        if c.source is not None and c.at is None:
            reshaped[c.source].update(axis.id for axis in leaves(resolve(c.dim)))
    remarks: dict[int, list[int]] = defaultdict(list)
    for number, remark in enumerate(typing.remarks):
        if fallback == "graph" and remark.pinned:
            continue
        for axis in leaves(resolve(remark.dim)):
            remarks[axis.id].append(number)
    tied: dict[int, list[str]] = defaultdict(list)
    for dim, text in typing.tied:
        for axis in leaves(resolve(dim)):
            tied[axis.id].append(text)
    minimums: dict[int, int] = {}
    for dim, least in typing.minimums:
        minimums |= {axis.id: max(least, minimums.get(axis.id, 1)) for axis in leaves(resolve(dim))}
    return Lookup(
        state={name: tuple(resolve(dim) for dim in dims) for name, dims in typing.state.items()},
        bare=frozenset(bare),
        summed=frozenset((c.source, c.at) for c in typing.contractions if c.source is not None and c.at is not None),
        reshaped={name: frozenset(axes) for name, axes in reshaped.items()},
        remarks=remarks,
        tied=tied,
        texts=[remark.text for remark in typing.remarks],
        ranked=frozenset(axis.id for dim in typing.ranked for axis in leaves(resolve(dim))),
        minimums=minimums,
    )
