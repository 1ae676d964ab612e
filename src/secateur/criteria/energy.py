"""Criteria that weigh a weight by what goes into it: OBS for inputs that do not correlate."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from secateur.criteria.activations import moments_of, variance
from secateur.criteria.criterion import scores_of
from secateur.criteria.maps import element_scores, maps_only
from secateur.criteria.parts import Measured, element_parts, slices_of
from secateur.criteria.statistics import INPUT_MOMENTS, Consumer, Moments, Statistics
from secateur.types import Group


class _OfWeights(Protocol):
    def weights(self, parameter: str, statistics: Statistics) -> Tensor: ...


def summed_over_maps(criterion: _OfWeights, group: Group, statistics: Statistics) -> Measured:
    """Sums over the weights by which consumers read a unit."""
    slices = maps_only(slices_of(group, masked_only=True), statistics)
    return Measured(element_parts(slices, statistics, criterion.weights))


def energy(matrix: Tensor, squares: Tensor) -> Tensor:
    """Squared weights times a number for each column.

    Args:
        matrix: (groups, rows, columns).
        squares: of the inputs, on average, or their variances: (groups, columns).

    >>> energy(torch.tensor([[[3.0, -1.0]]]), torch.tensor([[1.0, 4.0]])).tolist()
    [[[9.0, 4.0]]]
    """
    return matrix.square() * squares.unsqueeze(1)


def relative_importance(matrix: Tensor, squares: Tensor, power: float) -> Tensor:
    """Weights as shares of their row and of their column, times a power of the root mean square of the input.

    Args:
        matrix: (groups, rows, columns).
        squares: of the inputs, on average: (groups, columns).
        power: of their root.

    >>> relative_importance(torch.tensor([[[3.0, -1.0]]]), torch.tensor([[1.0, 16.0]]), 0.5).tolist()
    [[[1.75, 2.5]]]
    """
    size = matrix.abs()
    # A row or column of zeros has no shares to give.
    tiny = torch.finfo(size.dtype).tiny
    shares = size / size.sum(2, keepdim=True).clamp(min=tiny) + size / size.sum(1, keepdim=True).clamp(min=tiny)
    return shares * (squares.sqrt() ** power).unsqueeze(1)


def _weighed(who: object, name: str, statistics: Statistics, by: Callable[[Moments], Tensor]) -> Tensor:
    def scores(consumer: Consumer, matrix: Tensor) -> Tensor:
        return energy(matrix, by(moments_of(consumer, who)))

    return element_scores(name, statistics, scores, who)


def _mean_square(moments: Moments) -> Tensor:
    return moments.squares / max(moments.positions, 1)


@dataclass(frozen=True)
class Wanda:
    """Absolute weight times the root mean square of its input.

    The paper compares the weights of one row. Its square is OBS's score where inputs do not correlate.

    Source: Sun et al. 2024, arXiv:2306.11695.
    """

    @property
    def needs(self) -> frozenset[str]:
        """Moments of inputs."""
        return frozenset({INPUT_MOMENTS})

    def weights(self, parameter: str, statistics: Statistics) -> Tensor:
        """Scores >= 0, in the parameter's shape."""
        return _weighed(self, parameter, statistics, _mean_square).sqrt()

    def measured(self, group: Group, statistics: Statistics) -> Measured:
        """Of each consumer's slice the sum."""
        return summed_over_maps(self, group, statistics)

    def __call__(self, group: Group, statistics: Statistics) -> Tensor:
        """Scores >= 0, float64 (units,)."""
        return scores_of(self, group, statistics)


@dataclass(frozen=True)
class WandaGroup:
    """Mean square of what a unit adds to its consumers' outputs, as if its inputs did not correlate.

    For each column that reads the unit: mean square of the input times squared norm of the column.

    Source: Wanda (arXiv:2306.11695) for structures, as in An et al. 2024, arXiv:2312.11983 ("Wanda-sp").
    """

    @property
    def needs(self) -> frozenset[str]:
        """Moments of inputs."""
        return frozenset({INPUT_MOMENTS})

    def weights(self, parameter: str, statistics: Statistics) -> Tensor:
        """Scores >= 0, in the parameter's shape: the squares of Wanda's."""
        return _weighed(self, parameter, statistics, _mean_square)

    def measured(self, group: Group, statistics: Statistics) -> Measured:
        """Of each consumer's slice the sum."""
        return summed_over_maps(self, group, statistics)

    def __call__(self, group: Group, statistics: Statistics) -> Tensor:
        """Scores >= 0, float64 (units,)."""
        return scores_of(self, group, statistics)


@dataclass(frozen=True)
class ActivationVariance:
    """Variance of a unit's activation times the squared norm of the columns that read it.

    It is the error that is left when a bias takes the unit's mean up: a constant unit scores 0. The
    paper compares layers by standardised scores (`score(..., normalisation="standardised")`).

    Source: An et al. 2024, arXiv:2312.11983 (FLAP).
    """

    @property
    def needs(self) -> frozenset[str]:
        """Moments of inputs."""
        return frozenset({INPUT_MOMENTS})

    def weights(self, parameter: str, statistics: Statistics) -> Tensor:
        """Scores >= 0, in the parameter's shape."""
        return _weighed(self, parameter, statistics, variance)

    def measured(self, group: Group, statistics: Statistics) -> Measured:
        """Of each consumer's slice the sum."""
        return summed_over_maps(self, group, statistics)

    def __call__(self, group: Group, statistics: Statistics) -> Tensor:
        """Scores >= 0, float64 (units,)."""
        return scores_of(self, group, statistics)


@dataclass(frozen=True)
class RIA:
    """Weight relative to the sums of its row and of its column, times a power of its input's size.

    Source: Zhang et al. 2024, "Plug-and-Play: An Efficient Post-training Pruning Method for Large
    Language Models" (ICLR).

    Args:
        power: of the root mean square of the input.
    """

    power: float = 0.5

    @property
    def needs(self) -> frozenset[str]:
        """Moments of inputs."""
        return frozenset({INPUT_MOMENTS})

    def weights(self, parameter: str, statistics: Statistics) -> Tensor:
        """Scores >= 0, in the parameter's shape."""

        def scores(consumer: Consumer, matrix: Tensor) -> Tensor:
            return relative_importance(matrix, _mean_square(moments_of(consumer, self)), self.power)

        return element_scores(parameter, statistics, scores, self)

    def measured(self, group: Group, statistics: Statistics) -> Measured:
        """Of each consumer's slice the sum."""
        return summed_over_maps(self, group, statistics)

    def __call__(self, group: Group, statistics: Statistics) -> Tensor:
        """Scores >= 0, float64 (units,)."""
        return scores_of(self, group, statistics)
