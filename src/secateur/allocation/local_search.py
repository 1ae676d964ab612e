"""Verified local search: swaps of one level, kept where the *measured* joint damage says so.

Single damages do not add up at high sparsity, so the least sum of them is not the least joint damage.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from secateur.allocation.knapsack import Of, monotone_damage
from secateur.allocation.limits import Costs, Limit, holds, limits
from secateur.allocation.objectives import check_of, widths_of
from secateur.errors import ArgumentError, MetricError, as_number
from secateur.types import Allocation, Budget, Curves

Measure = Callable[[Mapping[str, int]], tuple[float, float]]
"""Widths -> joint damage with all groups cut at once, and its standard error."""


@dataclass(frozen=True)
class Step:
    """A swap that was measured.

    Attributes:
        wider: the group that got a level back; empty where none did.
        narrower: the group that lost one; empty where none did.
        damage: measured joint damage after it.
        standard_error: of the damage.
        kept: whether the search went on from there.
    """

    wider: str
    narrower: str
    damage: float
    standard_error: float
    kept: bool


@dataclass(frozen=True)
class Refined:
    """Where the search ended.

    Attributes:
        allocation: the best allocation that was measured; its `damage` is the sum of single damages, in the
            unit of the measured ones.
        start: measured joint damage of the allocation given, and its standard error.
        damage: measured joint damage.
        standard_error: of the damage.
        steps: every swap that was measured, in order.
    """

    allocation: Allocation
    start: tuple[float, float]
    damage: float
    standard_error: float
    steps: tuple[Step, ...]

    def __str__(self) -> str:
        """What the search brought, in a sentence."""
        kept = sum(step.kept for step in self.steps)
        return (
            f"local search: {kept} of {len(self.steps)} swaps kept, joint damage {self.start[0]:.4g} -> "
            f"{self.damage:.4g} ± {self.standard_error:.2g}; the sum of single damages is "
            f"{self.allocation.damage:.4g}, so that interaction is {self.interaction:+.4g}"
        )

    @property
    def interaction(self) -> float:
        """Measured joint damage minus the sum of single damages."""
        return self.damage - self.allocation.damage


def refine(
    allocation: Allocation,
    curves: Curves,
    cost: Costs,
    budget: Budget | float,
    *,
    measure: Measure,
    of: Of = "loss",
    measurements: int = 50,
    standard_errors: float = 0.0,
) -> Refined:
    """Try swaps of one level, most promising first, and keep those with less measured joint damage.

    A swap gives one group a level back and, where the budget asks for it, takes one from another. The most
    promising has the largest fall of the sum of single damages; a swap that was measured is not measured again
    from the same place. As in SPDY and EvoPress (Frantar & Alistarh 2022, arXiv:2201.13096; Sieberling et al.
    2024, arXiv:2410.14649), what is compared is measured on the same samples each time.

    Args:
        allocation: where to start, within the budget.
        curves: those that it was made from.
        cost: see `allocate`.
        budget: see `allocate`; never exceeded.
        measure: widths -> joint damage and its standard error, on the same samples each time.
        of: "loss" or "metric": the damage that `measure` gives. Single damages are added up in the same unit, to
            order the swaps and for the interaction.
        measurements: how often `measure` is called at most.
        standard_errors: a swap must be better by so many standard errors of the damage after it.

    Raises:
        ArgumentError: fewer than one measurement, an allocation that does not fit the budget, or an unknown `of`.
        MetricError: `measure` gives NaN for the allocation given, or no damage with its standard error.
    """
    return refine_within(
        allocation,
        curves,
        limits(cost, budget),
        measure=measure,
        of=of,
        measurements=measurements,
        standard_errors=standard_errors,
    )


def refine_within(
    allocation: Allocation,
    curves: Curves,
    bounds: Sequence[Limit],
    *,
    measure: Measure,
    of: Of = "loss",
    measurements: int = 50,
    standard_errors: float = 0.0,
) -> Refined:
    """Swaps within bounds that are given one by one; see `refine`."""
    if not as_number("standard_errors", standard_errors) >= 0:
        raise ArgumentError(f"standard_errors={standard_errors} must be at least 0: a swap that is worse is not kept")
    if not as_number("measurements", measurements) >= 1:
        raise ArgumentError(f"measurements={measurements} must be at least 1: the start is measured too")
    if not holds(bounds, allocation.widths):
        raise ArgumentError("the allocation is not within the budget; allocate with this budget first")
    check_of(of)
    damages = {name: monotone_damage(curve, of).tolist() for name, curve in curves.items()}
    levels, first = dict(allocation.levels), _total(damages, allocation.levels)
    start = best = measured(measure, allocation.widths)
    if math.isnan(start[0]):
        raise MetricError("the joint damage of the allocation is NaN; measure must give a number")
    steps: list[Step] = []
    known = {tuple(levels.items())}
    improved = True
    while improved and len(steps) + 1 < measurements:
        improved = False
        for wider, narrower, after in _swaps(levels, damages, curves, bounds):
            if tuple(after.items()) in known:
                continue
            if len(steps) + 1 >= measurements:
                break
            known.add(tuple(after.items()))
            damage, error = measured(measure, widths_of(curves, after))
            improved = damage + standard_errors * error < best[0]
            steps.append(Step(wider, narrower, damage, error, improved))
            if improved:
                levels, best = after, (damage, error)
                break
    found = Allocation(
        levels=levels,
        widths=widths_of(curves, levels),
        damage=_total(damages, levels),
        costs={limit.name: limit.cost(widths_of(curves, levels)) for limit in bounds},
        # A bound in another unit says nothing of this sum.
        bound=allocation.bound if math.isclose(first, allocation.damage) else 0.0,
    )
    return Refined(found, start, *best, tuple(steps))


def measured(measure: Measure, widths: Mapping[str, int]) -> tuple[float, float]:
    """What `measure` gives for these widths.

    Raises:
        MetricError: it is not a damage and its standard error.
    """
    given = measure(widths)
    try:
        damage, error = given
        return float(damage), float(error)
    except (TypeError, ValueError) as cause:
        raise MetricError(f"measure gave {given!r}; it must give the joint damage and its standard error") from cause


def _total(damages: Mapping[str, Sequence[float]], levels: Mapping[str, int]) -> float:
    return sum(damages[name][level] for name, level in levels.items())


def _swaps(
    levels: Mapping[str, int], damages: Mapping[str, Sequence[float]], curves: Curves, bounds: Sequence[Limit]
) -> Iterator[tuple[str, str, dict[str, int]]]:
    """Swaps that fit, by the change in the sum of single damages: those that promise most first."""
    up = {name: damages[name][k - 1] - damages[name][k] for name, k in levels.items() if k > 0}
    down = {name: damages[name][k + 1] - damages[name][k] for name, k in levels.items() if k + 1 < len(damages[name])}
    pairs = [(change, name, "") for name, change in up.items()]
    pairs += [(change, "", name) for name, change in down.items()]
    pairs += [(up[a] + down[b], a, b) for a in up for b in down if a != b]
    for _, wider, narrower in sorted(pairs):
        after = dict(levels)
        if wider:
            after[wider] -= 1
        if narrower:
            after[narrower] += 1
        if holds(bounds, widths_of(curves, after)):
            yield wider, narrower, after
