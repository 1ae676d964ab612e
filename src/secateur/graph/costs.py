"""What a program costs as a function of the widths of its groups, without cutting anything."""

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace

from secateur.graph.axes import Axis, Dims
from secateur.graph.groups import Structure
from secateur.graph.settle import count
from secateur.graph.typing import MacTerm
from secateur.types import Group

Widths = Mapping[str, int]


@dataclass(frozen=True, eq=False)
class CostModel:
    """Multiply-adds and parameters at any widths (units kept in a row of each group).

    Attributes:
        groups: the groups whose widths vary; a group that is not mentioned keeps all its units.
    """

    groups: Mapping[str, Group]
    _axes: Mapping[str, tuple[int, ...]]
    _macs: tuple[MacTerm, ...]
    _params: tuple[Dims, ...]
    _buffers: tuple[tuple[Dims, int], ...]

    def macs(self, widths: Widths) -> int:
        """Multiply-adds of one call with the example inputs."""
        kept = self._kept(widths)
        return sum(_multiply_adds(term, kept) for term in self._macs)

    def params(self, widths: Widths) -> int:
        """Parameter elements; tied ones count once."""
        kept = self._kept(widths)
        return sum(_elements(dims, kept) for dims in self._params)

    def memory_bytes(self, widths: Widths) -> int:
        """Bytes of parameters and buffers."""
        kept = self._kept(widths)
        return sum(item * _elements(dims, kept) for dims, item in self._buffers)

    def _kept(self, widths: Widths) -> dict[int, int]:
        return {axis: width for name, width in widths.items() for axis in self._axes[name]}


def cost_model(structure: Structure, item_bytes: Mapping[str, int] | None = None) -> CostModel:
    """Read the cost terms off a typed program.

    Args:
        structure: from `graph.groups.structure`.
        item_bytes: canonical name -> bytes of one element; 4 where it is not given.
    """
    typing = structure.typing
    axes: dict[str, list[int]] = {}
    for axis, name in structure.axis_groups.items():
        axes.setdefault(name, []).append(axis)

    def resolved(dims: Dims) -> Dims:
        return tuple(typing.unifier.resolve(dim) for dim in dims)

    # A branch counts once or, when it is gone, not at all: one more factor for all that lies in it.
    of_node: dict[str, Dims] = defaultdict(tuple)
    of_state: dict[str, Dims] = defaultdict(tuple)
    for number, branch in enumerate(structure.branches):
        factor = Axis(-1 - number, 1)
        axes[branch.group.name] = [factor.id]
        for found, names in ((of_node, branch.nodes), (of_state, branch.parameters)):
            for name in names:
                found[name] += (factor,)
    state = {name: resolved(dims) + of_state[name] for name, dims in typing.state.items()}
    return CostModel(
        groups={group.name: group for group in structure.units},
        _axes={name: tuple(ids) for name, ids in axes.items()},
        _macs=tuple(
            replace(
                term,
                dims=resolved(term.dims) + of_node[term.node],
                summed=None if term.summed is None else resolved(term.summed),
            )
            for term in typing.mac_terms
        ),
        _params=tuple(dims for name, dims in state.items() if name in typing.program.trained),
        _buffers=tuple((dims, (item_bytes or {}).get(name, 4)) for name, dims in state.items()),
    )


def _multiply_adds(term: MacTerm, kept: dict[int, int]) -> int:
    if term.summed is not None and _elements(term.summed, kept) == 1:
        return 0
    return term.times * _elements(term.dims, kept)


def _elements(dims: Dims, kept: dict[int, int]) -> int:
    return math.prod(count(dim, kept) for dim in dims)
