"""Convolutions: with groups, a channel dimension is (group, channel within the group)."""

import math

from torch import fx

from secateur.graph.axes import Dims, DimType, Fixed, Product
from secateur.graph.typing import Types, Typing, arguments, operator_name, shape_of

SPACE = "a position in space or time"


def convolution_rule(typing: Typing, node: fx.Node) -> Dims:
    """`n i *s, o i/g *k, o -> n o *s`; transposed: the weight is `i o/g *k`."""
    named = arguments(node)
    groups = int(named.get("groups", 1))
    transposed = bool(named.get("transposed", False)) or "transpose" in operator_name(node)
    inputs, weight = typing.dims(named["input"]), typing.dims(named["weight"])
    space = len(weight) - 2
    typing.fix(weight[2:], "a tap of a kernel")
    shape = shape_of(node)
    assert isinstance(shape, tuple)
    placed = _space(typing, node, inputs[len(inputs) - space :], shape[len(shape) - space :], transposed=transposed)
    channels = inputs[len(inputs) - space - 1]
    into, out = _channels(typing, node, groups, transposed=transposed)
    typing.unify(into, channels)
    if isinstance(named.get("bias"), fx.Node):
        typing.unify(typing.dims(named["bias"])[0], out)
    # Groups pass through, like a batch; what is summed over is the channel within its group.
    typing.contract(weight[0] if transposed and groups == 1 else weight[1] if not transposed else into, named["weight"])
    result = (*inputs[: len(inputs) - space - 1], out, *placed)
    # Each weight meets every output position once (every input position when transposed).
    met = inputs if transposed else result
    typing.count_macs(node, [*met[: len(met) - space - 1], *met[len(met) - space :], *weight])
    return result


def _space(typing: Typing, node: fx.Node, dims: Dims, after: tuple[int, ...], *, transposed: bool) -> Dims:
    """Positions in space stay; where a kernel of one tap visits each of them, they pass as in a linear layer."""
    named = arguments(node)
    taps = typing.dims(named["weight"])[2:]
    stride = named["stride"] if isinstance(named["stride"], list | tuple) else [named["stride"]]
    strides = list(stride) * (len(dims) if len(stride) == 1 else 1)
    found: list[DimType] = []
    for dim, size, tap, step in zip(dims, after, taps, strides, strict=True):
        # What keeps its size so has no padding either.
        if tap.size == step == 1 and dim.size == size and not transposed:
            found.append(dim)
        else:
            typing.fix([dim], SPACE)
            found.append(Fixed(size, SPACE))
    return tuple(found)


def _channels(typing: Typing, node: fx.Node, groups: int, *, transposed: bool) -> tuple[DimType, DimType]:
    """The whole input and output channel dimensions, sharing the axis of groups."""
    whole, within = typing.dims(arguments(node)["weight"])[:2]
    if groups == 1:
        return (whole, within) if transposed else (within, whole)
    group = typing.unifier.fresh(groups)
    typing.constant(node, group, "groups")
    typing.unify(whole, Product((group, *typing.fresh((whole.size // groups,)))))
    other = Product((group, within))
    return (whole, other) if transposed else (other, whole)


def channelwise_rule(typing: Typing, node: fx.Node) -> Dims | list[Types]:
    """Pooling, padding and resizing: leading dimensions pass, dimensions that change size are space.

    Pooling by the largest can give their indices too, which are positions in space.
    """
    dims = typing.dims(node.args[0])
    shapes = shape_of(node)
    shape = shapes[0] if isinstance(shapes, list) else shapes
    assert shape is not None
    space = len(shape) - _leading(dims, node)
    typing.fix(dims[len(dims) - space :], SPACE)
    result = (*dims[: len(dims) - space], *(Fixed(n, SPACE) for n in shape[len(shape) - space :]))
    return [result for _ in shapes] if isinstance(shapes, list) else result


def fold_rule(typing: Typing, node: fx.Node) -> Dims:
    """`col2im`: `n (c k k) places -> n c h w`; overlapping patches add up."""
    named = arguments(node)
    *lead, patches, places = typing.dims(named["self"])
    typing.fix([places], SPACE)
    shape = shape_of(node)
    assert isinstance(shape, tuple)
    block = Fixed(math.prod(named["kernel_size"]), SPACE)
    (out,) = typing.fresh((patches.size // block.size,))
    typing.unify(patches, Product((out, block)))
    return (*lead, out, *(Fixed(n, SPACE) for n in shape[-2:]))


def _leading(dims: Dims, node: fx.Node) -> int:
    """Dimensions before the spatial ones; the operator's name says how many are spatial."""
    name = operator_name(node)
    for space in (1, 2, 3):
        if f"{space}d" in name:
            return len(dims) - space
    return 2
