"""Normalisations, softmax and other reductions: which axes they recompute when units go."""

from torch import fx

from secateur.graph.axes import Dims, Fixed, Product
from secateur.graph.rules.pointwise import pointwise_rule
from secateur.graph.typing import Types, Typing, arguments, operator_name, shape_of


def batch_norm_rule(typing: Typing, node: fx.Node) -> Dims:
    """`n c *s, c, c, c, c -> n c *s`; in eval mode each channel is on its own."""
    named = arguments(node)
    dims = typing.dims(named["input"])
    for name in ("weight", "bias", "running_mean", "running_var"):
        if isinstance(named.get(name), fx.Node):
            typing.unify(typing.dims(named[name])[0], dims[1])
    return dims


def instance_norm_rule(typing: Typing, node: fx.Node) -> Dims:
    """Like batch norm: statistics over space only."""
    return batch_norm_rule(typing, node)


def layer_norm_rule(typing: Typing, node: fx.Node) -> Dims:
    """LayerNorm and RMSNorm: the normalised dimensions are recomputed from what is kept."""
    named = arguments(node)
    dims = typing.dims(named["input"])
    normalised = dims[len(dims) - len(named["normalized_shape"]) :]
    for name in ("weight", "bias"):
        if isinstance(named.get(name), fx.Node):
            for own, dim in zip(typing.dims(named[name]), normalised, strict=True):
                typing.unify(own, dim)
    typing.constants_of(node, normalised, "normalized_shape")
    for dim in normalised:
        typing.remark(dim, f"{operator_name(node).removeprefix('aten.')} normalises over it")
    return dims


def group_norm_rule(typing: Typing, node: fx.Node) -> Dims:
    """Channels are (group, channel within); whole groups go exactly, channels within are renormalised."""
    named = arguments(node)
    dims = typing.dims(named["input"])
    groups = int(named["num_groups"])
    group, within = typing.fresh((groups, dims[1].size // groups))
    typing.constant(node, group, "num_groups")
    typing.unify(dims[1], Product((group, within)))
    for name in ("weight", "bias"):
        if isinstance(named.get(name), fx.Node):
            typing.unify(typing.dims(named[name])[0], dims[1])
    typing.remark(within, "group_norm normalises over it")
    return dims


def weight_norm_rule(typing: Typing, node: fx.Node) -> Types | list[Types]:
    """`v`, its norm over all dimensions but one taken out and `g` put in; zeros add nothing to a norm."""
    named = arguments(node)
    v, g = typing.dims(named["v"]), typing.dims(named["g"])
    for own, gain in zip(v, g, strict=True):
        if gain.size == own.size:
            typing.unify(own, gain)
    shapes = shape_of(node)
    return [v, (v[named["dim"]],)] if isinstance(shapes, list) else v


def softmax_rule(typing: Typing, node: fx.Node) -> Dims:
    """Softmax and its kin recompute their dimension."""
    named = arguments(node)
    dims = typing.dims(node.args[0])
    typing.remark(dims[named["dim"]], f"{operator_name(node).removeprefix('aten.')} normalises over it")
    return dims


NORMS = ("norm", "linalg_vector_norm")
RECOMPUTED = ("mean", "var", "std", "var_mean", "std_mean", "amax", "amin", "logsumexp", *NORMS)


def _is_place_used(node: fx.Node) -> bool:
    """Whether a maximum's second result, its position, is used."""
    return any(user.args[1] == 1 for user in node.users if operator_name(user) == "getitem")


def reduction_rule(typing: Typing, node: fx.Node) -> Types:
    """Sums and norms see zeros and stay exact; means are recomputed; any other reduction fixes what it eats."""
    named = arguments(node)
    if "other" in named:  # the smaller of two tensors, element by element
        return pointwise_rule(typing, node)
    dims = typing.dims(node.args[0])
    reduced = _reduced(named.get("dim"), len(dims))
    name = operator_name(node).removeprefix("aten.")
    for number in reduced:
        if name == "sum" or (name in NORMS and (named.get("p", named.get("ord")) or 2) > 0):
            typing.contract(dims[number], None, (node.args[0],))  # type: ignore[arg-type]
        elif name in RECOMPUTED or (name in {"max", "min"} and not _is_place_used(node)):
            typing.remark(dims[number], f"{name} is taken over it")
        else:
            typing.fix([dims[number]], f"{name} is taken over it")
    keep = bool(named.get("keepdim", False))
    result = tuple(
        Fixed(1) if number in reduced else dim for number, dim in enumerate(dims) if keep or number not in reduced
    )
    shapes = shape_of(node)
    return [result for _ in shapes] if isinstance(shapes, list) else result  # type: ignore[return-value]


def cumulative_rule(typing: Typing, node: fx.Node) -> Dims:
    """cumsum, flip and roll along a dimension: its positions depend on one another."""
    named = arguments(node)
    dims = typing.dims(node.args[0])
    along = named.get("dim", named.get("dims", -1))
    for number in along if isinstance(along, list | tuple) else [along]:
        typing.fix([dims[number]], f"{operator_name(node).removeprefix('aten.')} goes along it")
    return dims


def topk_rule(typing: Typing, node: fx.Node) -> list[Types]:
    """topk: values, and positions along what is ranked; sort: what is ranked together stays together."""
    named = arguments(node)
    dims = list(typing.dims(named["self"]))
    along = named.get("dim", -1) % max(len(dims), 1)
    kept = int(named.get("k", dims[along].size))
    if kept < dims[along].size:
        typing.rank(dims[along], kept)
        typing.chosen[node] = dims[along]
    else:
        typing.fix([dims[along]], "sort ranks it")
    dims[along] = Fixed(kept, "places in a ranking")
    return [tuple(dims), tuple(dims)]


def _reduced(dim: int | list[int] | None, rank: int) -> set[int]:
    if dim is None or dim == []:
        return set(range(rank))
    numbers = dim if isinstance(dim, list | tuple) else [dim]
    return {number % rank for number in numbers}
