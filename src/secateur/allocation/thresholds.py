"""The budget, chosen by cross-validation: curves from some folds, joint damage on another."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from secateur.allocation.allocate import allocate
from secateur.allocation.limits import Costs, fraction_of
from secateur.allocation.objectives import Objective
from secateur.errors import ArgumentError, MetricError, as_number
from secateur.types import Budget, Curve, Curves, Floats, Status

Samples = NDArray[np.int64]
Joint = Callable[[Mapping[str, int], Samples], Floats]


@dataclass(frozen=True, eq=False)
class BudgetCurve:
    """Damage against budget, each sample measured once, under an allocation that never saw it.

    Attributes:
        budgets: fractions of the dense cost, descending.
        mean: mean joint damage at each budget.
        standard_error: of the mean.
        predicted: sum of single damages at each budget, mean over folds.
        samples: float64 (budgets, samples): joint damage of each sample; None if it was not kept.
    """

    budgets: tuple[float, ...]
    mean: Floats
    standard_error: Floats
    predicted: Floats
    samples: Floats | None = None

    @property
    def interaction(self) -> Floats:
        """Joint damage minus the sum of single damages; NaN where both are infinite."""
        with np.errstate(invalid="ignore"):
            return self.mean - self.predicted


@dataclass(frozen=True)
class Choice:
    """The budget that was chosen, and why.

    Attributes:
        budget: fraction of the dense cost; 1 if nothing can be removed.
        index: of the budget in its curve; None if none is within the tolerance.
        damage: mean joint damage there.
        standard_error: of the mean.
        reason: in words.
    """

    budget: float
    index: int | None
    damage: float
    standard_error: float
    reason: str


def folds(samples: int, k: int, rng: np.random.Generator) -> list[Samples]:
    """Split positions 0..samples-1 at random into `k` disjoint parts of nearly equal size, each ascending.

    Raises:
        ArgumentError: fewer than two folds, or more folds than samples.
    """
    if not 2 <= as_number("folds", k) <= samples or k != int(k):
        raise ArgumentError(
            f"folds={k} must be a whole number and lie between 2 and the number of validation samples, {samples}"
        )
    return [np.sort(part).astype(np.int64) for part in np.array_split(rng.permutation(samples), k)]


def cross_validate(
    curves: Curves,
    *,
    budgets: Sequence[float],
    cost: Costs,
    joint: Joint,
    folds: Sequence[Samples],
    goal: Budget | None = None,
    objective: Objective | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> BudgetCurve:
    """Joint damage at every budget, out of fold.

    For each fold, curves are taken from the other folds, an allocation is made at each budget, and its
    joint damage is measured on the fold itself. A budget that some fold cannot meet is left out.

    Args:
        curves: with one damage for each validation sample.
        budgets: fractions of the dense cost, in (0, 1].
        cost: see `allocate`.
        joint: (widths, sample positions) -> metric damage of those samples, all groups cut at once.
        folds: from `folds`.
        goal: which costs are bounded, and in which proportion; multiply-adds unless it is given. The smallest of its
            bounds is what `budgets` are about.
        objective: see `allocate`.
        progress: called with (measurements done, measurements in all).

    Raises:
        ArgumentError: folds that do not hold each sample of the curves once, or a budget outside (0, 1].
        MetricError: `joint` does not give one damage a sample.
    """
    ordered = tuple(sorted(set(budgets), reverse=True))
    samples = sum(len(part) for part in folds)
    _check(curves, ordered, folds)
    total = len(folds) * len(ordered)
    dense = {name: curve.widths[0] for name, curve in curves.items()}
    met = np.ones(len(ordered), dtype=bool)
    damage = np.full((len(ordered), samples), np.nan)
    predicted = np.full((len(ordered), len(folds)), np.nan)
    known: dict[tuple[int, tuple[tuple[str, int], ...]], Floats] = {}
    for number, held in enumerate(folds):
        others = np.setdiff1d(np.arange(samples), held)
        part = {name: _subset(curve, others) for name, curve in curves.items()}
        for row, budget in enumerate(ordered):
            found = allocate(part, cost, fraction_of(cost, goal, dense, budget), objective=objective)
            met[row] &= found.status is Status.FOUND
            if found.status is Status.FOUND:
                key = (number, tuple(sorted(found.widths.items())))
                if key not in known:
                    known[key] = _measured(joint, found.widths, held)
                damage[row, held] = known[key]
                predicted[row, number] = sum(part[n].mean()[level] for n, level in found.levels.items())
            if progress is not None:
                progress(number * len(ordered) + row + 1, total)
    kept = damage[met]
    with np.errstate(invalid="ignore"):
        mean, single = kept.mean(axis=1), predicted[met].mean(axis=1)
    return BudgetCurve(
        budgets=tuple(b for b, ok in zip(ordered, met, strict=True) if ok),
        mean=mean,
        standard_error=_standard_error(kept),
        predicted=single,
        samples=kept,
    )


def choose(
    curve: BudgetCurve, tolerance: float, *, standard_errors: float = 1.0, confidence: float | None = None
) -> Choice:
    """The most aggressive budget whose damage stays within the tolerance, it and all milder ones.

    Within: mean plus `standard_errors` standard errors is at most `tolerance`. That all milder budgets
    must be within too keeps a lucky island beyond the first failure from being chosen. The true damage there exceeds
    the tolerance with a probability of about the tail of the normal distribution, at most, whatever the grid: 16 % by
    the rule of one standard error, 5 % with a confidence of 0.95; refinement around the boundary adds a sixth of that.

    Args:
        curve: out-of-fold damage.
        tolerance: what is allowed.
        standard_errors: added to the mean; 1 is the one-standard-error rule.
        confidence: in (0.5, 1): as many standard errors as a one-sided normal interval has, in place of
            `standard_errors`. One interval for each budget: not a certificate, which takes fresh data.

    Raises:
        ArgumentError: a negative tolerance or number of standard errors, or a confidence outside (0.5, 1).

    >>> bumpy = BudgetCurve((1.0, 0.8, 0.6), np.array([0., .005, .03]), np.array([0., .002, .01]), np.zeros(3))
    >>> choose(bumpy, 0.01).budget
    0.8
    """
    if not (as_number("tolerance", tolerance) >= 0 and as_number("standard_errors", standard_errors) >= 0):
        raise ArgumentError(f"tolerance={tolerance} and standard_errors={standard_errors} must be at least 0")
    if confidence is not None:
        if not 0.5 < as_number("confidence", confidence) < 1:
            raise ArgumentError(f"confidence={confidence} must lie strictly between 0.5 and 1")
        standard_errors = float(norm.ppf(confidence))
    upper = curve.mean + standard_errors * curve.standard_error
    within = [bool(value <= tolerance) for value in upper]
    length = within.index(False) if False in within else len(within)
    if length == 0:
        return Choice(1.0, None, 0.0, 0.0, f"no budget of the grid keeps the damage within {tolerance:g}")
    index = length - 1
    damage, error = float(curve.mean[index]), float(curve.standard_error[index])
    if np.isposinf(tolerance):
        reason = f"at {curve.budgets[index]:.0%} the out-of-fold damage is {damage:.4g} ± {error:.2g}"
        return Choice(curve.budgets[index], index, damage, error, reason)
    reason = (
        f"{curve.budgets[index]:.0%} is the most aggressive budget whose out-of-fold damage plus "
        f"{errors_in_words(standard_errors)} ({damage:.4g} + {standard_errors * error:.4g}) is within {tolerance:g}"
    )
    if length < len(within):
        reason += f"; at {curve.budgets[length]:.0%} it is {float(upper[length]):.4g}"
    return Choice(curve.budgets[index], index, damage, error, reason)


def errors_in_words(number: float) -> str:
    """So many standard errors.

    >>> errors_in_words(1), errors_in_words(1.645)
    ('1 standard error', '1.645 standard errors')
    """
    return f"{number:g} standard error{'' if number == 1 else 's'}"


def merged(curves: Sequence[BudgetCurve]) -> BudgetCurve:
    """Curves of different budgets, as one.

    >>> one = BudgetCurve((0.5,), np.array([0.2]), np.array([0.1]), np.zeros(1))
    >>> merged([one, BudgetCurve((0.8,), np.array([0.1]), np.array([0.1]), np.zeros(1))]).budgets
    (0.8, 0.5)
    """
    budgets = [budget for curve in curves for budget in curve.budgets]
    order = sorted(range(len(budgets)), key=lambda k: -budgets[k])
    samples = [curve.samples for curve in curves if curve.samples is not None]
    return BudgetCurve(
        budgets=tuple(budgets[k] for k in order),
        mean=np.concatenate([curve.mean for curve in curves])[order],
        standard_error=np.concatenate([curve.standard_error for curve in curves])[order],
        predicted=np.concatenate([curve.predicted for curve in curves])[order],
        samples=np.concatenate(samples)[order] if len(samples) == len(curves) else None,
    )


def averaged(curves: Sequence[BudgetCurve]) -> BudgetCurve:
    """Repetitions over other folds, as one: each sample counts with its mean damage over the repetitions."""
    if len(curves) == 1:
        return curves[0]
    shared = [budget for budget in curves[0].budgets if all(budget in curve.budgets for curve in curves)]
    rows = [[curve.budgets.index(budget) for budget in shared] for curve in curves]
    kept = [curve.samples[row] for curve, row in zip(curves, rows, strict=True) if curve.samples is not None]
    with np.errstate(invalid="ignore"):
        samples = np.asarray(np.mean(kept, axis=0))
        predicted = np.mean([curve.predicted[row] for curve, row in zip(curves, rows, strict=True)], axis=0)
        return BudgetCurve(tuple(shared), samples.mean(axis=1), _standard_error(samples), predicted, samples)


def refine_budgets(
    measure: Callable[[Sequence[float]], BudgetCurve],
    budgets: Sequence[float],
    decide: Callable[[BudgetCurve], Choice],
    *,
    refinements: int = 2,
) -> tuple[BudgetCurve, Choice]:
    """Measure a grid, then the middle between the chosen budget and the next one, again and again.

    Args:
        measure: budgets -> their curve.
        budgets: the grid.
        decide: curve -> the choice.
        refinements: how many budgets are put in between.
    """
    curve = measure(budgets)
    choice = decide(curve)
    for _ in range(refinements):
        at = choice.index
        low, high = (None, 0) if at is None else (at, at + 1)
        if high >= len(curve.budgets):
            break
        middle = ((1.0 if low is None else curve.budgets[low]) + curve.budgets[high]) / 2
        added = measure([middle])
        if middle in curve.budgets or not added.budgets:
            break
        curve = merged([curve, added])
        choice = decide(curve)
    return curve, choice


def _check(curves: Curves, budgets: Sequence[float], folds: Sequence[Samples]) -> None:
    sizes = {curve.damage.shape[1] for curve in curves.values()}
    positions = np.sort(np.concatenate([np.zeros(0, dtype=np.int64), *folds]))
    if len(folds) < 2 or sizes - {len(positions)} or not np.array_equal(positions, np.arange(len(positions))):
        raise ArgumentError(
            f"{len(folds)} folds of {len(positions)} positions do not hold each of the curves' samples {sorted(sizes)} "
            "once: make them with `folds(samples, k, rng)`"
        )
    if not budgets or not all(0 < as_number("budget", budget) <= 1 for budget in budgets):
        raise ArgumentError(f"budgets={tuple(budgets)}: needed one at least, in (0, 1], as fractions of the dense cost")


def _measured(joint: Joint, widths: Mapping[str, int], samples: Samples) -> Floats:
    values = np.asarray(joint(widths, samples), dtype=np.float64)
    if values.shape != samples.shape:
        raise MetricError(f"the joint damage of {len(samples)} samples has shape {values.shape}, not one a sample")
    return values


def _subset(curve: Curve, samples: Samples) -> Curve:
    return replace(curve, damage=curve.damage[:, samples], loss_damage=curve.loss_damage[:, samples])


def _standard_error(damage: Floats) -> Floats:
    samples = damage.shape[1]
    with np.errstate(invalid="ignore"):
        spread = damage.std(axis=1, ddof=1) / np.sqrt(samples) if samples > 1 else np.full(len(damage), np.inf)
    # No change in any sample does not mean that none can change: one in `samples` still may.
    untouched = (damage == 0).all(axis=1)
    return np.asarray(np.where(untouched, 1 / samples, spread))
