"""Damage predicted at every width, in closed form: what a scan may begin with, and is compared with."""

from collections.abc import Iterable, Mapping
from typing import Protocol, runtime_checkable

from torch import Tensor

from secateur.criteria.criterion import Criterion, Function
from secateur.criteria.group_obs import Elimination
from secateur.criteria.statistics import Statistics
from secateur.surgery.plan import Scores, plan_widths
from secateur.types import Group


@runtime_checkable
class WholeCurve(Protocol):
    """A criterion that predicts the damage at every width, not only that of each unit."""

    def curve(self, group: Group, statistics: Statistics) -> Elimination:
        """Units in the order in which they go, and the damage then."""


def predict(
    groups: Iterable[Group], statistics: Statistics, criterion: Criterion | Function, *, scores: Scores | None = None
) -> dict[str, dict[int, float]]:
    """Group name -> width -> predicted damage, in the unit of the criterion.

    A criterion with a curve (`GroupOBS`) gives that, for the order in which it removes units; of any other, the scores
    of the units that go are added up (`KFAC`, `OBD`, `Taylor`: predicted loss, as if units did not interact).

    Args:
        groups: what is predicted for.
        statistics: with what the criterion needs.
        criterion: that predicts.
        scores: by which units go, lowest first; None: the criterion's own.

    Raises:
        ArgumentError, PlanError, NumericalError: as the criterion's.
    """
    return {group.name: _predicted(group, statistics, criterion, scores) for group in groups}


def _predicted(
    group: Group, statistics: Statistics, criterion: Criterion | Function, scores: Scores | None
) -> dict[int, float]:
    widths = [width for width in range(group.minimum, group.width) if width % group.multiple_of == 0]
    if isinstance(criterion, WholeCurve):
        errors = criterion.curve(group, statistics).errors
        return {width: float(errors[group.rows * (group.width - width)]) for width in widths}
    values = criterion(group, statistics)
    own: Mapping[str, Tensor] = {group.name: values} if scores is None else scores
    total = float(values.sum())
    return {
        width: total - float(values[plan_widths([group], own, {group.name: width}).keep[group.name]].sum())
        for width in widths
    }
