"""Measured points of cost against damage, those marked that no other point beats in both."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from secateur.allocation.allocate import allocate
from secateur.allocation.knapsack import Of
from secateur.allocation.limits import Costs, fraction_of
from secateur.allocation.local_search import Measure, measured
from secateur.allocation.objectives import LeastDamage, Objective, check_of
from secateur.errors import ArgumentError, as_number
from secateur.types import Allocation, Budget, Curves, Status

BUDGETS = tuple(round(1 - 0.05 * step, 2) for step in range(1, 19))


@dataclass(frozen=True)
class Point:
    """One allocation, measured.

    Attributes:
        rule: name of the objective.
        budget: the fraction of the dense cost that was asked for.
        share: the fraction that is left: of the first cost that the budget names.
        damage: measured joint damage.
        standard_error: of the damage.
        predicted: sum of the single damages at the chosen levels, in the unit of `damage`.
        allocation: the widths and what they cost; its own `damage` is in the unit that its objective adds up.
        is_dominated: another point costs no more and damages no more, and is better in one of the two.
    """

    rule: str
    budget: float
    share: float
    damage: float
    standard_error: float
    predicted: float
    allocation: Allocation
    is_dominated: bool


@dataclass(frozen=True)
class Front:
    """Every measured point, in descending order of what is left of the cost."""

    points: tuple[Point, ...]

    @property
    def best(self) -> tuple[Point, ...]:
        """The points that no other dominates."""
        return tuple(point for point in self.points if not point.is_dominated)

    def within(self, damage: float) -> Point | None:
        """The cheapest point whose damage plus one standard error is at most `damage`; None if there is none."""
        # Of all points: one that is beaten in the mean may be known better.
        fine = [point for point in self.points if point.damage + point.standard_error <= damage]
        return min(fine, key=lambda point: (point.share, point.damage), default=None)

    def __str__(self) -> str:
        """A table."""
        rows = [f"{'left':>7}  {'damage':>9}  {'± 1 s.e.':>9}  {'predicted':>9}  objective"]
        for p in self.points:
            mark = " " if p.is_dominated else "*"
            measured = f"{p.damage:>9.4g}  {p.standard_error:>9.2g}  {p.predicted:>9.4g}"
            rows.append(f"{p.share:>6.1%}{mark}  {measured}  {p.rule}")
        return "\n".join([*rows, "* no other point is better in cost and damage"])


def front(
    curves: Curves,
    cost: Costs,
    *,
    measure: Measure,
    of: Of = "metric",
    budgets: Sequence[float] = BUDGETS,
    objectives: Mapping[str, Objective] | None = None,
    goal: Budget | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Front:
    """Allocate at every budget by every objective, and measure the joint damage of each allocation once.

    The front is that of the points that were measured; between them, and beyond the levels of the curves, there may
    be better ones. The whole network, undamaged, is its first point.

    Args:
        curves: damage of every group alone.
        cost: see `allocate`.
        measure: widths -> joint damage and its standard error, on the same samples each time.
        of: "metric" or "loss": the damage that `measure` gives; single damages are added up in the same unit.
        budgets: fractions of the dense cost, in (0, 1].
        objectives: by name; the least total damage unless others are given.
        goal: which costs are bounded, and in which proportion; multiply-adds unless it is given.
        progress: called with (allocations measured, allocations in all).

    Raises:
        ArgumentError: no curves, a budget outside (0, 1], or an unknown `of`.
        MetricError: `measure` gives no damage with its standard error.

    >>> import numpy as np
    >>> from secateur.types import Curve
    >>> damage = np.array([[0.0], [1.0], [3.0]])
    >>> curves = {"a": Curve("a", (4, 2, 1), (0.0, 0.5, 0.75), damage, damage)}
    >>> found = front(curves, lambda widths: widths["a"], measure=lambda w: (4.0 - w["a"], 0.1), budgets=[0.5, 0.3])
    >>> [(point.share, point.damage) for point in found.best]
    [(1.0, 0.0), (0.5, 2.0), (0.25, 3.0)]
    """
    if not curves or not all(0 < as_number("budget", budget) <= 1 for budget in budgets):
        raise ArgumentError(f"{len(curves)} curves and budgets={tuple(budgets)}: need curves, and budgets in (0, 1]")
    check_of(of)
    rules = objectives or {"least damage": LeastDamage()}
    dense = {name: curve.widths[0] for name, curve in curves.items()}
    wanted = [(rule, budget) for budget in sorted(set(budgets), reverse=True) for rule in rules]
    whole = allocate(curves, cost, fraction_of(cost, goal, dense, 1.0))
    first = next(iter(whole.costs))
    known: dict[tuple[tuple[str, int], ...], tuple[float, float]] = {tuple(sorted(dense.items())): (0.0, 0.0)}
    found: list[tuple[str, float, Allocation, tuple[float, float]]] = []
    if whole.widths == dense:
        found.append(("whole", 1.0, whole, (0.0, 0.0)))
    for number, (rule, budget) in enumerate(wanted, start=1):
        given = allocate(curves, cost, fraction_of(cost, goal, dense, budget), objective=rules[rule])
        key = tuple(sorted(given.widths.items()))
        if given.status is Status.FOUND and key not in known:
            known[key] = measured(measure, given.widths)
            found.append((rule, budget, given, known[key]))
        if progress is not None:
            progress(number, len(wanted))
    full = whole.costs[first]
    places = [(given.costs[first] / full, damage[0]) for _, _, given, damage in found]
    points = [
        Point(
            rule=rule,
            budget=budget,
            share=share,
            damage=damage,
            standard_error=error,
            predicted=_single_damages(curves, given.levels, of),
            allocation=given,
            is_dominated=_is_dominated((share, damage), places),
        )
        for (rule, budget, given, (damage, error)), (share, _) in zip(found, places, strict=True)
    ]
    return Front(tuple(sorted(points, key=lambda point: (-point.share, point.damage))))


def _single_damages(curves: Curves, levels: Mapping[str, int], of: Of) -> float:
    means = {name: curves[name].mean_loss() if of == "loss" else curves[name].mean() for name in levels}
    return float(sum(means[name][level] for name, level in levels.items()))


def _is_dominated(place: tuple[float, float], places: Sequence[tuple[float, float]]) -> bool:
    """Whether some other place is nowhere worse and somewhere better; a network that breaks down is beaten by all."""
    beaten = any(other[0] <= place[0] and other[1] <= place[1] and other != place for other in places)
    return beaten or not math.isfinite(place[1])
