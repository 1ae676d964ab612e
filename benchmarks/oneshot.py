"""One dense model, one calibration set, the scores of many criteria on it, and repairs of what is cut."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from recalibration import recalibrate
from torch import Tensor, nn

import secateur as sc

Labelled = tuple[Tensor, Tensor]

# Name in the tables -> the criterion, given the seed of the calibration set. Output gradients are those of labels
# that the model itself draws: Taylor alone reads true labels.
CRITERIA: dict[str, Callable[[int], sc.Criterion]] = {
    "random": sc.Random,
    "L1": lambda _: sc.Magnitude(1),
    "L2": lambda _: sc.Magnitude(2),
    "Taylor (labels)": lambda _: sc.Taylor(),
    "FLAP": lambda _: sc.ActivationVariance(),
    "group OBS": lambda _: sc.GroupOBS(),
    "group OBS, by gradients": lambda _: sc.GroupOBS(weighting="gradients"),
}


class Setting:
    """A traced model and what criteria say of those of its groups that are wanted; repairs read inputs only."""

    def __init__(
        self,
        model: nn.Module,
        calibration: Sequence[Labelled],
        criteria: Sequence[str],
        is_wanted: Callable[[sc.Group], bool],
        seed: int,
    ) -> None:
        self.model, self.calibration = model, calibration
        self.program = sc.trace(model, (calibration[0][0][:2],))
        self.all_groups = sc.find_groups(self.program)
        self.groups = [group for group in self.all_groups if is_wanted(group)]
        self.criteria = {name: CRITERIA[name](seed) for name in criteria}
        needs = frozenset[str]().union(*(criterion.needs for criterion in self.criteria.values()))
        self.statistics: Any = sc.collect(model, self.groups, calibration, needs=needs, labels="sampled", seed=seed)

    def plan(self, criterion: str, sparsity: float | Mapping[str, float]) -> sc.Plan:
        """The units that the criterion scores lowest go."""
        scores = sc.score(self.groups, self.statistics, self.criteria[criterion])
        return sc.plan(self.groups, scores, sparsity=sparsity)

    def cut(self, plan: sc.Plan) -> nn.Module:
        """A smaller copy, verified."""
        return sc.cut(self.model, plan, program=self.program)


def no_repair(_: Setting, __: sc.Plan, small: nn.Module) -> nn.Module:
    """As cut."""
    return small


def batch_norm(setting: Setting, _: sc.Plan, small: nn.Module) -> nn.Module:
    """Batch-norm recalibration alone, in the way that every tool gets it."""
    return recalibrate(small, [x for x, _ in setting.calibration])


def whole_repair(setting: Setting, plan: sc.Plan, small: nn.Module) -> nn.Module:
    """The library's repair as it is by default: least squares and batch norm, without labels."""
    sc.repair(small, setting.model, plan, [(x, None) for x, _ in setting.calibration], program=setting.program)
    return small


REPAIRS = {"none": no_repair, "BN": batch_norm, "LS+BN": whole_repair}
