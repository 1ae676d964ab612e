"""Operators that only move elements and need no rule: their types are read off a run on labels.

Dimensions that are fixed already (batch, space) matter little: where tensors are large, the run is made with
fewer positions of them, as long as the types that it shows give the sizes that the program has.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, TypeVar

from torch import fx
from torch.utils import _pytree as pytree

from secateur.graph.axes import Axis, Concat, Dims, DimType, Fixed, Product, fixed_sizes, leaves
from secateur.graph.labels import MOST_ELEMENTS, Call, Operand
from secateur.graph.reading import Reading, follow, read
from secateur.graph.settle import count
from secateur.graph.typing import Types, Typing, arguments, operator_name, shape_of

# `as_strided` is not among them: what it reads depends on the memory of its operand.
_MOVERS = """
    pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle im2col unfold
    roll flip fliplr flipud rot90 movedim moveaxis swapaxes swapdims mT mH adjoint matrix_H numpy_T
    narrow diagonal diag_embed diag tril triu repeat_interleave tile ravel atleast_1d atleast_2d atleast_3d
    hstack vstack dstack row_stack column_stack block_diag meshgrid cartesian_prod broadcast_tensors
    tensor_split hsplit vsplit dsplit unsafe_split unsafe_chunk unsafe_split_with_sizes
    select_scatter slice_scatter diagonal_scatter take take_along_dim
    reflection_pad1d reflection_pad2d reflection_pad3d
    replication_pad1d replication_pad2d replication_pad3d
    narrow_copy diagonal_copy unfold_copy permute_copy transpose_copy t_copy view_copy expand_copy squeeze_copy
    unsqueeze_copy select_copy slice_copy split_copy split_with_sizes_copy unbind_copy alias_copy detach_copy
