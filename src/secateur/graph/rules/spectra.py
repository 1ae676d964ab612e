"""Complex numbers and Fourier transforms."""

from torch import fx

from secateur.graph.axes import Dims, Fixed
from secateur.graph.typing import Typing, arguments, operator_name, shape_of

FREQUENCY = "positions that a Fourier transform mixes"
PARTS = "the real and the imaginary part"


def fourier_rule(typing: Typing, node: fx.Node) -> Dims:
    """`fft_*`: the transformed dimensions stay, the others pass."""
    named = arguments(node)
    dims = typing.dims(named["self"])
    shape = shape_of(node)
    assert isinstance(shape, tuple)
    along = named.get("dim")
    if along is None:
        sizes = named.get("s")
        along = range(-len(sizes), 0) if sizes is not None else range(len(dims))
    numbers = {k % len(dims) for k in ([along] if isinstance(along, int) else along)}
    typing.fix([dims[k] for k in numbers], FREQUENCY)
    return tuple(Fixed(shape[k], FREQUENCY) if k in numbers else dim for k, dim in enumerate(dims))


def parts_rule(typing: Typing, node: fx.Node) -> Dims:
    """`view_as_real` adds a dimension of two positions, `view_as_complex` takes it off."""
    dims = typing.dims(node.args[0])
    if operator_name(node) == "aten.view_as_real":
        return (*dims, Fixed(2, PARTS))
    typing.fix(dims[-1:], PARTS)
    return dims[:-1]
