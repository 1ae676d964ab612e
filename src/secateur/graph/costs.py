"""What a program costs as a function of the widths of its groups, without cutting anything."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from secateur.errors import ArgumentError
from secateur.graph.axes import Axis, Dims
from secateur.graph.groups import Structure, structure_for
from secateur.graph.polynomial import Polynomial, polynomial
from secateur.graph.settle import count
from secateur.graph.trace import Program, named_state
from secateur.graph.typing import MacTerm
from secateur.types import Floats, Group, Separable

Widths = Mapping[str, int]


@dataclass(frozen=True, eq=False)
class Counted:
    """A count, and the same as a sum of products of widths.

    Attributes:
        count: widths -> cost.
        polynomial: nowhere below it, and equal but for contractions over a single position, which torch's
            counter leaves out.
    """

    count: Callable[[Widths], int]
    polynomial: Polynomial

    def __call__(self, widths: Widths, /) -> float:
        """The count."""
        return self.count(widths)

    def parts(self, levels: Mapping[str, Sequence[int]], /) -> list[tuple[tuple[str, ...], Floats]]:
        """Tables of a few groups each that add up to the polynomial."""
        return self.polynomial.parts(levels)


@dataclass(frozen=True, eq=False)
class CostModel:
    """Multiply-adds and parameters at any widths (units kept in a row of each group).

    Attributes:
        groups: the groups whose widths vary; a group that is not mentioned keeps all its units.
        latency: seconds of a call at any widths; None if nothing was measured.
    """

    groups: Mapping[str, Group]
    _axes: Mapping[str, tuple[int, ...]]
    _macs: tuple[MacTerm, ...]
    _params: tuple[Dims, ...]
    _buffers: tuple[tuple[Dims, int], ...]
    latency: Separable | None = None

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

    @cached_property
    def prices(self) -> dict[str, Separable]:
        """Multiply-adds, parameters, bytes and, if it was measured, seconds: costs that a solver can take apart."""
        group_of = {axis: name for name, ids in self._axes.items() for axis in ids}
        full = {name: group.width for name, group in self.groups.items()}
        # A sum over a single position is not counted; that others may become single is not followed.
        counted = [t for t in self._macs if t.summed is None or _elements(t.summed, {}) > 1]
        found: dict[str, Separable] = {
            "macs": Counted(self.macs, polynomial([(float(t.times), t.dims) for t in counted], group_of, full)),
            "params": Counted(self.params, polynomial([(1.0, dims) for dims in self._params], group_of, full)),
            "memory": Counted(
                self.memory_bytes, polynomial([(float(item), dims) for dims, item in self._buffers], group_of, full)
            ),
        }
        return found if self.latency is None else {**found, "latency": self.latency}

    def _kept(self, widths: Widths) -> dict[int, int]:
        return {axis: width for name, width in widths.items() for axis in self._axes[name]}


def costs(program: Program, groups: Iterable[Group], *, latency: Separable | None = None) -> CostModel:
    """What the traced model would cost at other widths of `groups`: what `allocate` weighs damage against.

    Args:
        program: from `trace`.
        groups: from `find_groups` of this program.
        latency: seconds of a call at any widths, as parts that add up; without it no latency can be bounded.

    Raises:
        ArgumentError: a group that the program does not have.

    >>> from torch import nn, zeros
    >>> from secateur.graph.groups import find_groups
    >>> from secateur.graph.trace import trace
    >>> program = trace(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), (zeros(1, 3),))
    >>> model = costs(program, find_groups(program))
    >>> model.macs({}), model.macs({"0": 1})
    (20, 5)
    """
    groups = tuple(groups)
    found = structure_for(program, {group.name: group.size for group in groups})
    unknown = sorted({group.name for group in groups} - {group.name for group in found.units})
    if unknown:
        raise ArgumentError(f"the program has no group {unknown[0]!r}; pass groups that were found in this program")
    return replace(cost_model(found, item_bytes(program)), latency=latency)


def item_bytes(program: Program) -> dict[str, int]:
    """Canonical name of a parameter or buffer -> bytes of one element."""
    return {name: tensor.element_size() for name, tensor in named_state(program.model).items()}


def cost_model(structure: Structure, items: Mapping[str, int] | None = None) -> CostModel:
    """Read the cost terms off a typed program.

    Args:
        structure: from `graph.groups.structure`.
        items: canonical name -> bytes of one element; 4 where it is not given.
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
        _buffers=tuple((dims, (items or {}).get(name, 4)) for name, dims in state.items()),
    )


def _multiply_adds(term: MacTerm, kept: dict[int, int]) -> int:
    if term.summed is not None and _elements(term.summed, kept) == 1:
        return 0
    return term.times * _elements(term.dims, kept)


def _elements(dims: Dims, kept: dict[int, int]) -> int:
    return math.prod(count(dim, kept) for dim in dims)
