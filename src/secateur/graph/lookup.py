"""What inference noted, by axis and by parameter: read once, so that each group finds its own at once."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from secateur.graph.axes import Dims, DimType, leaves
from secateur.graph.typing import Typing
from secateur.types import Fallback, Slice

Place = tuple[str, int]


@dataclass(frozen=True, eq=False)
class Lookup:
    """Resolved types of parameters, and what is known of their axes.

    Attributes:
        state: parameter -> its types.
        bare: axes that something sums over without a parameter: only their makers can be zeroed.
        summed: dimensions of parameters that an operator sums over.
        reshaped: parameter -> types that are summed over after it was reshaped.
        remarks: axis -> numbers of the remarks about it.
        texts: of all remarks.
        ranked: axis whose units are chosen by rank -> how many are.
        minimums: axis -> the least width that an operator asks for.
    """

    state: Mapping[str, Dims]
    bare: frozenset[int]
    summed: frozenset[Place]
    reshaped: Mapping[str, frozenset[DimType]]
    remarks: Mapping[int, Sequence[int]]
    texts: Sequence[str]
    ranked: Mapping[int, int]
    minimums: Mapping[int, int]

    def is_consumer(self, s: Slice) -> bool:
        """Whether an operator sums over this very dimension of the parameter."""
        own = self.state[s.parameter][s.dim]
        return (s.parameter, s.dim) in self.summed or own in self.reshaped.get(s.parameter, ())

    def why_inexact(self, axes: Iterable[int]) -> tuple[str, ...]:
        """The remarks about any of the axes, in the order in which they were made."""
        numbers = sorted({number for id_ in axes for number in self.remarks.get(id_, ())})
        return tuple(dict.fromkeys(self.texts[number] for number in numbers))

    def least(self, axes: Iterable[int]) -> int:
        """The least width of axes that stay equally wide."""
        return max((self.minimums.get(id_, 1) for id_ in axes), default=1)


def look_up(typing: Typing, fallback: Fallback = "error") -> Lookup:
    """Read what inference noted off the types as they are now; a graph needs no remarks on what it pins."""
    resolve = typing.unifier.resolve
    reshaped: dict[str, set[DimType]] = defaultdict(set)
    for c in typing.contractions:
        if c.source is not None and c.at is None:
            reshaped[c.source].add(resolve(c.dim))
    remarks: dict[int, list[int]] = defaultdict(list)
    for number, remark in enumerate(typing.remarks):
        if fallback == "graph" and remark.pinned:
            continue
        for axis in leaves(resolve(remark.dim)):
            remarks[axis.id].append(number)
    return Lookup(
        state={name: tuple(resolve(dim) for dim in dims) for name, dims in typing.state.items()},
        bare=frozenset(axis.id for c in typing.contractions if c.source is None for axis in leaves(resolve(c.dim))),
        summed=frozenset((c.source, c.at) for c in typing.contractions if c.source is not None and c.at is not None),
        reshaped={name: frozenset(dims) for name, dims in reshaped.items()},
        remarks=remarks,
        texts=[remark.text for remark in typing.remarks],
        ranked={axis.id: ranking.least for ranking in typing.rankings for axis in leaves(resolve(ranking.dim))},
        minimums={axis.id: least for dim, least in typing.minimums for axis in leaves(resolve(dim))},
    )
