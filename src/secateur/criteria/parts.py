"""What each tied slice says of its units, and how that becomes one score a unit."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from secateur.criteria.statistics import Statistics, sum_over_unit
from secateur.errors import ArgumentError
from secateur.types import Group, Slice

Combination = Literal["sum", "mean", "max", "norm"] | float
"""Of the parts of one unit: "norm" is the Euclidean norm, a number p the p-norm."""


@dataclass(frozen=True, eq=False)
class Part:
    """Scores of some consecutive units of a group.

    Attributes:
        first: the unit that `values[0]` is about.
        values: float64 (units,), on the CPU.
        covered: bool (units,): which of them it is about; None: all.
    """

    first: int
    values: Tensor
    covered: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Measured:
    """What a criterion found out about a group.

    Attributes:
        parts: of each tied slice, or one for units that are measured whole.
        combination: how they make one score where nobody says otherwise.
        notes: what was unusual.
    """

    parts: tuple[Part, ...]
    combination: Combination = "sum"
    notes: tuple[str, ...] = ()


def combine(parts: Sequence[Part], size: int, how: Combination) -> Tensor:
    """One score for each of `size` units: float64 (units,); NaN for a unit of no part.

    >>> parts = [Part(0, torch.tensor([3.0, 1.0])), Part(1, torch.tensor([4.0]))]
    >>> combine(parts, 2, "sum").tolist(), combine(parts, 2, "mean").tolist(), combine(parts, 2, "max").tolist()
    ([3.0, 5.0], [3.0, 2.5], [3.0, 4.0])
    """
    values = torch.zeros(max(len(parts), 1), size, dtype=torch.float64)
    here = torch.zeros(values.shape, dtype=torch.bool)
    for number, part in enumerate(parts):
        units = slice(part.first, part.first + len(part.values))
        here[number, units] = True if part.covered is None else part.covered
        values[number, units] = part.values if part.covered is None else part.values * part.covered
    if how == "max":
        found = torch.where(here, values, -torch.inf).amax(0)
    elif how in {"sum", "mean"}:
        found = values.sum(0)
        found = found / here.sum(0).clamp(min=1) if how == "mean" else found
    else:
        found = torch.linalg.vector_norm(values, 2.0 if how == "norm" else float(how), dim=0)
    return torch.where(here.any(0), found, torch.nan)


def check_combination(how: Combination) -> None:
    """Refuse what is no combination."""
    is_number = isinstance(how, int | float) and how > 0
    if how not in {"sum", "mean", "max", "norm"} and not is_number:
        raise ArgumentError(f"combination is {how!r}; needed 'sum', 'mean', 'max', 'norm' or a positive number p")


def slices_of(group: Group, *, masked_only: bool = False) -> list[Slice]:
    """The slices of parameters; only those that masking zeroes, where it zeroes any."""
    trained = [s for s in group.slices if s.trained]
    masked = [s for s in trained if s.masked]
    return masked if masked_only and masked else trained


def element_parts(
    slices: Sequence[Slice], statistics: Statistics, weights: Callable[[str, Statistics], Tensor]
) -> tuple[Part, ...]:
    """For each slice, the sum over the elements that a unit owns.

    Args:
        slices: of one group.
        statistics: handed on.
        weights: name of a parameter -> scores of its elements.
    """
    scores = {name: weights(name, statistics).double().cpu() for name in dict.fromkeys(s.parameter for s in slices)}
    return tuple(Part(s.first, sum_over_unit(s, scores[s.parameter])) for s in slices)


def elements_of(s: Slice, values: Tensor) -> Tensor:
    """What each unit of a slice owns of `values`, shaped like the parameter: (units, elements).

    >>> elements_of(Slice("w", 1, torch.tensor([[0], [1]])), torch.tensor([[1.0, 2.0], [3.0, 4.0]])).tolist()
    [[1.0, 3.0], [2.0, 4.0]]
    """
    columns = s.index.to(values.device)
    if s.within is None:
        return values.movedim(s.dim, 0)[columns].reshape(len(columns), -1)
    beside, rows = s.within
    table = values.movedim((beside, s.dim), (0, 1))
    return table[rows.to(values.device).unsqueeze(2), columns.unsqueeze(1)].reshape(len(columns), -1)
