"""Operators that work element by element, and those that make tensors of one value."""

from torch import fx
from torch.utils import _pytree as pytree

from secateur.graph.axes import Concat, Dims, DimType, Fixed
from secateur.graph.typing import Typing, arguments, shape_of

MADE_IN_FORWARD = "a tensor that the forward pass makes itself"


def pointwise_rule(typing: Typing, node: fx.Node) -> Dims | None:
    """Broadcasting unifies, from the right; a dimension of one position takes the other's type."""
    shape = shape_of(node)
    if not isinstance(shape, tuple):
        # `where(condition)` alone gives the places where it holds.
        return None
    result: list[DimType] = [Fixed(n) for n in shape]
    known = [n == 1 for n in shape]
    for operand in tensor_operands(typing, node):
        dims = typing.dims(operand)
        for back in range(1, min(len(dims), len(shape)) + 1):
            dim = dims[-back]
            if dim.size == 1 or dim.size != shape[-back]:
                continue
            result[-back] = typing.unify(result[-back], dim) if known[-back] else dim
            known[-back] = True
    return tuple(result)


def outer_rule(typing: Typing, node: fx.Node) -> Dims:
    """Each element of one vector times each of another."""
    named = arguments(node)
    return (*typing.dims(named["self"]), *typing.dims(named["vec2"]))


def glu_rule(typing: Typing, node: fx.Node) -> Dims:
    """One half of a dimension times the sigmoid of the other: the halves are cut alike."""
    named = arguments(node)
    dims = list(typing.dims(named["self"]))
    along = named["dim"] % len(dims)
    value, gate = typing.fresh((dims[along].size // 2,) * 2)
    typing.unify(dims[along], Concat((value, gate)))
    dims[along] = typing.unify(value, gate)
    return tuple(dims)


def prelu_rule(typing: Typing, node: fx.Node) -> Dims:
    """Slopes: one for all, or one for each channel."""
    dims = typing.dims(node.args[0])
    (slopes,) = typing.dims(node.args[1])
    if slopes.size > 1:
        typing.unify(slopes, dims[1])
    return dims


def same_rule(typing: Typing, node: fx.Node) -> Dims:
    """The first operand's types pass through."""
    return typing.dims(node.args[0])


def filled_rule(typing: Typing, node: fx.Node) -> Dims:
    """Zeros, ones, full: one value everywhere, so any part is as good as any other."""
    shape = shape_of(node)
    assert isinstance(shape, tuple)
    dims = typing.fresh(shape)
    typing.constants_of(node, dims, "size")
    return dims


def made_rule(typing: Typing, node: fx.Node) -> Dims:
    """Arange and its kin: positions differ and no module holds them, so they stay."""
    shape = shape_of(node)
    assert isinstance(shape, tuple)
    return tuple(Fixed(n, MADE_IN_FORWARD) for n in shape)


def tensor_operands(typing: Typing, node: fx.Node) -> list[fx.Node]:
    """Every argument of `node` that is a typed tensor."""
    operands = pytree.tree_leaves((node.args, node.kwargs))
    return [n for n in operands if isinstance(n, fx.Node) and isinstance(shape_of(n), tuple) and n in typing.values]
