"""What one pass over calibration data gathers, and how values of a parameter add up over a unit."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from secateur.types import Group, Slice

WEIGHTS = "weights"
GATE_GRADIENTS = "gate_gradients"
NEEDS = frozenset({WEIGHTS, GATE_GRADIENTS})


@dataclass(frozen=True, eq=False)
class Statistics:
    """Statistics of a model on calibration data.

    Attributes:
        weights: parameter name -> the parameter, detached.
        gate_squares: group name -> float64 (units,): sum over samples of the squared derivative of the
            loss by a gate on the unit. Empty when no criterion asked for gradients.
        samples: number of calibration samples read.
    """

    weights: Mapping[str, Tensor] = field(default_factory=dict)
    gate_squares: Mapping[str, Tensor] = field(default_factory=dict)
    samples: int = 0


def sum_over_unit(s: Slice, values: Tensor) -> Tensor:
    """Sum `values`, shaped like the parameter, over all that each unit of the slice owns: (units,).

    >>> s = Slice("w", 1, torch.tensor([[0], [1]]))
    >>> sum_over_unit(s, torch.tensor([[1.0, 2.0], [3.0, 4.0]])).tolist()
    [4.0, 6.0]
    """
    columns = s.index.to(values.device)
    if s.within is None:
        return values.movedim(s.dim, 0).reshape(values.shape[s.dim], -1).sum(1)[columns].sum(1)
    beside, rows = s.within
    table = values.movedim((beside, s.dim), (0, 1)).reshape(values.shape[beside], values.shape[s.dim], -1).sum(2)
    return table[rows.to(values.device).unsqueeze(2), columns.unsqueeze(1)].sum((1, 2))


def sum_over_group(group: Group, values: Mapping[str, Tensor], *, masked_only: bool = False) -> Tensor:
    """Sum over every trained slice of the group: float64 (units,).

    Args:
        group: its slices are looked up in `values`.
        values: parameter name -> a tensor shaped like the parameter.
        masked_only: only the slices that masking zeroes (as a rule, what consumers read).
    """
    total = torch.zeros(group.size, dtype=torch.float64)
    for s in group.slices:
        if s.parameter in values and s.trained and (s.masked or not masked_only):
            total[s.first : s.first + len(s.index)] += sum_over_unit(s, values[s.parameter].double()).cpu()
    return total
