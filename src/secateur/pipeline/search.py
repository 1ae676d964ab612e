"""How far to go: a fixed sequence of targets under a budget, a guarded descent under a tolerance."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from secateur.allocation.selection import GRID
from secateur.allocation.thresholds import (
    BudgetCurve,
    Choice,
    averaged,
    choose,
    cross_validate,
    errors_in_words,
    folds,
    refine_budgets,
)
from secateur.errors import BudgetError
from secateur.pipeline.aims import objective_of
from secateur.pipeline.rounds import Round, run_round, saved_round
from secateur.pipeline.scene import Scene, set_scene
from secateur.pipeline.task import Task
from secateur.pipeline.widths import Allocator, ByCurves
from secateur.surgery.plan import Plan
from secateur.types import Curves

LEAST_STEP = 0.02
HALVINGS = 3
REFINEMENTS = 2


@dataclass(frozen=True, eq=False)
class Search:
    """The rounds that were run, in order, and which of them were kept.

    Attributes:
        rounds: every round.
        kept: numbers of the rounds that the result stands on.
        reasons: round number -> why it was kept or rolled back.
    """

    rounds: tuple[Round, ...]
    kept: tuple[int, ...]
    reasons: dict[int, str]

    @property
    def best(self) -> Round | None:
        """The last round that was kept."""
        by_number = {r.number: r for r in self.rounds}
        return by_number[self.kept[-1]] if self.kept else None


def threshold(
    task: Task,
    scene: Scene,
    curves: Curves,
    *,
    budgets: Sequence[float],
    k: int,
    repeats: int,
    tolerance: float | None,
    standard_errors: float,
) -> tuple[BudgetCurve, Choice | None]:
    """Cross-validate the budgets; under a tolerance also choose one."""
    rng = np.random.default_rng(task.seed)
    drawn = [folds(len(task.baseline.metric), k, rng) for _ in range(repeats)]
    total = k * repeats * (len(budgets) + (0 if tolerance is None else REFINEMENTS))
    with task.progress.stage("cross-validation", total) as advance:

        def measured(at: Sequence[float]) -> BudgetCurve:
            return averaged(
                [
                    cross_validate(
                        curves,
                        budgets=at,
                        cost=scene.cost,
                        goal=task.budget,
                        joint=lambda widths, samples: scene.probe.damage(widths, samples)[0],
                        folds=parts,
                        objective=objective_of(task.objective, scene.probe.scores),
                        progress=lambda done, of: advance(1),
                    )
                    for parts in drawn
                ]
            )

        def decide(curve: BudgetCurve) -> Choice:
            assert tolerance is not None
            return choose(curve, tolerance, standard_errors=standard_errors)

        if tolerance is None:
            return measured(budgets), None
        return refine_budgets(measured, budgets, decide, refinements=REFINEMENTS)


def reachable_grid(scene: Scene, curves: Curves) -> tuple[float, ...]:
    """Budgets of the grid, as fractions of the dense cost, that some allocation of the curves meets."""
    least = least_share(scene, curves)
    return tuple(b for b in GRID if b >= least)


def least_share(scene: Scene, curves: Curves) -> float:
    """What is left of the dense cost at the narrowest widths that were scanned."""
    return scene.share({name: curve.widths[-1] for name, curve in curves.items()})


def descend(task: Task, targets: Sequence[float], *, allocator: Allocator, first: Scene | None, name: str) -> Search:
    """Run one round for each target, keeping every one (under a budget, and for controls)."""
    rounds: list[Round] = []
    model, plan = task.model, Plan({}, {})
    for number, target in enumerate(targets, start=1):
        scene = first if number == 1 else None
        rounds.append(_round(task, model, plan, scene, allocator, number=number, target=target, name=name))
        model, plan = rounds[-1].model, rounds[-1].plan
    numbers = tuple(r.number for r in rounds)
    return Search(tuple(rounds), numbers, dict.fromkeys(numbers, "a step of the schedule"))


def descend_guarded(
    task: Task,
    targets: Sequence[float],
    *,
    tolerance: float,
    first: Scene,
    curves: Curves,
    standard_errors: float = 1.0,
) -> Search:
    """Go down the targets while the damage stays within the tolerance; roll back at the first that does not.

    Within is the mean plus so many standard errors.

    After a roll-back the step is halved, as a ratio of costs, until a round holds or `HALVINGS` have failed.
    """
    rounds: list[Round] = []
    kept: list[int] = []
    reasons: dict[int, str] = {}
    model, plan, reached = task.model, Plan({}, {}), 1.0
    queue = [t for t in targets if t < 1.0]
    halvings = HALVINGS
    while queue:
        target = queue.pop(0)
        number = len(rounds) + 1
        is_first = not kept
        scene, allocator = (first, ByCurves(task, curves)) if is_first else (None, ByCurves(task))
        try:
            result = _round(task, model, plan, scene, allocator, number=number, target=target, name="rounds")
        except BudgetError:
            break
        rounds.append(result)
        if result.damage.is_within(tolerance, standard_errors):
            kept.append(number)
            reasons[number] = f"damage plus {errors_in_words(standard_errors)} is within the tolerance"
            model, plan, reached = result.model, result.plan, result.share
            queue = [t for t in queue if t < reached]
        else:
            reasons[number] = f"rolled back: damage plus {errors_in_words(standard_errors)} breaks the tolerance"
            middle = (reached * target) ** 0.5
            queue = [middle] if halvings > 0 and reached - middle >= LEAST_STEP else []
            halvings -= 1
    return Search(tuple(rounds), tuple(kept), reasons)


def _round(
    task: Task,
    model: nn.Module,
    before: Plan,
    scene: Scene | None,
    allocator: Allocator,
    *,
    number: int,
    target: float,
    name: str,
) -> Round:
    """The round as it was saved; else it is run, in `scene` or, without one, in that of `model`."""
    directory = None if task.run_dir is None else task.run_dir / name / str(number)
    # To set a scene takes a trace and a pass of gradients: a round that is known needs none.
    return saved_round(task, directory, number) or run_round(
        task,
        scene or set_scene(task, model),
        allocator,
        number=number,
        target=target,
        before=before,
        directory=directory,
    )
