"""Operators that move elements without computing: views, permutations, cuts and joins."""

import math
from collections.abc import Sequence

from torch import fx

from secateur.graph.axes import Concat, Dims, DimType, Fixed, Product, leaves
from secateur.graph.stacks import is_layerwise
from secateur.graph.typing import RowDims, Types, Typing, arguments, operator_name, shape_of

CHOSEN = "positions are chosen by index"
ROWS = "rows of a table are chosen by index"


def view_rule(typing: Typing, node: fx.Node) -> Dims:
    """view, reshape, flatten, unflatten: unify the shortest runs that hold the same elements.

    A (batch, 768) tensor seen as (batch, 12, 64) refines the axis of 768 into 12 x 64.
    """
    dims = [d for d in typing.dims(node.args[0]) if d.size != 1]
    shape = shape_of(node)
    assert isinstance(shape, tuple)
    if math.prod(shape) == 0:
        return tuple(Fixed(n, "an empty tensor") for n in shape)
    fresh = typing.fresh(shape)
    targets = [d for d in fresh if d.size != 1]
    while dims and targets:
        i, j = _run(dims, targets)
        typing.unify(_product(dims[:i]), _product(targets[:j]))
        dims, targets = dims[i:], targets[j:]
    _name_sizes(typing, node, fresh)
    return fresh


def _name_sizes(typing: Typing, node: fx.Node, dims: Dims) -> None:
    """A view or an expansion names the sizes of its result; unflatten only those of the parts."""
    named = arguments(node)
    if "sizes" in named:
        start = named["dim"] % len(typing.dims(node.args[0]))
        typing.constants_of(node, dims[start : start + len(named["sizes"])], "sizes")
    for argument in ("size", "shape"):
        if argument in named:
            typing.constants_of(node, dims, argument)


def _run(a: Sequence[DimType], b: Sequence[DimType]) -> tuple[int, int]:
    """How many leading dimensions of each hold the same number of elements."""
    i = j = 1
    left, right = a[0].size, b[0].size
    while left != right:
        if left < right:
            left, i = left * a[i].size, i + 1
        else:
            right, j = right * b[j].size, j + 1
    return i, j


def _product(dims: Sequence[DimType]) -> DimType:
    return dims[0] if len(dims) == 1 else Product(tuple(dims))


def permute_rule(typing: Typing, node: fx.Node) -> Dims:
    """permute, transpose, t: the same dimensions in another order."""
    dims = list(typing.dims(node.args[0]))
    named = arguments(node)
    match operator_name(node):
        case "aten.permute":
            return tuple(dims[k] for k in named["dims"])
        case "aten.transpose" | "aten.swapaxes":
            a, b = (named["dim0"], named["dim1"]) if "dim0" in named else (named["axis0"], named["axis1"])
            dims[a], dims[b] = dims[b], dims[a]
            return tuple(dims)
        case _:
            return tuple(reversed(dims))


def squeeze_rule(typing: Typing, node: fx.Node) -> Types:
    """squeeze: dimensions of one position go."""
    named = arguments(node)
    rows = typing.values.get(named["self"])
    if isinstance(rows, RowDims) and named.get("dim") == 1 and rows.dims[1].size == 1:
        # Final states of one sample without a batch.
        return RowDims((rows.dims[0], *rows.dims[2:]), rows.rows)
    dims = typing.dims(node.args[0])
    chosen = named.get("dim")
    numbers = range(len(dims)) if chosen is None else chosen if isinstance(chosen, list | tuple) else [chosen]
    gone = {k % len(dims) for k in numbers if dims[k].size == 1}
    return tuple(d for k, d in enumerate(dims) if k not in gone)


def unsqueeze_rule(typing: Typing, node: fx.Node) -> Dims:
    """unsqueeze: a new dimension of one position."""
    dims = list(typing.dims(node.args[0]))
    dims.insert(arguments(node)["dim"] % (len(dims) + 1), Fixed(1))
    return tuple(dims)


