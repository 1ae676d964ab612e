"""Criteria that read how active a unit is, as its consumers see it."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from secateur.criteria.criterion import scores_of
from secateur.criteria.maps import lines_of_units, per_unit, readers
from secateur.criteria.parts import Measured, Part
from secateur.criteria.statistics import INPUT_MOMENTS, Consumer, Moments, Statistics
from secateur.errors import ArgumentError
from secateur.types import Group


def moments_of(consumer: Consumer, who: object) -> Moments:
    """The moments of a consumer's inputs.

    Raises:
        ArgumentError: they were not collected.
    """
    if consumer.moments is None:
        raise ArgumentError(
            f"{who!r} needs moments of the inputs of {consumer.place.name!r}, which were not collected; pass "
            f"needs={who!r}.needs to collect"
        )
    return consumer.moments


def variance(moments: Moments) -> Tensor:
    """Of each column, float64 (groups, columns)."""
    count = max(moments.positions, 1)
    return (moments.squares / count - (moments.total / count).square()).clamp(min=0)


def _column_means(
    who: object, group: Group, statistics: Statistics, values: Callable[[Moments], Tensor]
) -> tuple[Part, ...]:
    """Of each consumer, the mean over the columns that read a unit."""
    parts = []
    for lines in readers(group, statistics):
        total = per_unit(lines, values(moments_of(lines.consumer, who)), group.size)
        counts = lines_of_units(lines, group.size).clamp(min=1)
        parts.append(Part(0, total.values / counts, total.covered))
    return tuple(parts)


@dataclass(frozen=True)
class MeanActivation:
    """Mean absolute activation of a unit, over samples and positions, as its consumers see it.

    Zeros with which a convolution pads its inputs count as activations, for all channels alike.

    Source: Molchanov et al. 2017, arXiv:1611.06440, section 2.2.

    Args:
        signed: the mean itself, negative where the unit is.
    """

    signed: bool = False

    @property
    def needs(self) -> frozenset[str]:
        """Moments of inputs."""
        return frozenset({INPUT_MOMENTS})

    def measured(self, group: Group, statistics: Statistics) -> Measured:
        """Of each consumer; the mean of those."""

        def values(moments: Moments) -> Tensor:
            return (moments.total if self.signed else moments.absolute) / max(moments.positions, 1)

        return Measured(_column_means(self, group, statistics, values), "mean")

    def __call__(self, group: Group, statistics: Statistics) -> Tensor:
        """Scores, float64 (units,)."""
        return scores_of(self, group, statistics)


@dataclass(frozen=True)
class ActiveShare:
    """Share of samples and positions at which a unit is not zero: one less the average percentage of zeros (APoZ).

    It says something only of units that are often exactly zero, as behind ReLU.

    Source: Hu et al. 2016, arXiv:1607.03250.
    """

    @property
    def needs(self) -> frozenset[str]:
        """Moments of inputs."""
        return frozenset({INPUT_MOMENTS})

    def measured(self, group: Group, statistics: Statistics) -> Measured:
        """Of each consumer; the mean of those."""
        parts = _column_means(self, group, statistics, lambda found: 1 - found.zeros / max(found.positions, 1))
        return Measured(parts, "mean")

    def __call__(self, group: Group, statistics: Statistics) -> Tensor:
        """Scores in [0, 1], float64 (units,)."""
        return scores_of(self, group, statistics)


@dataclass(frozen=True)
class ActivationNorm:
    """Root mean square of a unit's activation.

    Source: Muralidharan et al. 2024, arXiv:2408.11796 (Minitron), with the mean over positions.
    """

    @property
    def needs(self) -> frozenset[str]:
        """Moments of inputs."""
        return frozenset({INPUT_MOMENTS})

    def measured(self, group: Group, statistics: Statistics) -> Measured:
        """Of each consumer; the mean of those."""
        squares = _column_means(self, group, statistics, lambda found: found.squares / max(found.positions, 1))
        return Measured(tuple(Part(part.first, part.values.sqrt(), part.covered) for part in squares), "mean")

    def __call__(self, group: Group, statistics: Statistics) -> Tensor:
        """Scores >= 0, float64 (units,)."""
        return scores_of(self, group, statistics)
