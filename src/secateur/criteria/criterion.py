"""The extension point: a criterion turns statistics into one score a unit."""

from collections.abc import Iterable, Mapping
from typing import Protocol, runtime_checkable

from torch import Tensor

from secateur.criteria.statistics import Statistics
from secateur.errors import NumericalError, PlanError
from secateur.types import Group


@runtime_checkable
class Criterion(Protocol):
    """A rule that scores the units of a group; higher = keep.

    Attributes:
        needs: names of the statistics that it reads (see `criteria.statistics`).
    """

    @property
    def needs(self) -> frozenset[str]:
        """Names of the statistics that the criterion reads."""

    def __call__(self, group: Group, statistics: Statistics) -> Tensor:
        """Scores, float64 (units,)."""


def score(groups: Iterable[Group], statistics: Statistics, criterion: Criterion) -> Mapping[str, Tensor]:
    """Score every unit of every group.

    Returns:
        Group name -> float64 (units,), higher = keep.

    Raises:
        PlanError: the criterion gives another number of scores.
        NumericalError: a score is NaN.
    """
    scores = {}
    for group in groups:
        values = criterion(group, statistics)
        if values.shape != (group.size,):
            raise PlanError(
                f"{criterion!r} gave scores of shape {tuple(values.shape)} for group {group.name!r}; "
                f"needed ({group.size},)"
            )
        if bool(values.isnan().any()):
            raise NumericalError(f"{criterion!r} gave NaN for group {group.name!r}; check the calibration data")
        scores[group.name] = values
    return scores
