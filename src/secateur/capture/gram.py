"""Second moments of the inputs of a call: all that least squares and OBS need to know of the data."""

from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.capture.calls import Call


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


BLOCK = 16384
"""Positions in one product."""


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
    flat = design.flatten(0, 1).transpose(0, 1)
    flat = flat.float() if flat.dtype in {torch.float16, torch.bfloat16} else flat
    return torch.cat([flat, flat.new_ones(*flat.shape[:2], 1)], dim=2)


def some_positions(call: Call, most: int | None, generator: torch.Generator) -> Tensor | None:
    """At most `most` positions of a call, drawn without replacement, ascending; None for all of them."""
    count = call.form.positions(call.inputs)
    if most is None or count <= most:
        return None
    return torch.randperm(count, generator=generator)[:most].sort().values