def expand_rule(typing: Typing, node: fx.Node) -> Dims:
    """expand, broadcast_to: a dimension that grows from one position can have any number of them."""
    dims = typing.dims(node.args[0])
    shape = shape_of(node)
    assert isinstance(shape, tuple)
    padded = [None] * (len(shape) - len(dims)) + list(dims)
    result = tuple(
        old if old is not None and old.size == n else typing.fresh((n,))[0]
        for old, n in zip(padded, shape, strict=True)
    )
    _name_sizes(typing, node, result)
    return result


def repeat_rule(typing: Typing, node: fx.Node) -> Dims:
    """repeat: copies of a dimension side by side, copy first."""
    dims = typing.dims(node.args[0])
    counts = list(arguments(node)["repeats"])
    padded: list[DimType] = [Fixed(1)] * (len(counts) - len(dims)) + list(dims)
    result = tuple(typing.fresh((n,))[0] if d.size == 1 else _copies(n, d) for n, d in zip(counts, padded, strict=True))
    typing.constants_of(node, result, "repeats")
    return result


def scatter_rule(typing: Typing, node: fx.Node) -> Dims:
    """scatter: like gather, but what is chosen is written."""
    named = arguments(node)
    dims = typing.dims(named["self"])
    gather_rule(typing, node)
    if isinstance(named.get("src"), fx.Node):
        for own, other in zip(typing.dims(named["index"]), typing.dims(named["src"]), strict=True):
            if own.size == other.size:
                typing.unify(own, other)
            else:
                typing.fix([own, other], CHOSEN)
    return dims


def one_hot_rule(typing: Typing, node: fx.Node) -> Dims:
    """one_hot: a new dimension, that which the integers are positions of where that is known."""
    named = arguments(node)
    shape = shape_of(node)
    assert isinstance(shape, tuple)
    known = typing.chosen.get(named["self"])
    last = known if known is not None and known.size == shape[-1] else Fixed(shape[-1], ROWS)
    typing.constant(node, last, "num_classes")
    return (*typing.dims(named["self"]), last)


def _choose(typing: Typing, dim: DimType, value: fx.Node, index: fx.Node) -> None:
    """Positions of `dim` of `value` are chosen: it stays, unless they are known to be those of another dimension."""
    known = typing.chosen.get(index)
    if known is not None and known.size == dim.size:
        typing.unify(dim, known)
    else:
        # A parameter that is indexed is a table (of relative positions, say), as an embedding is.
        typing.fix([dim], ROWS if typing.source(value) else CHOSEN)


def gather_rule(typing: Typing, node: fx.Node) -> Dims:
    """gather: positions along one dimension are chosen by an index of the result's shape."""
    named = arguments(node)
    dims, index = typing.dims(named["self"]), typing.dims(named["index"])
    along = named["dim"] % max(len(dims), 1)
    typing.fix([index[along]], CHOSEN)
    _choose(typing, dims[along], named["self"], named["index"])
    for number, (own, chosen) in enumerate(zip(dims, index, strict=True)):
        if number != along and own.size == chosen.size:
            typing.unify(own, chosen)
        elif number != along:
            typing.fix([own, chosen], CHOSEN)
    return index


def _copies(count: int, dim: DimType) -> DimType:
    return Product((Fixed(count, "copies made by repeat"), dim)) if count > 1 else dim


def cat_rule(typing: Typing, node: fx.Node) -> Dims:
    """cat: the joined dimension is a concatenation, the others unify."""
    named = arguments(node)
    tensors = [typing.dims(t) for t in named["tensors"]]
    rank = max(len(t) for t in tensors)
    tensors = [t for t in tensors if len(t) == rank]
    along = named.get("dim", 0) % rank
    result = list(tensors[0])
    for dims in tensors[1:]:
        for number in set(range(rank)) - {along}:
            typing.unify(result[number], dims[number])
    result[along] = Concat(tuple(dims[along] for dims in tensors))
    return tuple(result)


