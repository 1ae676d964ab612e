"""Which budget, objective and criterion: all chosen by one cross-validation, and held against naive rules."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from secateur.allocation.limits import Costs
from secateur.allocation.objectives import Objective
from secateur.allocation.thresholds import (
    BudgetCurve,
    Choice,
    Joint,
    Samples,
    averaged,
    choose,
    cross_validate,
    folds as draw_folds,
    merged,
    refine_budgets,
)
from secateur.errors import ArgumentError
from secateur.types import Budget, Curves, Floats

GRID = tuple(round(1 - 0.05 * step, 2) for step in range(19))


@dataclass(frozen=True, eq=False)
class Candidate:
    """A way to prune: a criterion, by the curves and the joint damage that its scores give, and an objective.

    Attributes:
        curves: one damage for each validation sample.
        joint: (widths, sample positions) -> metric damage of those samples, all groups cut at once.
        objective: see `allocate`.
        is_control: a naive rule that others must beat: random scores, uniform magnitude.
    """

    curves: Curves
    joint: Joint
    objective: Objective | None = None
    is_control: bool = False


@dataclass(frozen=True, eq=False)
class Selection:
    """What was chosen, among what, and why.

    Attributes:
        name: the candidate.
        choice: its budget.
        pictures: out-of-fold damage against budget of every candidate.
        choices: the budget that each candidate would have.
        as_good: controls that the chosen candidate is not measurably better than at its budget; none if nothing goes.
        reason: in words.
        tolerance: the damage that was allowed.
    """

    name: str
    choice: Choice
    pictures: Mapping[str, BudgetCurve]
    choices: Mapping[str, Choice]
    as_good: tuple[str, ...]
    reason: str
    tolerance: float = math.inf

    def __str__(self) -> str:
        return self.reason


def select(
    candidates: Mapping[str, Candidate],
    *,
    cost: Costs,
    tolerance: float,
    goal: Budget | None = None,
    budgets: Sequence[float] = GRID,
    folds: int = 5,
    repeats: int = 1,
    refinements: int = 2,
    standard_errors: float = 1.0,
    confidence: float | None = None,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> Selection:
    """Choose the candidate, and its budget, that prunes most within the tolerance, out of fold.

    All candidates see the same folds. The smallest budget wins, then the least damage at it. Controls compete like
    the others, and are compared with the winner sample by sample at the winner's budget.

    Source: the one-standard-error rule (Breiman et al. 1984, Classification and Regression Trees).

    Args:
        candidates: by name, on the same validation samples.
        cost: see `allocate`.
        tolerance: damage allowed, in the unit of the metric.
        goal: which costs are bounded, and in which proportion; multiply-adds unless it is given.
        budgets: the grid, in fractions of the dense cost.
        folds: of each repetition.
        repeats: how often the folds are drawn anew.
        refinements: budgets put in between around the boundary.
        standard_errors: see `choose`.
        confidence: see `choose`.
        seed: of the folds.
        progress: called with the name of a candidate before it is measured.

    Raises:
        ArgumentError: no candidates, different samples, or an argument out of range.
    """
    sizes = {curve.damage.shape[1] for c in candidates.values() for curve in c.curves.values()}
    if len(sizes) != 1 or repeats < 1:
        raise ArgumentError(
            f"{len(candidates)} candidates hold damages of {sorted(sizes)} samples, repeats={repeats}: there must be "
            "one candidate at least, all must be measured on the same samples, and once at least"
        )
    rng = np.random.default_rng(seed)
    parts = [draw_folds(next(iter(sizes)), folds, rng) for _ in range(repeats)]

    def decide(curve: BudgetCurve) -> Choice:
        return choose(curve, tolerance, standard_errors=standard_errors, confidence=confidence)

    def measured(candidate: Candidate, at: Sequence[float]) -> BudgetCurve:
        return _measured(candidate, at, parts, cost, goal)

    pictures, choices = {}, {}
    for name, candidate in candidates.items():
        if progress is not None:
            progress(name)
        pictures[name], choices[name] = refine_budgets(
            lambda at, candidate=candidate: measured(candidate, at),  # type: ignore[misc]
            budgets,
            decide,
            refinements=refinements,
        )
    best = min(choices, key=lambda name: (choices[name].budget, choices[name].damage, candidates[name].is_control))
    at = choices[best].budget
    if choices[best].index is not None:
        for name, candidate in candidates.items():
            if at not in pictures[name].budgets:
                pictures[name] = merged([pictures[name], measured(candidate, [at])])
                choices[name] = decide(pictures[name])
    as_good = tuple(
        name
        for name, candidate in candidates.items()
        if candidate.is_control
        and name != best
        and choices[best].index is not None
        and _is_as_good(pictures[name], pictures[best], at, standard_errors)
    )
    return Selection(
        name=best,
        choice=choices[best],
        pictures=pictures,
        choices=choices,
        as_good=as_good,
        reason=_reason(best, candidates, choices, pictures, as_good),
        tolerance=tolerance,
    )


def _measured(
    candidate: Candidate, budgets: Sequence[float], parts: Sequence[list[Samples]], cost: Costs, goal: Budget | None
) -> BudgetCurve:
    return averaged(
        [
            cross_validate(
                candidate.curves,
                budgets=budgets,
                cost=cost,
                joint=candidate.joint,
                folds=part,
                goal=goal,
                objective=candidate.objective,
            )
            for part in parts
        ]
    )


def _is_as_good(control: BudgetCurve, best: BudgetCurve, budget: float, standard_errors: float) -> bool:
    """Whether the control's damage exceeds the best one's by no more than its standard errors, sample by sample."""
    if budget not in control.budgets or budget not in best.budgets or control.samples is None or best.samples is None:
        return False
    more: Floats = control.samples[control.budgets.index(budget)] - best.samples[best.budgets.index(budget)]
    error = more.std(ddof=1) / np.sqrt(len(more)) if len(more) > 1 else np.inf
    return bool(more.mean() <= standard_errors * error)


def _reached(choice: Choice, best: Choice) -> str:
    if choice.index is not None and choice.budget == best.budget:
        return f"reaches the same at a damage of {choice.damage:.4g} ± {choice.standard_error:.2g}"
    return f"reaches {choice.budget:.1%}"


def _reason(
    best: str,
    candidates: Mapping[str, Candidate],
    choices: Mapping[str, Choice],
    pictures: Mapping[str, BudgetCurve],
    as_good: Sequence[str],
) -> str:
    words = [f"{best}: {choices[best].reason}"]
    others = [f"{name} {_reached(choice, choices[best])}" for name, choice in choices.items() if name != best]
    if others:
        words.append("of the others, " + ", ".join(others))
    controls = [name for name, candidate in candidates.items() if candidate.is_control and name != best]
    there = [name for name in controls if choices[best].budget in pictures[name].budgets]
    if candidates[best].is_control:
        words.append(f"{best} is a control: here a naive rule does best")
    elif as_good:
        words.append(f"at this budget {' and '.join(as_good)} cannot be told from it: a naive rule is as good here")
    elif there and choices[best].index is not None:
        words.append(f"at this budget it is measurably better than {' and '.join(there)}")
    if len(there) < len(controls) and choices[best].index is not None:
        words.append(f"{' and '.join(name for name in controls if name not in there)} cannot be cut to this budget")
    return "; ".join(words)
