"""What a run is about: the model, the data, what is measured, and what never changes meanwhile."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from secateur.allocation.limits import Limit
from secateur.criteria.criterion import Criterion
from secateur.data import Batches
from secateur.graph.copies import copy_of
from secateur.graph.costs import CostModel
from secateur.measures.metrics import Metric
from secateur.pipeline.aims import Aim
from secateur.pipeline.latency import Clocked
from secateur.pipeline.scope import Scope
from secateur.progress import Progress
from secateur.sensitivity.executor import Executor
from secateur.sensitivity.measure import PointStore
from secateur.sensitivity.racing import Racing
from secateur.training.loop import Retraining
from secateur.types import Budget, Evaluation, Floats, Group


@dataclass(frozen=True, eq=False)
class Task:
    """The parts of a run that all its stages share.

    Attributes:
        model: the dense model; never changed.
        args: example inputs.
        kwargs: example inputs by keyword.
        train: batches to retrain on; None if nothing is retrained.
        calibration: batches for scores and repair.
        validation: batches that choose.
        metric: what the tolerance is about.
        loss: as the user gave it.
        baseline: the dense model on the validation data: the fixed point of every comparison.
        dense: what the dense model costs.
        budget: which costs are bounded, by fractions; None under a tolerance, where the multiply-adds go down.
        scope: what the caller lets go.
        clocked: predicts and measures latency; None where none is bounded.
        cuttable: the groups of the dense model that survived a trial cut, by name.
        criterion: scores the units.
        objective: what allocations aim at.
        local_search: measurements of a local search from each allocation; 0 = none.
        sparsities: levels of the scan.
        racing: when a point of the scan has samples enough; None: when it has all.
        executor: where points are measured.
        repair: whether to repair after a cut.
        retrain: how to retrain; None = not at all.
        seed: of everything random.
        run_dir: where results are kept; None = nowhere.
        store: measured points; None = kept nowhere.
        progress: shown while running.
    """

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    train: Batches | None
    calibration: Batches
    validation: Batches
    metric: Metric
    loss: Any
    baseline: Evaluation
    dense: CostModel
    budget: Budget | None
    scope: Scope
    clocked: Clocked | None
    cuttable: Mapping[str, Group]
    criterion: Criterion
    objective: Aim
    local_search: int
    sparsities: Sequence[float]
    racing: Racing | None
    executor: Executor
    repair: bool
    retrain: Retraining | None
    seed: int
    run_dir: Path | None
    store: PointStore | None
    progress: Progress

    @property
    def bounds(self) -> Mapping[str, float]:
        """Name of a cost -> the fraction of the dense model's that is asked for in the end."""
        return (self.budget or Budget(macs=1.0)).fractions()

    def limits(self, cost: CostModel, target: float) -> tuple[Limit, ...]:
        """What the costs must not exceed when the smallest bound is `target` and the others are in proportion."""
        factor = target / min(self.bounds.values())
        return tuple(
            Limit(name, cost.prices[name], self.dense.prices[name]({}) * min(bound * factor, 1.0))
            for name, bound in self.bounds.items()
        )

    def share(self, cost: CostModel, widths: Mapping[str, int]) -> float:
        """What is left of the dense cost at `widths`: a fraction that a budget is compared with.

        With several bounds it is the worst of them, scaled so that all hold when it is at most the smallest.
        """
        least = min(self.bounds.values())
        return max(
            cost.prices[name](widths) / (self.dense.prices[name]({}) or 1) * least / bound
            for name, bound in self.bounds.items()
        )

    def factory(self) -> nn.Module:
        """A fresh module of the dense architecture."""
        return copy_of(self.model)


@dataclass(frozen=True)
class Damage:
    """Mean paired damage on the validation data.

    Attributes:
        mean: positive = worse.
        standard_error: of the mean.
    """

    mean: float
    standard_error: float

    def is_within(self, tolerance: float, standard_errors: float = 1.0) -> bool:
        """Whether the mean plus so many standard errors is at most `tolerance`; NaN is not."""
        return self.mean + standard_errors * self.standard_error <= tolerance


def summarise(damage: Floats) -> Damage:
    """Mean and standard error of per-sample damages."""
    samples = len(damage)
    spread = float(damage.std(ddof=1)) if samples > 1 else float("inf")
    # With no sample changed the spread is 0 by luck: one in `samples` may still change.
    return Damage(float(damage.mean()), max(spread / samples**0.5, 1 / samples if spread == 0 else 0.0))