def stack_rule(typing: Typing, node: fx.Node) -> Types:
    """stack: a new dimension, all others unify; but states that a stack of ours puts together can come apart."""
    named = arguments(node)
    tensors = [typing.dims(t) for t in named["tensors"]]
    if is_layerwise(typing.program, node) and len(tensors) > 1:
        lead = Fixed(len(tensors), "a layer")
        return RowDims((lead, *tensors[0]), tuple(dims[-1] for dims in tensors))
    for dims in tensors[1:]:
        for a, b in zip(tensors[0], dims, strict=True):
            typing.unify(a, b)
    result = list(tensors[0])
    result.insert(named.get("dim", 0) % (len(result) + 1), Fixed(len(tensors), "tensors that were stacked"))
    return tuple(result)


def split_rule(typing: Typing, node: fx.Node) -> list[Types]:
    """split, chunk: segments of a dimension; pieces of equal size stay equally wide."""
    named = arguments(node)
    dims = list(typing.dims(node.args[0]))
    shapes = shape_of(node)
    along = named.get("dim", 0) % len(dims)
    assert isinstance(shapes, list)
    sizes = [shape[along] for shape in shapes]
    is_one_number = operator_name(node) in {"aten.chunk", "aten.split"} and not isinstance(
        named.get("split_size"), list
    )
    pieces = _even(typing, sizes) if is_one_number else typing.fresh(sizes)
    typing.unify(dims[along], Concat(pieces))
    if is_one_number:
        typing.constant(node, pieces[0], "split_size")
    else:
        typing.constants_of(node, pieces, "split_sizes" if "split_sizes" in named else "split_size")
    if len(pieces) < named.get("chunks", 0):
        typing.fix(pieces, "a chunk into fewer pieces than were asked for")
    return [(*dims[:along], piece, *dims[along + 1 :]) for piece in pieces]


def _even(typing: Typing, sizes: Sequence[int]) -> Dims:
    """Pieces of a split by one number, the last of which may be shorter: by as much, whatever they lose."""
    shared = typing.fresh([min(sizes)] * len(sizes))
    if len(shared) > 1:
        typing.families.append(shared)
    return tuple(
        Concat((own, Fixed(size - own.size, "what a shorter last piece lacks"))) if size > own.size else own
        for own, size in zip(shared, sizes, strict=True)
    )


def unbind_rule(typing: Typing, node: fx.Node) -> list[Types]:
    """unbind: one tensor for each index of a dimension."""
    rows = typing.values.get(node.args[0]) if isinstance(node.args[0], fx.Node) else None
    along = arguments(node).get("dim", 0)
    if isinstance(rows, RowDims) and along == 0:
        return [(*rows.dims[1:-1], row) for row in rows.rows]
    dims = typing.dims(node.args[0])
    typing.fix([dims[along]], CHOSEN)
    rest = tuple(d for k, d in enumerate(dims) if k != along % len(dims))
    return [rest for _ in range(dims[along].size)]


def select_rule(typing: Typing, node: fx.Node) -> Dims:
    """select: one index of a dimension stays, and what an index that does not follow counts."""
    named = arguments(node)
    value = typing.values.get(named["self"])
    if isinstance(value, RowDims) and named["dim"] == 0:
        return (*value.dims[1:-1], value.rows[named["index"]])
    dims = list(typing.dims(named["self"]))
    chosen, index = dims.pop(named["dim"]), named["index"]
    if type(index) is not int or typing.program.sizes.source(node, [index], 0) is None:
        typing.fix([chosen], CHOSEN)
        return tuple(dims)
    start = index % chosen.size
    before, after = typing.fresh((start, chosen.size - start - 1))
    typing.unify(chosen, Concat((before, Fixed(1, CHOSEN), after)))
    typing.constant(node, before, "index")
    typing.constant(node, Concat((Fixed(1), after)), "index", sign=-1)
    return tuple(dims)


