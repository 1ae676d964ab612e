"""The stages of a run, one after the other: from a task to a result."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from secateur.allocation.certificate import Certificate
from secateur.data import Batches
from secateur.errors import DataError
from secateur.pipeline.certify import certify
from secateur.pipeline.choosing import Rivals, control_criterion, found_way, measured_front
from secateur.pipeline.reporting import tell
from secateur.pipeline.result import Result
from secateur.pipeline.rounds import measured_damage
from secateur.pipeline.search import Search, descend, descend_guarded, least_share, reachable_grid, threshold
from secateur.pipeline.story import Story
from secateur.pipeline.task import Task
from secateur.pipeline.widths import ByCurves, uniformly
from secateur.progress import Progress
from secateur.storage.data_uses import Level, mark, reserve
from secateur.surgery.plan import Plan
from secateur.training.schedules import Schedule
from secateur.types import Budget, Note


@dataclass(frozen=True, eq=False)
class Exam:
    """How the result is certified.

    Attributes:
        data: test data; None = not at all.
        confidence: of the certificate.
        spend: level of these data that it takes; see `certify`.
    """

    data: Batches | None
    confidence: float
    spend: Level

    def check_fresh(self, others: Sequence[Batches], run_dir: Path | None) -> None:
        """Refuse test data that hold samples of others, by which the run chooses; remember these.

        Raises:
            DataError: such test data.
        """
        own = None if self.data is None else mark(self.data)
        for other in others:
            seen = mark(other)
            if own is not None and own.shares(seen):
                raise DataError(
                    f"the test data and the {other.name} data have samples in common, so that a certificate would be "
                    "of data that were chosen by: pass test data that nothing else reads, or test=None"
                )
            if run_dir is not None:
                claim, about = f"{other.name} {seen.digest}", f"choices of this run, as its {other.name} data"
                reserve(run_dir, seen, claim=claim, about=about)

    def certificate(self, task: Task, small: nn.Module, tolerance: float | None) -> Certificate | None:
        """What the pruned model loses on the test data."""
        if self.data is None:
            return None
        found = certify(
            task.model, small, self.data, metric=task.metric, tolerance=tolerance, confidence=self.confidence,
            run_dir=task.run_dir, spend=self.spend,
        )  # fmt: skip
        return found.parts[0]


class Clock:
    """Remembers how long each stage took."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.timings: dict[str, float] = {}

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.timings[name] = time.perf_counter() - start


def run_task(
    task: Task,
    clock: Clock,
    left: tuple[Note, ...],
    unfit: tuple[str, ...],
    tolerance: float | None,
    budget: Budget | None,
    exam: Exam,
    *,
    rivals: Rivals,
    front: bool,
    schedule: Schedule,
) -> Result:
    """From a task to its result: scan, thresholds, rounds, controls, certificate, report.

    Args:
        task: what the run is about.
        clock: times the stages.
        left: groups that a trial cut left alone, and why.
        unfit: modules that only training mode reaches and that would not fit.
        tolerance: damage allowed; None under a budget.
        budget: as the user gave it; None under a tolerance.
        exam: how the result is certified.
        rivals: what there is to choose among.
        front: measure the damage at all budgets of a grid.
        schedule: how fast the rounds go down.
    """
    final = _least_bound(task.budget)
    with clock.stage("scan"):
        way = found_way(task, rivals, tolerance=tolerance, final=final)
    task, scene, curves = way.task, way.scene, way.curves
    with clock.stage("cross-validation"):
        grid = sorted({*reachable_grid(scene, curves), *([final] if final else [])}, reverse=True)
        picture, choice = threshold(
            task, scene, curves, budgets=grid, k=rivals.folds, repeats=rivals.repeats, tolerance=tolerance,
            standard_errors=rivals.standard_errors,
        )  # fmt: skip
    with clock.stage("front"):
        points = measured_front(task, scene, curves, [b for b in grid if b < 1]) if front else None
    with clock.stage("rounds"):
        if final is not None:
            targets = _targets(schedule, final) if task.retrain is not None else [final]
            search = descend(task, targets, allocator=ByCurves(task), first=scene, name="rounds")
        else:
            assert tolerance is not None
            assert choice is not None
            start = [choice.budget] if choice.index is not None and choice.budget < 1 else []
            later = [t for t in _targets(schedule, least_share(scene, curves)) if not start or t < start[0]]
            targets = start + later if task.retrain is not None else start
            search = descend_guarded(
                task, targets, tolerance=tolerance, first=scene, curves=curves, standard_errors=rivals.standard_errors
            )
    best = search.best
    with clock.stage("controls"):
        naive = {name: _control(task, name, search) for name in rivals.controls} if best is not None else {}
    with clock.stage("certificate"):
        small = best.model if best is not None else task.factory().eval()
        certificate = exam.certificate(task, small, tolerance)
    with clock.stage("costs"):
        story = Story(
            task=task, scene=scene, curves=curves, picture=picture, choice=choice, search=search, controls=naive,
            certificate=certificate, left=left, unfit=unfit, small=small, tolerance=tolerance, budget=budget,
            schedule=repr(schedule), timings=clock.timings, front=points, selection=way.selection,
        )  # fmt: skip
        data = tell(story)
    damage = best.damage if best is not None else measured_damage(task, small)
    plan = best.plan if best is not None else Plan({}, {})
    timed = best.timed if best is not None else None
    return Result(small, task.model, plan, damage, certificate, curves, data, timed, points, way.selection)


def _targets(schedule: Schedule, final: float) -> list[float]:
    """Fractions of the dense multiply-adds, round by round, ending at `final`."""
    return [1 - (1 - final) * schedule(number) for number in range(schedule.rounds)]


def _least_bound(budget: Budget | None) -> float | None:
    """The budget as a share of the dense cost (see `Task.share`); None under a tolerance."""
    return None if budget is None else min(budget.fractions().values())


def _control(task: Task, name: str, search: Search) -> Search:
    """A naive rule at the same multiply-adds, round by round, with the same repair and retraining."""
    criterion = control_criterion(name, task.seed)
    same = [r.share for r in search.rounds if r.number in search.kept]
    return descend(replace(task, criterion=criterion), same, allocator=uniformly, first=None, name=f"controls/{name}")
