"""What one pass over calibration data gathers, and how values of a parameter add up over a unit."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from secateur.capture.calls import Place, column_units
from secateur.capture.forms import Form
from secateur.capture.gram import Gram
from secateur.types import Group, Note, Slice

WEIGHTS = "weights"
GATE_GRADIENTS = "gate_gradients"
WEIGHT_GRADIENTS = "weight_gradients"
INPUT_MOMENTS = "input_moments"
GRAMS = "grams"
OUTPUT_GRADIENTS = "output_gradients"
HESSIAN_DIAGONAL = "hessian_diagonal"
NEEDS = frozenset({WEIGHTS, GATE_GRADIENTS, WEIGHT_GRADIENTS, INPUT_MOMENTS, GRAMS, OUTPUT_GRADIENTS, HESSIAN_DIAGONAL})


@dataclass(frozen=True, eq=False)
class Derivatives:
    """Sums over samples of a derivative of the loss, taken for each sample by itself.

    Attributes:
        total: sum of the derivatives.
        absolute: sum of their absolute values.
        squares: sum of their squares.
    """

    total: Tensor
    absolute: Tensor
    squares: Tensor

    def __add__(self, other: "Derivatives") -> "Derivatives":
        return Derivatives(self.total + other.total, self.absolute + other.absolute, self.squares + other.squares)


@dataclass(frozen=True, eq=False)
class Moments:
    """Sums over all positions of all samples, for each column of a consumer: float64 (groups, columns).

    Attributes:
        positions: how many.
        total: sum of the inputs.
        absolute: sum of their absolute values.
        squares: sum of their squares.
        zeros: how many were exactly zero.
    """

    positions: int
    total: Tensor
    absolute: Tensor
    squares: Tensor
    zeros: Tensor

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(
            self.positions + other.positions,
            self.total + other.total,
            self.absolute + other.absolute,
            self.squares + other.squares,
            self.zeros + other.zeros,
        )


@dataclass(frozen=True, eq=False)
class Consumer:
    """A weight (or some rows of one) that is used as a linear map, and what went in and out.

    Attributes:
        place: which rows of which parameter.
        bias: where its bias lies; None without one.
        form: how it looks as a matrix.
        calls: how often it is used in one forward pass.
        moments: of the inputs; None where nobody asked.
        gram: second moments of the inputs with a constant; None where nobody asked.
        output_gradients: float64 (groups, rows, rows): sum over samples and positions of products of the
            loss's derivatives by the outputs; None where nobody asked.
    """

    place: Place
    bias: Place | None
    form: Form
    calls: int
    moments: Moments | None = None
    gram: Gram | None = None
    output_gradients: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Statistics:
    """Statistics of a model on calibration data. What no criterion asked for is empty.

    Attributes:
        weights: parameter name -> the parameter, detached.
        samples: number of calibration samples read.
        gates: group name -> (units,): derivatives by a gate on what consumers see of the unit; float64, on the
            CPU.
        gradients: parameter name -> derivatives by each of its elements; float64, on the parameter's device.
        consumers: every weight that is used as a linear map, in the order of first use.
        hessian_diagonal: parameter name -> second derivatives of the mean loss by each of its elements;
            float64, on the parameter's device.
        notes: what was left out, and why.
    """

    weights: Mapping[str, Tensor] = field(default_factory=dict)
    samples: int = 0
    gates: Mapping[str, Derivatives] = field(default_factory=dict)
    gradients: Mapping[str, Derivatives] = field(default_factory=dict)
    consumers: tuple[Consumer, ...] = ()
    hessian_diagonal: Mapping[str, Tensor] = field(default_factory=dict)
    notes: tuple[Note, ...] = ()


def consumers_of(group: Group, statistics: Statistics) -> list[tuple[Consumer, Tensor]]:
    """The weights that read the units of a group, each with the unit of each of its columns: int64 (groups, columns).

    Columns of no unit are marked -1 (`capture.calls.NONE`).
    """
    found = []
    for s in group.slices:
        if not s.masked or not s.trained:
            continue
        for consumer in statistics.consumers:
            if consumer.place.name == s.parameter:
                shape = tuple(statistics.weights[s.parameter].shape)
                units = column_units(consumer.form, consumer.place, s, shape)
                if units is not None and bool((units >= 0).any()):
                    found.append((consumer, units))
    return found


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