def slice_rule(typing: Typing, node: fx.Node) -> Types:
    """slice: a segment of a dimension, if it is taken without gaps."""
    named = arguments(node)
    value = typing.values.get(named["self"])
    if isinstance(value, RowDims) and named["dim"] == 0:
        rows = value.rows[slice(named["start"], named["end"], named["step"])]
        taken = (Fixed(len(rows), CHOSEN), *value.dims[1:-1])
        return RowDims((*taken, rows[0]), rows) if len(rows) > 1 else (*taken, *rows)
    dims = list(typing.dims(named["self"]))
    along = named.get("dim", 0) % len(dims)
    shape = shape_of(node)
    assert isinstance(shape, tuple)
    size, taken = dims[along].size, shape[along]
    if size == taken:
        return tuple(dims)
    step = named.get("step", 1)
    if step != 1:
        return (*dims[:along], _every(typing, node, dims[along], step, taken), *dims[along + 1 :])
    start = min(max((named.get("start") or 0) + (size if (named.get("start") or 0) < 0 else 0), 0), size)
    before, middle, after = typing.fresh([start, taken, size - start - taken])
    typing.unify(dims[along], Concat((before, middle, after)))
    typing.constant(node, before, "start")
    typing.constant(node, Concat((middle, after)), "start", sign=-1)
    typing.constant(node, Concat((before, middle)), "end")
    typing.constant(node, after, "end", sign=-1)
    return (*dims[:along], middle, *dims[along + 1 :])


def _every(typing: Typing, node: fx.Node, dim: DimType, step: int, taken: int) -> DimType:
    """Every `step`-th position of a whole dimension, which is then (taken, step)."""
    named = arguments(node)
    is_whole = 0 <= (named.get("start") or 0) < step and taken * step == dim.size
    if not is_whole or (named.get("end") or dim.size) < dim.size:
        typing.fix([dim], "a slice with gaps")
        return Fixed(taken, "a slice with gaps")
    (kept,) = typing.fresh((taken,))
    typing.unify(dim, Product((kept, Fixed(step, "taken in turn"))))
    return kept


def pad_rule(typing: Typing, node: fx.Node) -> Dims:
    """Padding: constant padding puts axes of its own beside a free dimension; any other kind fixes it."""
    named = arguments(node)
    dims = list(typing.dims(named["self"]))
    pads = list(named["pad"])
    shape = shape_of(node)
    assert isinstance(shape, tuple)
    for back in range(len(pads) // 2):
        left, right = pads[2 * back], pads[2 * back + 1]
        if left == right == 0:
            continue
        dim = dims[-1 - back]
        if min(left, right) < 0 or named.get("mode", "constant") != "constant":
            typing.fix([dim], "padding that copies or crops")
            dims[-1 - back] = Fixed(shape[-1 - back], "padding")
        elif not any(leaves(typing.unifier.resolve(dim))):
            dims[-1 - back] = Concat((Fixed(left, "padding"), dim, Fixed(right, "padding")))
        else:
            before, after = typing.fresh((left, right))
            typing.constant(node, before, "pad", 2 * back)
            typing.constant(node, after, "pad", 2 * back + 1)
            dims[-1 - back] = Concat((before, dim, after))
    return tuple(dims)


def index_rule(typing: Typing, node: fx.Node) -> Dims | None:
    """Indexing by tensors; dimensions without an index pass when the indices stand together."""
    named = arguments(node)
    indices = list(named["indices"])
    dims = typing.dims(named["self"])
    used = [k for k, index in enumerate(indices) if index is not None]
    shape = shape_of(node)
    assert isinstance(shape, tuple)
    if used != list(range(used[0], used[-1] + 1)):
        return None
    for k in used:
        _choose(typing, dims[k], named["self"], indices[k])
    rank = len(shape) - (len(dims) - len(used))
    middle = tuple(Fixed(n, CHOSEN) for n in shape[used[0] : used[0] + rank])
    return (*dims[: used[0]], *middle, *dims[used[-1] + 1 :])


def index_select_rule(typing: Typing, node: fx.Node) -> Types:
    """index_select: the dimension is chosen from, the others pass."""
    named = arguments(node)
    rows = typing.values.get(named["self"])
    if isinstance(rows, RowDims) and named["dim"] == 1:
        # Final states of a packed sequence are put back in the order of its samples.
        return rows
    dims = list(typing.dims(named["self"]))
    shape = shape_of(node)
    assert isinstance(shape, tuple)
    along = named["dim"] % len(dims)
    _choose(typing, dims[along], named["self"], named["index"])
    dims[along] = Fixed(shape[along], CHOSEN)
    return tuple(dims)