"""
MOVERS = frozenset(f"aten.{name}" for name in _MOVERS.split())

# Integer arguments that may be numbers of positions; any other one (a factor, a step) means something else.
_COUNTING = "start end length pad padding size sizes repeats output_size split_size split_sizes indices shifts groups"
COUNTING = frozenset(_COUNTING.split())

_Shapes = tuple[tuple[int, ...], ...]
_Flags = tuple[tuple[bool, ...], ...]
_A = TypeVar("_A")
_B = TypeVar("_B")

CHOOSING = frozenset({"index", "indices"})


LARGE = 2**14  # elements
NARROW = 8  # positions


def labelled_rule(typing: Typing, node: fx.Node) -> Types | list[Types]:
    """Types read off a run on labels; None if the operator is not known to only move elements, or does more."""
    found = _call(typing, node) if operator_name(node) in MOVERS else None
    if found is None:
        return None
    call, operands = found
    dims = [typing.dims(operand) for operand in operands]
    is_free = tuple(tuple(any(leaves(typing.unifier.resolve(dim))) for dim in own) for own in dims)
    shapes = shape_of(node)
    assert shapes is not None
    results = shapes if isinstance(shapes, list) else [shapes]
    for sizes in _sizes_to_try(call.shapes, is_free, results):
        reading = _followed(replace(call, shapes=sizes), is_free)
        if reading and (types := _Instance(typing, node, reading, dims, is_free).types(results)):
            return types if isinstance(shapes, list) else types[0]
    return None


def _call(typing: Typing, node: fx.Node) -> tuple[Call, list[fx.Node]] | None:
    """The call of `node` and its operands; None if it takes what only the run knows."""
    operands: dict[fx.Node, Operand] = {}
    named: dict[str, Any] = {}
    for name, value in arguments(node).items():
        nodes = [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, fx.Node)]
        if (name in CHOOSING and nodes) or not all(
            isinstance(shape_of(n), tuple) and n in typing.values for n in nodes
        ):
            return None
        for n in nodes:
            operands.setdefault(n, Operand(len(operands)))
        named[name] = pytree.tree_map_only(fx.Node, operands.__getitem__, value)
    shapes = tuple(tuple(d.size for d in typing.dims(n)) for n in operands)
    return Call(node.target, named, shapes), list(operands)


def _sizes_to_try(shapes: _Shapes, is_free: _Flags, results: Sequence[Any]) -> Iterator[_Shapes]:
    """Shapes of operands, the smallest first; none that is too large to run."""
    elements = sum(map(math.prod, [*shapes, *results]))
    narrow = tuple(
        tuple(n if free else _narrow(n) for n, free in zip(shape, flags, strict=True))
        for shape, flags in zip(shapes, is_free, strict=True)
    )
    small = sum(map(math.prod, narrow))
    if elements > LARGE and narrow != shapes and small <= MOST_ELEMENTS:
        yield narrow
    if elements <= MOST_ELEMENTS:
        yield shapes


def _narrow(size: int) -> int:
    """Fewer positions; an odd number stays odd."""
    while size > NARROW:
        size = size // 2 | size % 2
    return size


@lru_cache(maxsize=512)
def _followed(call: Call, is_free: _Flags) -> Reading | None:
    try:
        reading = read(call)
        return reading and follow(call, reading, _alive(reading, is_free), COUNTING)
    except (RuntimeError, IndexError, ValueError, TypeError, NotImplementedError):
        return None


def _alive(reading: Reading, is_free: _Flags) -> frozenset[int]:
    """Axes of a reading that nothing has fixed: of operands that are free, and of padding and copies."""
    free, held = set[int](), set[int]()
    for dims, flags in zip(reading.operands, is_free, strict=True):
        for dim, flag in zip(dims, flags, strict=True):
            held |= _ids(dim)
            free |= _ids(dim) if flag else set()
    everywhere = set[int]().union(*(_ids(dim) for dims in reading.results for dim in dims))
    return frozenset(free | (everywhere - held))


def _ids(dim: DimType) -> set[int]:
    return {axis.id for axis in leaves(dim)}


def _zipped(a: Iterable[Sequence[_A]], b: Iterable[Sequence[_B]]) -> list[tuple[_A, _B]]:
    """Pairs of what lies at the same place in rows of the same lengths."""
    return [pair for rows in zip(a, b, strict=True) for pair in zip(*rows, strict=True)]


class _Instance:
    """A reading over the axes of a program."""

    def __init__(self, typing: Typing, node: fx.Node, reading: Reading, dims: Sequence[Dims], is_free: _Flags) -> None:
        self._typing, self._node, self._reading = typing, node, reading
        self._alive = _alive(reading, is_free)
        self._pairs = _zipped(reading.operands, dims)
        self._own: dict[int, DimType] = {}
        self._name = operator_name(node).removeprefix("aten.")

    def types(self, results: Sequence[tuple[int, ...]]) -> list[Types] | None:
        """The types of the results; None if the reading, made with narrower operands, is not true of these."""
        if not self._is_true(results):
            return None
        typing, reading = self._typing, self._reading
        for dim, real in self._pairs:
            if isinstance(dim, Axis):
                # The operand's own type, not a fresh axis, so that what is known of its layout passes unchanged.
                known = self._own.get(dim.id)
                self._own[dim.id] = real if known is None else typing.unify(known, real)
        for dim, real in self._pairs:
            if not isinstance(dim, Axis) and dim.size == real.size:
                typing.unify(real, self._filled(dim))
        for c in reading.counted:
            typing.constant(self._node, self._filled(c.dim), c.argument, c.index, c.sign)
        typing.families += [tuple(map(self._filled, family)) for family in reading.families]
        return [
            tuple(self._result(dim, size) for dim, size in zip(dims, shape, strict=True))
            for dims, shape in zip(reading.results, results, strict=True)
        ]

    def _is_true(self, results: Sequence[tuple[int, ...]]) -> bool:
        real = {dim.id: own.size for dim, own in self._pairs if isinstance(dim, Axis)}
        unknown = set[int]().union(
            *(_ids(dim) for dim, own in self._pairs if dim.size != own.size and not isinstance(dim, Axis))
        )
        if unknown & self._alive:
            return False
        pairs = [
            pair for sides in zip(self._reading.results, results, strict=True) for pair in zip(*sides, strict=True)
        ]
        live = [(dim, size) for dim, size in pairs if _ids(dim) & self._alive]
        return all(count(dim, real) == size and not _ids(dim) & unknown for dim, size in live)

    def _result(self, dim: DimType, size: int) -> DimType:
        if _ids(dim) & self._alive or (isinstance(dim, Axis) and dim.id in self._own):
            return self._filled(dim)
        return Fixed(size, self._reason(dim))

    def _reason(self, dim: DimType) -> str:
        """Why the operands are fixed that `dim` is made of."""
        sources = [real for own, real in self._pairs if _ids(own) & _ids(dim)]
        fixed = [f.reason for real in sources for f in fixed_sizes(self._typing.unifier.resolve(real))]
        return next(filter(None, fixed), next((self._said(f) for f in fixed_sizes(dim)), ""))

    def _said(self, fixed: Fixed) -> str:
        return f"{self._name}: {fixed.reason}" if fixed.reason else ""

    def _filled(self, dim: DimType) -> DimType:
        match dim:
            case Axis(id_, size):
                return self._own.setdefault(id_, self._typing.unifier.fresh(size))
            case Fixed(size):
                return Fixed(size, self._said(dim))
            case Product(factors):
                return Product(tuple(map(self._filled, factors)))
            case Concat(parts):
                return Concat(tuple(map(self._filled, parts)))
