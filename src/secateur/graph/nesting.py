"""Axes that lie within another: head dimensions within heads, channels within the groups of a convolution.

Each outer unit may keep other inner units than its neighbours, as long as nothing ever lets inner units of
two outer units meet by their number: a parameter shared by all heads, a sum over heads, a softmax over them.
"""

from collections import Counter
from collections.abc import Iterable, Iterator

from torch import fx

from secateur.graph.axes import Axis, Concat, Dims, DimType, Product, leaves
from secateur.graph.typing import RowDims, Typing


def outer_axes(typing: Typing) -> dict[int, Axis]:
    """Inner axis id -> the outer axis, each of whose units may keep inner units of its own.

    An axis is inner where every tensor of the program that has it, parameter or activation, has the outer
    axis at the same positions, and no operator mixes outer units while the inner axis stays.
    """
    companions: dict[int, set[Axis]] = {}
    order: dict[int, int] = {}
    for dims in _tensors(typing):
        for axis in (leaf for dim in dims for leaf in leaves(dim)):
            order.setdefault(axis.id, len(order))
        for id_, others in _companions(dims).items():
            companions[id_] = companions[id_] & others if id_ in companions else others
    mixed, transposed = _mixed(typing), _transposed(typing)
    found: dict[int, Axis] = {}
    for id_, others in companions.items():
        # Two axes that always lie together are each other's companions: the one that comes first is the outer.
        outer = [
            axis
            for axis in sorted(others, key=lambda axis: order[axis.id])
            if (axis.id, id_) not in mixed
            and (id_, axis.id) not in transposed
            and not (order[axis.id] > order[id_] and any(a.id == id_ for a in companions[axis.id]))
        ]
        if outer:
            found[id_] = outer[0]
    # One level: what is nested in an axis that is itself nested would need units of units.
    return {id_: axis for id_, axis in found.items() if axis.id not in found}


def _tensors(typing: Typing) -> Iterator[Dims]:
    """The resolved types of parameters, then of all values, each once."""
    raw = dict.fromkeys(_raw(typing))
    yield from dict.fromkeys(tuple(typing.unifier.resolve(dim) for dim in dims) for dims in raw)


def _raw(typing: Typing) -> Iterator[Dims]:
    yield from typing.state.values()
    for value in typing.values.values():
        for types in value if isinstance(value, list) else [value]:
            if isinstance(types, RowDims):
                yield from ((*types.dims[:-1], row) for row in types.rows)
            elif types is not None:
                yield types


def _companions(dims: Dims) -> dict[int, set[Axis]]:
    """Each leaf of a tensor -> the axes that number the same positions, wherever the leaf occurs in it."""
    times = [Counter(leaf.id for leaf in leaves(dim)) for dim in dims]
    found: dict[int, set[Axis]] = {}
    for number, dim in enumerate(dims):
        elsewhere = {
            axis
            for other, beside in enumerate(dims)
            if other != number
            for axis in _whole(beside)
            if sum(count[axis.id] for count in times) == 1
        }
        for leaf, siblings in _siblings(dim, frozenset()):
            own = {a for a in siblings if not any(count[a.id] for k, count in enumerate(times) if k != number)}
            both = own | elsewhere
            found[leaf.id] = found[leaf.id] & both if leaf.id in found else both
    return found


def _whole(dim: DimType) -> Iterator[Axis]:
    """Axes that number every position of a dimension."""
    for factor in dim.factors if isinstance(dim, Product) else (dim,):
        if isinstance(factor, Axis):
            yield factor


def _siblings(dim: DimType, around: frozenset[Axis]) -> Iterator[tuple[Axis, frozenset[Axis]]]:
    """Every leaf with the axes that number the same positions of its dimension."""
    match dim:
        case Axis():
            yield dim, around
        case Concat(parts):
            for part in parts:
                yield from _siblings(part, around)
        case Product(factors):
            for number, factor in enumerate(factors):
                others = Counter(a for k, f in enumerate(factors) if k != number for a in leaves(f))
                whole = {f for k, f in enumerate(factors) if k != number and isinstance(f, Axis) and others[f] == 1}
                yield from _siblings(factor, around | whole)
        case _:
            return


def _mixed(typing: Typing) -> set[tuple[int, int]]:
    """(outer, inner) where an operator combines outer units and lets the inner axis stand."""
    found: set[tuple[int, int]] = set()
    for node, (contractions, remarks) in typing.facts.items():
        gone = {axis.id for c in contractions for axis in leaves(typing.unifier.resolve(c.dim))}
        changed = {axis.id for r in remarks for axis in leaves(typing.unifier.resolve(r.dim))}
        if gone or changed:
            present = _present(typing, node)
            found |= _pairs(gone, present - gone) | _pairs(changed, present)
    return found


def _transposed(typing: Typing) -> set[tuple[int, int]]:
    """(earlier, later) in one dimension of a parameter: there the kept positions of the later are not in a row."""
    found: set[tuple[int, int]] = set()
    parts = [typing.unifier.resolve(dim) for dims in typing.state.values() for dim in dims]
    while parts:
        match parts.pop():
            case Concat(inside):
                parts += inside
            case Product(factors):
                parts += factors
                order = [[leaf.id for leaf in leaves(factor)] for factor in factors]
                found |= {(a, b) for n, ids in enumerate(order) for a in ids for more in order[n + 1 :] for b in more}
            case _:
                continue
    return found


def _pairs(outer: Iterable[int], inner: Iterable[int]) -> set[tuple[int, int]]:
    return {(a, b) for a in outer for b in inner if a != b}


def _present(typing: Typing, node: fx.Node) -> set[int]:
    """Axes of the tensors that an operator reads."""
    dims: Iterable[DimType] = (
        dim
        for operand in node.all_input_nodes
        for types in [typing.values.get(operand)]
        for dim in (types if isinstance(types, tuple) else ())
    )
    return {axis.id for dim in dims for axis in leaves(typing.unifier.resolve(dim))}
