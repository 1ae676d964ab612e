"""Operators that write into a tensor at places that an index names."""

import torch
from torch import fx

from secateur.graph.axes import Dims, DimType
from secateur.graph.rules.movement import CHOSEN
from secateur.graph.typing import Typing, arguments


def index_add_rule(typing: Typing, node: fx.Node) -> Dims:
    """`index_add`, `index_copy`: one dimension is written by index, the others unify."""
    named = arguments(node)
    dims, source = typing.dims(named["self"]), typing.dims(named["source"])
    along = named["dim"] % max(len(dims), 1)
    typing.fix([dims[along], source[along], *typing.dims(named["index"])], CHOSEN)
    for number, (own, other) in enumerate(zip(dims, source, strict=True)):
        if number != along:
            typing.unify(own, other)
    return dims


def index_put_rule(typing: Typing, node: fx.Node) -> Dims | None:
    """`index_put`: what is written broadcasts to what indexing would give, so the last dimensions meet."""
    named = arguments(node)
    dims, values = typing.dims(named["self"]), typing.dims(named["values"])
    used = [number for number, index in enumerate(named["indices"]) if index is not None]
    indices = [typing.dims(named["indices"][number]) for number in used]
    masks = [named["indices"][number].meta["val"].dtype in {torch.bool, torch.uint8} for number in used]
    if used != list(range(used[0], used[-1] + 1)) or any(masks):
        return None
    typing.fix([dims[number] for number in used], CHOSEN)
    chosen = max(len(index) for index in indices)
    places: list[DimType | None] = [*dims[: used[0]], *[None] * chosen, *dims[used[-1] + 1 :]]
    for own, other in zip(reversed(places), reversed(values), strict=False):
        if own is None:
            typing.fix([other], CHOSEN)
        elif other.size > 1:
            typing.unify(own, other)
    return dims
