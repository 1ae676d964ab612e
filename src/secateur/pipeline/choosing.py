"""Which criterion and which objective: chosen by cross-validation where several are given, controls beside them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from secateur.allocation.front import Front, front
from secateur.allocation.selection import GRID, Candidate, Selection, select
from secateur.criteria.chance import Random
from secateur.criteria.criterion import Criterion
from secateur.criteria.magnitude import Magnitude
from secateur.describe import without_addresses
from secateur.pipeline.aims import Aim, objective_of
from secateur.pipeline.scene import Scene, measured_curves, set_scene
from secateur.pipeline.task import Task, summarise
from secateur.types import Curve, Curves


@dataclass(frozen=True)
class Rivals:
    """What cross-validation chooses among.

    Attributes:
        criteria: that score the units.
        aims: objectives, or names of them.
        controls: "random", "uniform-magnitude": the same density for every group.
        folds: of the cross-validation.
        repeats: how often they are drawn anew.
        standard_errors: by which damage must stay within the tolerance.
    """

    criteria: tuple[Criterion, ...]
    aims: tuple[Aim, ...]
    controls: tuple[str, ...]
    folds: int
    repeats: int = 1
    standard_errors: float = 1.0


@dataclass(frozen=True, eq=False)
class Way:
    """How a run prunes: its task with one criterion and one objective, the first scene, and its curves.

    Attributes:
        task: the run.
        scene: the dense model, scored by the criterion.
        curves: of its groups.
        selection: what the way was chosen among; None if there was nothing to choose.
    """

    task: Task
    scene: Scene
    curves: Curves
    selection: Selection | None


def found_way(task: Task, rivals: Rivals, *, tolerance: float | None, final: float | None) -> Way:
    """The way of the only criterion and objective, or the best of several.

    Args:
        task: the run.
        rivals: what there is to choose among.
        tolerance: damage allowed; None under a budget.
        final: the budget as a share of the dense cost; None under a tolerance.
    """
    if len(rivals.criteria) * len(rivals.aims) == 1:
        return _measured(task, final)
    return _best(task, rivals, tolerance=tolerance, budgets=GRID if final is None else [final])


def _measured(task: Task, final: float | None = None) -> Way:
    """The way of the task's own criterion and objective; its curves are good enough for the final target."""
    scene = set_scene(task, task.model)
    return Way(task, scene, measured_curves(task, scene, [] if final is None else [final]), None)


def _best(task: Task, rivals: Rivals, *, tolerance: float | None, budgets: Sequence[float]) -> Way:
    """Every criterion with every objective, and the controls, held against each other out of fold; see `select`.

    Under a tolerance the way wins that prunes most within it; under a budget, the one with the least damage at it.
    """
    ways: dict[str, Way] = {}
    candidates: dict[str, Candidate] = {}

    def add(name: str, way: Way, *, is_control: bool = False) -> None:
        scene = way.scene
        ways[name] = way
        candidates[name] = Candidate(
            curves=way.curves,
            joint=lambda widths, samples: scene.probe.damage(widths, samples)[0],
            objective=objective_of(way.task.objective, scene.probe.scores),
            is_control=is_control,
        )

    for criterion in rivals.criteria:
        first = _measured(replace(task, criterion=criterion))
        for aim in rivals.aims:
            add(f"{label(criterion)}, {label(aim)}", replace(first, task=replace(first.task, objective=aim)))
    levels = _without_damage(next(iter(ways.values())).curves)
    for control in rivals.controls:
        own = replace(task, criterion=control_criterion(control, task.seed), objective="uniform")
        add(f"{control} (control)", Way(own, set_scene(own, task.model), levels, None), is_control=True)
    first = next(iter(ways.values()))
    with task.progress.stage("choosing a way", len(candidates)) as advance:
        selection = select(
            candidates,
            cost=first.scene.cost,
            tolerance=math.inf if tolerance is None else tolerance,
            goal=task.budget,
            budgets=budgets,
            folds=rivals.folds,
            repeats=rivals.repeats,
            standard_errors=rivals.standard_errors,
            refinements=0 if tolerance is None else 2,
            seed=task.seed,
            progress=lambda name: advance(1, name),
        )
    way = ways[selection.name]
    if candidates[selection.name].is_control:
        way = replace(way, curves=measured_curves(way.task, way.scene))
    return replace(way, selection=selection)


def control_criterion(control: str, seed: int) -> Criterion:
    """What a control scores by."""
    return Random(seed) if control == "random" else Magnitude()


def label(part: Criterion | Aim) -> str:
    """A criterion or an objective in words."""
    return part if isinstance(part, str) else without_addresses(repr(part))


def measured_front(task: Task, scene: Scene, curves: Curves, budgets: Sequence[float]) -> Front:
    """Joint damage of the allocation at each budget, on all validation data, as cut and nothing else."""

    def measure(widths: Mapping[str, int]) -> tuple[float, float]:
        found = summarise(scene.probe.damage(widths)[0])
        return found.mean, found.standard_error

    with task.progress.stage("front", len(budgets)) as advance:
        return front(
            curves,
            scene.cost,
            measure=measure,
            budgets=budgets,
            objectives={label(task.objective): objective_of(task.objective, scene.probe.scores)},
            goal=task.budget,
            progress=lambda done, of: advance(1),
        )


def _without_damage(curves: Curves) -> dict[str, Curve]:
    """The same levels; a rule that reads no damage needs none."""
    return {
        name: replace(curve, damage=np.zeros_like(curve.damage), loss_damage=np.zeros_like(curve.loss_damage))
        for name, curve in curves.items()
    }
