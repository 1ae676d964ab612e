"""Cut a model to a target; where latency is bounded, until what is measured holds it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import nn

from secateur.errors import BudgetError
from secateur.measures.latency_table import LatencyTable
from secateur.pipeline.latency import Timed
from secateur.pipeline.scene import Scene
from secateur.pipeline.task import Task
from secateur.pipeline.widths import Allocator
from secateur.surgery.cut import cut
from secateur.surgery.plan import Plan, plan_widths

CORRECTIONS = 4
LEAST_CORRECTION = 1.02


@dataclass(frozen=True, eq=False)
class Draft:
    """A model that was cut, as yet without repair."""

    widths: Mapping[str, int]
    note: str
    step: Plan
    small: nn.Module
    timed: Timed | None


def cut_in_time(task: Task, scene: Scene, allocator: Allocator, target: float) -> Draft:
    """Cut to the target; where latency is bounded, correct what is predicted by what is measured until it holds."""
    best = _draft(task, scene, allocator, target)
    last, correction = best.timed, 1.0
    for number in range(1, CORRECTIONS + 1):
        if last is None or last.is_met:
            break
        correction *= max(last.measured_s / last.predicted_s, LEAST_CORRECTION)
        try:
            draft = _draft(task, _slower(task, scene, correction), allocator, target)
        except BudgetError:
            break
        assert draft.timed is not None
        assert best.timed is not None
        last = replace(draft.timed, corrections=number)
        if last.measured_s < best.timed.measured_s or last.is_met:
            best = replace(draft, timed=last)
    return best


def _draft(task: Task, scene: Scene, allocator: Allocator, target: float) -> Draft:
    allotted = allocator(scene, target)
    widths = allotted.widths
    step = plan_widths(scene.groups, scene.probe.scores, widths)
    small = cut(scene.model, step, program=scene.program)
    if task.clocked is None:
        return Draft(widths, allotted.note, step, small, None)
    [limit] = (limit for limit in task.limits(scene.cost, target) if limit.name == "latency")
    dense_s = task.dense.prices["latency"]({})
    timed = task.clocked.timed(
        [task.model, small],
        task.args,
        task.kwargs,
        predicted=limit.cost(widths) / dense_s,
        allowed=limit.bound / dense_s,
    )
    return Draft(widths, allotted.note, step, small, timed)


def _slower(task: Task, scene: Scene, factor: float) -> Scene:
    """The scene in which all predicted latencies are multiplied by `factor`."""
    assert isinstance(scene.cost.latency, LatencyTable)
    cost = replace(scene.cost, latency=scene.cost.latency.slower(factor))
    return replace(scene, cost=cost, share=lambda widths: task.share(cost, widths))
