"""Second moments of the inputs of a call: all that least squares and OBS need to know of the data."""

from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.capture.calls import Call
from secateur.capture.forms import Convolution, Form
from secateur.capture.shifts import BLOCK, gram_by_shifts, is_cheaper


@dataclass(frozen=True, eq=False)
class Gram:
    """Sums over positions of products of input columns, the last of which is a constant 1.

    Those of two parts of the data add up to that of the whole.

    Attributes:
        total: float64 (groups, columns + 1, columns + 1), on the CPU.
        positions: how many were summed over.

    >>> gram = gram_of(torch.tensor([[[[2.0]], [[4.0]]]]))
    >>> gram.mean().tolist()
    [[[10.0, 3.0], [3.0, 1.0]]]
    """

    total: Tensor
    positions: int

    def __add__(self, other: "Gram") -> "Gram":
        return Gram(self.total + other.total, self.positions + other.positions)

    def mean(self) -> Tensor:
        """E[x̃x̃ᵀ]: float64 (groups, columns + 1, columns + 1)."""
        return self.total / max(self.positions, 1)


ELEMENTS = 2**25
"""Of a design that are held at once, at least those of one sample."""


def gram_of_inputs(form: Form, inputs: Tensor, positions: Tensor | None = None) -> Gram:
    """The Gram matrix of what goes into a use of a weight.

    Args:
        form: of the use.
        inputs: as the operator is given them.
        positions: int64; only these positions of every sample. None: all of them.
    """
    if positions is None and isinstance(form, Convolution) and is_cheaper(form, inputs, form.positions(inputs)):
        return _by_shifts(form, single(inputs))
    if form.samples(inputs) != len(inputs) or not len(inputs):
        return gram_of(form.design(inputs, positions))
    each = max(1, ELEMENTS // max(1, form.design(inputs[:1], positions).numel()))
    parts = [gram_of(form.design(part, positions)) for part in torch.split(inputs, each)]
    return sum(parts[1:], parts[0])


def _by_shifts(form: Convolution, inputs: Tensor) -> Gram:
    count = len(inputs) * form.positions(inputs)
    sums = form.design(inputs.sum(0, keepdim=True, dtype=torch.float64)).sum((0, 1))
    products = gram_by_shifts(form, inputs)
    last = torch.cat([sums, sums.new_full((1, 1), count)], dim=1)
    total = torch.cat([torch.cat([products, sums.T], dim=1), last]).unsqueeze(0)
    return Gram(total.cpu(), count)


def gram_of(design: Tensor) -> Gram:
    """The Gram matrix of inputs as columns: (samples, positions, groups, columns)."""
    groups, columns = design.shape[2:]
    table = with_constant(design)
    total = table.new_zeros(groups, columns + 1, columns + 1, dtype=torch.float64)
    # Products in the precision of the data, sums of blocks in float64: long sums lose digits, short ones do not.
    for block in torch.split(table, BLOCK, dim=1):
        total += torch.bmm(block.transpose(1, 2), block).double()
    return Gram(total.cpu(), table.shape[1])


def with_constant(design: Tensor) -> Tensor:
    """(samples, positions, groups, columns) -> (groups, samples x positions, columns + 1), 1 in the last column."""
    samples, positions, groups, columns = design.shape
    dtype = torch.promote_types(design.dtype, torch.float32)
    table = design.new_empty(groups, samples, positions, columns + 1, dtype=dtype)
    table[..., :-1] = design.movedim(2, 0)
    table[..., -1] = 1
    return table.flatten(1, 2)


def single(values: Tensor) -> Tensor:
    """Half precision as float32; others as they are."""
    return values.float() if values.dtype in {torch.float16, torch.bfloat16} else values


def some_positions(call: Call, most: int | None, generator: torch.Generator) -> Tensor | None:
    """At most `most` positions of a call, drawn without replacement, ascending; None for all of them."""
    count = call.form.positions(call.inputs)
    if most is None or count <= most:
        return None
    return torch.randperm(count, generator=generator)[:most].sort().values
