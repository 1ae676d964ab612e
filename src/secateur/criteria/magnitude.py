"""Criteria that read nothing but the weights."""

from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.criteria.criterion import scores_of
from secateur.criteria.parts import Measured, Part, element_parts, elements_of, slices_of
from secateur.criteria.statistics import WEIGHTS, Statistics
from secateur.errors import ArgumentError
from secateur.types import Group


@dataclass(frozen=True)
class Magnitude:
    """p-norm of all weights of a unit, over everything that is tied to it.

    Source: Li et al. 2017, arXiv:1608.08710 (p = 1, the producer's filter); summed over coupled
    layers as in Fang et al. 2023, arXiv:2301.12900; Han et al. 2015, arXiv:1506.02626 (single weights).

    Args:
        p: 1 for the sum of absolute values, 2 for the Euclidean norm; any p > 0.
    """

    p: float = 1.0

    def __post_init__(self) -> None:
        if not self.p > 0:
            raise ArgumentError(f"Magnitude(p={self.p}): p must be positive")

    @property
    def needs(self) -> frozenset[str]:
        """Weights."""
        return frozenset({WEIGHTS})

    def weights(self, parameter: str, statistics: Statistics) -> Tensor:
        """Absolute values."""
        return statistics.weights[parameter].double().cpu().abs()

    def measured(self, group: Group, statistics: Statistics) -> Measured:
        """Of each slice the p-norm; the p-norm of those is that of all weights."""
        slices = slices_of(group)
        powers = element_parts(slices, statistics, lambda name, found: self.weights(name, found) ** self.p)
        return Measured(tuple(Part(part.first, part.values ** (1 / self.p)) for part in powers), self.p)

    def __call__(self, group: Group, statistics: Statistics) -> Tensor:
        """Scores >= 0, float64 (units,)."""
        return scores_of(self, group, statistics)


def lamp_shares(weight: Tensor) -> Tensor:
    """Squares as shares of all squares that are not smaller; 0 where the weight is.

    >>> lamp_shares(torch.tensor([1.0, 3.0]).sqrt()).round(decimals=6).tolist()
    [0.25, 1.0]
    """
    squares = weight.square()
    ascending = squares.flatten().sort().values
    not_smaller = ascending.flip(0).cumsum(0).flip(0)
    # The first of equal weights: they all count one another.
    first = torch.searchsorted(ascending, squares.flatten())
    shares = squares.flatten() / not_smaller[first]
    return torch.where(squares > 0, shares.reshape(squares.shape), 0.0)


@dataclass(frozen=True)
class LAMP:
    """Squared weight as a share of all squares in its layer that are not smaller, summed over a unit.

    The share is comparable between layers: the largest weight of each has 1. Equal weights have equal
    shares. Only weights of two dimensions and more count, as in the paper.

    Source: Lee et al. 2021, arXiv:2010.07611.

    >>> LAMP().weights("w", Statistics({"w": torch.tensor([[3.0, 1.0], [-2.0, 1.0]])})).tolist()
    [[1.0, 0.06666666666666667], [0.3076923076923077, 0.06666666666666667]]
    """

    @property
    def needs(self) -> frozenset[str]:
        """Weights."""
        return frozenset({WEIGHTS})

    def weights(self, parameter: str, statistics: Statistics) -> Tensor:
        """Shares in (0, 1]; 0 where the weight is."""
        return lamp_shares(statistics.weights[parameter].double().cpu())

    def measured(self, group: Group, statistics: Statistics) -> Measured:
        """Of each slice the sum."""
        slices = [s for s in slices_of(group) if statistics.weights[s.parameter].ndim >= 2]
        return Measured(element_parts(slices, statistics, self.weights))

    def __call__(self, group: Group, statistics: Statistics) -> Tensor:
        """Scores >= 0, float64 (units,)."""
        return scores_of(self, group, statistics)


@dataclass(frozen=True)
class BatchNormScale:
    """Absolute gain of a unit's batch norms.

    It says something only where training has held gains down by an L1 penalty, as in the paper.

    Source: Liu et al. 2017, arXiv:1708.06519 (network slimming).
    """

    @property
    def needs(self) -> frozenset[str]:
        """Weights."""
        return frozenset({WEIGHTS})

    def measured(self, group: Group, statistics: Statistics) -> Measured:
        """Of each batch norm on the group's units the gain."""
        owners = {s.parameter.removesuffix("running_var") for s in group.slices if s.parameter.endswith("running_var")}
        gains = [s for s in slices_of(group) if s.parameter in {f"{owner}weight" for owner in owners}]
        return Measured(element_parts(gains, statistics, lambda name, found: found.weights[name].abs()))

    def __call__(self, group: Group, statistics: Statistics) -> Tensor:
        """Scores >= 0, float64 (units,)."""
        return scores_of(self, group, statistics)


@dataclass(frozen=True)
class GeometricMedian:
    """Sum of the distances of a unit's filter to the filters of all other units: low = others can stand in.

    A unit's filter is what makes it: its rows in the weights that do not read it. It measures
    redundancy, not size: a filter of zeros may score high.

    Source: He et al. 2019, arXiv:1811.00250 (FPGM).
    """

    @property
    def needs(self) -> frozenset[str]:
        """Weights."""
        return frozenset({WEIGHTS})

    def measured(self, group: Group, statistics: Statistics) -> Measured:
        """Of each slice that makes the units."""
        parts = []
        for s in slices_of(group):
            weight = statistics.weights[s.parameter]
            if not s.masked and weight.ndim >= 2:
                filters = elements_of(s, weight.double().cpu())
                # By differences: the quick formula by products loses the digits of small distances.
                distances = torch.cdist(filters, filters, compute_mode="donot_use_mm_for_euclid_dist")
                parts.append(Part(s.first, distances.sum(1)))
        return Measured(tuple(parts))

    def __call__(self, group: Group, statistics: Statistics) -> Tensor:
        """Scores >= 0, float64 (units,)."""
        return scores_of(self, group, statistics)
