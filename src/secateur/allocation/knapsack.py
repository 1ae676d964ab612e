"""Knapsacks: least damage under a cost that is known only by its values, and the same density for all."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from secateur.errors import ArgumentError, BudgetError
from secateur.types import Curve, Curves, Floats

CostFunction = Callable[[Mapping[str, int]], float]
Of = Literal["loss", "metric"]
Levels = dict[str, int]
BUCKETS = 2_000
PASSES = 8


def search_knapsack(curves: Curves, damages: Mapping[str, Floats], budget: float, cost: CostFunction) -> Levels | None:
    """Levels with little total damage under a cost of which nothing is known but its value; None if none fits.

    The cost of neighbours multiplies (inputs times outputs), so a separable knapsack is solved on costs
    taken around the present choice, again and again, and its nominal budget is bisected until the true
    cost fits; what is left of the budget is spent on the dearest removals. The true cost never exceeds
    the budget.

    Source: multiple-choice knapsack by dynamic programming as in SPDY (Frantar & Alistarh 2022,
    arXiv:2201.13096), with costs rounded up.

    Args:
        curves: whose widths are to be chosen from.
        damages: of each level of each group.
        budget: bound on `cost`, in its unit.
        cost: widths (units kept in a row of each group) -> cost; must not fall when a width grows.
    """
    cost = remembered(cost)
    narrowest = {name: len(curve.widths) - 1 for name, curve in curves.items()}
    if cost(_widths(curves, narrowest)) > budget:
        return None
    best = narrowest
    for start in (dict.fromkeys(curves, 0), narrowest):
        best = _better(_search(curves, damages, budget, cost, start), best, damages)
    return _fill(curves, damages, budget, cost, best)


def monotone_damage(curve: Curve, of: Of = "loss") -> Floats:
    """Mean damage at each level, made to rise with sparsity and to start at 0.

    >>> curve = Curve("a", (3, 2, 1), (0, 1/3, 2/3), np.zeros((3, 2)), np.array([[0., 0.], [2., 2.], [1., 1.]]))
    >>> monotone_damage(curve).tolist()
    [0.0, 1.5, 1.5]
    """
    values = curve.mean_loss() if of == "loss" else curve.mean()
    # A network that breaks down gives infinity: worse than anything finite, and finite to add up.
    finite = values[np.isfinite(values)]
    values = np.where(np.isfinite(values), values, 10 * max(1.0, float(finite.max(initial=0.0))))
    rising = isotonic_regression(np.asarray(values[1:])).x if len(values) > 1 else np.zeros(0)
    return np.concatenate([[0.0], np.maximum(rising, 0.0)])


def multiple_choice_knapsack(
    damages: Sequence[Floats], costs: Sequence[Floats], budget: float, *, buckets: int = BUCKETS
) -> list[int] | None:
    """One choice from each list: least total damage with a total cost of at most `budget`.

    Costs are rounded up to `buckets` equal parts of the budget, so the budget is never exceeded.

    Args:
        damages: of every choice of each list; infinity marks a choice that is never taken.
        costs: alike, not negative.
        budget: in the unit of the costs.
        buckets: parts that the budget is divided into; more find tighter fits.

    Returns:
        The chosen indices; None when nothing fits.

    Raises:
        ArgumentError: a damage that is NaN, or a cost that is NaN or negative.

    >>> costs = [np.array([4.0, 2.0]), np.array([4.0, 2.0])]
    >>> multiple_choice_knapsack([np.array([0.0, 5.0]), np.array([0.0, 1.0])], costs, 6.1)
    [0, 1]
    """
    if not damages:
        return []
    if any(np.isnan(d).any() for d in damages) or not all((np.asarray(c) >= 0).all() for c in costs):
        raise ArgumentError("the knapsack needs damages without NaN and costs of at least 0: drop the broken choices")
    if not budget >= 0:
        return None
    slots = [_slots(np.asarray(c, dtype=np.float64), budget, buckets) for c in costs]
    best = np.full(buckets + 1, np.inf)
    best[0] = 0.0
    picks: list[NDArray[np.int64]] = []
    for damage, slot in zip(damages, slots, strict=True):
        best, pick = _add_choice(best, np.asarray(damage), slot)
        picks.append(pick)
    if not np.isfinite(best).any():
        return None
    return _trace_back(int(np.argmin(best)), picks, slots)


def uniform_allocation(
    full: Mapping[str, int],
    budget: float,
    cost: CostFunction,
    *,
    multiple_of: Mapping[str, int] | None = None,
    minimum: Mapping[str, int] | None = None,
    removable: Sequence[str] = (),
) -> dict[str, int]:
    """The same density for every group, as nearly as whole units allow: the largest that fits `budget`.

    Groups of one unit that may go count together as one: the density is that of them all. What rounding down leaves
    of the budget is spent on one more unit (or multiple) for a group at a time.

    Args:
        full: units in a row of each group.
        budget: bound on `cost`, in its unit.
        cost: widths -> cost.
        multiple_of: group -> what its width must be a multiple of.
        minimum: group -> its least width.
        removable: the groups of one unit that may go, in the order in which they go.

    Raises:
        BudgetError: not even the least width of each group (one unit, one multiple, its minimum) fits.

    >>> uniform_allocation({"a": 10, "b": 10}, 9, lambda w: w["a"] + w["b"])
    {'a': 5, 'b': 4}
    >>> uniform_allocation({"a": 1, "b": 1}, 1, lambda w: w["a"] + w["b"], removable=["b", "a"])
    {'a': 1, 'b': 0}
    """
    multiples, least = multiple_of or {}, minimum or {}

    def at(density: float) -> dict[str, int]:
        return {
            name: min(size, max(least.get(name, 1), _width(size, density, multiples.get(name, 1))))
            for name, size in full.items()
        } | dict.fromkeys(removable[: math.floor(round(len(removable) * (1 - density), 9))], 0)

    if cost(at(0.0)) > budget:
        raise BudgetError(f"one unit in each group costs {cost(at(0.0)):g}, the budget is {budget:g}: raise it")
    low, high = 0.0, 1.0
    if cost(at(1.0)) <= budget:
        return at(1.0)
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(at(middle)) <= budget else (low, middle)
    widths = at(low)
    for name, size in full.items():
        more = {**widths, name: min(size, widths[name] + multiples.get(name, 1))}
        widths = more if cost(more) <= budget else widths
    return widths


def remembered(cost: CostFunction) -> CostFunction:
    """The same cost, asked only once for each choice of widths."""
    known: dict[tuple[tuple[str, int], ...], float] = {}

    def look_up(widths: Mapping[str, int]) -> float:
        key = tuple(sorted(widths.items()))
        if key not in known:
            known[key] = cost(widths)
        return known[key]

    return look_up


def _slots(costs: Floats, budget: float, buckets: int) -> NDArray[np.int64]:
    """Costs in buckets, rounded up; one more than there are for what does not fit at all."""
    fits = costs <= budget
    share = np.divide(costs, budget, out=np.zeros_like(costs), where=fits & (costs > 0))
    return np.where(fits, np.ceil(np.round(share * buckets, 9)), buckets + 1).astype(np.int64)


def _width(size: int, density: float, multiple: int) -> int:
    return min(size, max(multiple, math.floor(round(size * density, 9) / multiple) * multiple))


def _add_choice(best: Floats, damage: Floats, slot: NDArray[np.int64]) -> tuple[Floats, NDArray[np.int64]]:
    """Best damage at each spent cost once one more list has chosen, and what it chose."""
    table = np.full((len(damage), len(best)), np.inf)
    for k, spent in enumerate(slot):
        if spent < len(best):
            table[k, spent:] = best[: len(best) - spent] + damage[k]
    pick = table.argmin(axis=0)
    return table[pick, np.arange(len(best))], pick.astype(np.int64)


def _trace_back(at: int, picks: list[NDArray[np.int64]], slots: list[NDArray[np.int64]]) -> list[int]:
    chosen = []
    for pick, slot in zip(reversed(picks), reversed(slots), strict=True):
        chosen.append(int(pick[at]))
        at -= int(slot[chosen[-1]])
    return chosen[::-1]


def _widths(curves: Curves, levels: Levels) -> dict[str, int]:
    return {name: curves[name].widths[level] for name, level in levels.items()}


def _search(
    curves: Curves, damages: Mapping[str, Floats], budget: float, cost: CostFunction, levels: Levels
) -> Levels | None:
    """Solve around the present choice, and move the nominal budget by what the true cost says."""
    best: Levels | None = None
    for _ in range(PASSES):
        costs, base = _separable(curves, cost, levels)
        low, high = 0.0, 2.0
        step: Levels | None = None
        for _ in range(12):
            nominal = (low + high) / 2
            choice = multiple_choice_knapsack([damages[n] for n in curves], costs, nominal * budget - base)
            found = dict(zip(curves, choice, strict=True)) if choice is not None else None
            if found is not None and cost(_widths(curves, found)) <= budget:
                low, step = nominal, found
            elif found is None:
                low = nominal
            else:
                high = nominal
        improved = _better(step, best, damages) if best is not None else step
        if step is None or improved is best:
            return best
        best = levels = improved if improved is not None else step
    return best


def _separable(curves: Curves, cost: CostFunction, levels: Levels) -> tuple[list[Floats], float]:
    """What each level of each group adds when the others stay, and what is spent whatever is chosen."""
    widths = _widths(curves, levels)
    rows = [_row(cost, widths, curve) for curve in curves.values()]
    now = cost(widths)
    least = [row.min() for row in rows]
    return [row - low for row, low in zip(rows, least, strict=True)], now - sum(now - low for low in least)


def _row(cost: CostFunction, widths: Mapping[str, int], curve: Curve) -> Floats:
    """Cost of each level of one group while the others stay.

    Most costs are straight lines in one width, so when two widths within lie on the line between the ends
    the rest is not asked for: a call may be slow, and the true cost decides in the end.
    """

    def at(width: int) -> float:
        return cost({**widths, curve.group: width})

    every = np.array(curve.widths)
    wide, narrow = curve.widths[0], curve.widths[-1]
    if len(every) > 4:
        line = at(narrow) + (at(wide) - at(narrow)) / (wide - narrow) * (every - narrow)
        if all(math.isclose(at(curve.widths[k]), line[k], rel_tol=1e-9) for k in (1, len(every) // 2)):
            return np.asarray(line)
    return np.array([at(width) for width in curve.widths], dtype=np.float64)


def _total(levels: Levels, damages: Mapping[str, Floats]) -> float:
    return float(sum(damages[name][level] for name, level in levels.items()))


def _better(a: Levels | None, b: Levels | None, damages: Mapping[str, Floats]) -> Levels:
    if a is None or b is None:
        found = a if b is None else b
        assert found is not None
        return found
    return a if _total(a, damages) < _total(b, damages) else b


def _fill(curves: Curves, damages: Mapping[str, Floats], budget: float, cost: CostFunction, levels: Levels) -> Levels:
    """Undo removals while the budget allows, the one that spares the most damage for its cost first."""
    levels = dict(levels)
    changed = True
    while changed:
        changed = False
        left = budget - cost(_widths(curves, levels))
        for more, name, lower in _undoings(curves, damages, cost, levels):
            if lower >= levels[name] or more > left * (1 + 1e-9):
                continue
            now = cost(_widths(curves, {**levels, name: lower}))
            if now <= budget:
                levels[name], left, changed = lower, budget - now, True
    return levels


def _undoings(
    curves: Curves, damages: Mapping[str, Floats], cost: CostFunction, levels: Levels
) -> list[tuple[float, str, int]]:
    """(cost, group, lower level) of every removal that can be undone, the best damage spared for its cost first.

    The cost of one level is asked for, that of more is extrapolated: whatever fits, its first level fits too.
    """
    now = cost(_widths(curves, levels))
    found = []
    for name, level in levels.items():
        if level == 0:
            continue
        widths, damage = curves[name].widths, damages[name]
        step = cost(_widths(curves, {**levels, name: level - 1})) - now
        for lower in range(level):
            more = step * (widths[lower] - widths[level]) / (widths[level - 1] - widths[level])
            found.append(((damage[level] - damage[lower]) / max(more, 1e-12), -lower, more, name))
    return [(more, name, -negative) for _, negative, more, name in sorted(found, reverse=True)]
