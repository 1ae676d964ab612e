"""Operators that write into a tensor at places that an index names."""

from torch import fx

from secateur.graph.axes import Dims
from secateur.graph.rules.movement import CHOSEN, index_rule
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
    """`index_put`: what is written broadcasts to what indexing would give."""
    named = arguments(node)
    dims, values = typing.dims(named["self"]), typing.dims(named["values"])
    place = index_rule(typing, node)
    if place is None:
        return None
    for own, other in zip(reversed(place), reversed(values), strict=False):
        if other.size > 1:
            typing.unify(own, other)
    return dims
