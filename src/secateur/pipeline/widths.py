"""How wide every group stays within a target: by measured curves, or the same share of all."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from secateur.allocation.allocate import allocate_within
from secateur.allocation.knapsack import uniform_allocation
from secateur.allocation.local_search import refine_within
from secateur.errors import BudgetError
from secateur.pipeline.aims import objective_of
from secateur.pipeline.scene import Scene, measured_curves
from secateur.pipeline.task import Task, summarise
from secateur.types import Curves, Status


class Allocator(Protocol):
    """Chooses the width of every group so that at most `target` of the dense cost is left."""

    def __call__(self, scene: Scene, target: float) -> "Allotted":
        """Units kept in a row of each group."""


@dataclass(frozen=True)
class Allotted:
    """Units kept in a row of each group, and how they were found where that is worth telling."""

    widths: Mapping[str, int]
    note: str = ""


@dataclass(frozen=True, eq=False)
class ByCurves:
    """Allocate by measured curves: least predicted loss within the budget."""

    task: Task
    known: Curves | None = None

    def __call__(self, scene: Scene, target: float) -> Allotted:
        """Units kept in a row of each group."""
        curves = self.known or measured_curves(self.task, scene, [target])
        bounds = self.task.limits(scene.cost, target)
        found = allocate_within(curves, bounds, objective_of(self.task.objective, scene.probe.scores))
        if found.status is Status.INFEASIBLE:
            raise BudgetError(_out_of_reach(self.task, scene, target, scene.share(found.widths)))
        if self.task.local_search < 1:
            return Allotted(found.widths)
        with self.task.progress.stage("local search", self.task.local_search) as advance:

            def measure(widths: Mapping[str, int]) -> tuple[float, float]:
                advance(1)
                joint = summarise(scene.probe.damage(widths)[1])
                return joint.mean, joint.standard_error

            searched = refine_within(found, curves, bounds, measure=measure, measurements=self.task.local_search)
        return Allotted(searched.allocation.widths, str(searched))


def _out_of_reach(task: Task, scene: Scene, target: float, least: float) -> str:
    kept = [group for group in scene.found.groups if not task.scope.admits(group)]
    names = [group.name for group in kept]
    reasons = ", ".join(f"{group.name}: {group.note}" for group in kept[:3])
    more = f", and {len(kept) - 3} more" if len(kept) > 3 else ""
    remedy = f"; or pass inexact={names!r}, whose removal is not exact ({reasons}{more})" if kept else ""
    return (
        f"no allocation reaches {target:.1%} of the dense cost; the least that the scanned sparsities allow is "
        f"{least:.1%}: raise the budget, scan higher sparsities, or ignore fewer modules{remedy}"
    )


def uniformly(scene: Scene, target: float) -> Allotted:
    """The same fraction of every group, and of the branches; of these the lowest-scored go first."""
    full = {group.name: group.width for group in scene.groups}
    multiples = {group.name: group.multiple_of for group in scene.groups}
    least = {group.name: group.minimum for group in scene.groups}
    branches = [group.name for group in scene.groups if group.minimum == 0]
    going = sorted(branches, key=lambda name: float(scene.probe.scores[name]))
    return Allotted(
        uniform_allocation(full, target, scene.share, multiple_of=multiples, minimum=least, removable=going)
    )
