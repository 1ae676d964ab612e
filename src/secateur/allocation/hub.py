"""One group that ties all others together: at each of its levels the rest falls apart, and is priced by itself.

The width of a residual stream multiplies the cost of everything on it, so no price of a unit of cost is right for all
its widths at once, but each width has a right price. Source: Lagrangian bounds of the multiple-choice knapsack
(Sinha & Zoltners 1979, Operations Research 27), one for each level of the hub, all bisected at once; what they leave
open is closed by dynamic programming over the options that their reduced costs leave (Pisinger 1995, European Journal
of Operational Research 83).
"""

import itertools
import math
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from secateur.allocation.problem import Levels, Problem, Scope, fill
from secateur.types import Floats

MOST_OPTIONS = 1_024
MOST_ENTRIES = 20_000_000
MOST_LABELS = 50_000
HALVINGS = 60
SPAN = 1e8


@dataclass(frozen=True, eq=False)
class _Parts:
    """Components with equally many options.

    Attributes:
        members: positions of the groups of each component.
        sizes: their numbers of levels.
        damage: (components, options).
        cost: (levels of the hub, components, options).
    """

    members: list[Scope]
    sizes: list[tuple[int, ...]]
    damage: Floats
    cost: Floats


@dataclass(frozen=True, eq=False)
class Hub:
    """A problem with one bound, taken apart around one group.

    Attributes:
        position: of the hub.
        parts: what is left, by number of options.
        damage: of each level of the hub.
        cost: of each level of the hub, and all that is constant.
    """

    position: int
    parts: list[_Parts]
    damage: Floats
    cost: Floats


def find_hub(problem: Problem) -> Hub | None:
    """The group around which the problem falls into small components; None if there is none, or several bounds."""
    if len(problem.costs) != 1:
        return None
    position = max(range(len(problem.sizes)), key=lambda k: (len(problem.about[k]), problem.sizes[k]))
    components = _components(problem, position)
    options = [math.prod(problem.sizes[k] for k in members) for members in components]
    if max(options, default=0) > MOST_OPTIONS or problem.sizes[position] * sum(options) > MOST_ENTRIES:
        return None
    home = {k: members for members in components for k in members}
    width = problem.sizes[position]
    cost = np.zeros(width)
    costs = {members: np.zeros((width, *(problem.sizes[k] for k in members))) for members in components}
    for scope, table in problem.costs[0]:
        others = [k for k in scope if k != position]
        if not others:
            cost = cost + table
            continue
        members = home[others[0]]
        axes = sorted(range(len(scope)), key=lambda k: (scope[k] != position, scope[k]))
        shape = [width if position in scope else 1, *(problem.sizes[k] if k in scope else 1 for k in members)]
        costs[members] += table.transpose(axes).reshape(shape)
    by_options: dict[int, list[Scope]] = defaultdict(list)
    for members, count in zip(components, options, strict=True):
        by_options[count].append(members)
    parts = [
        _Parts(
            members=same,
            sizes=[tuple(problem.sizes[k] for k in members) for members in same],
            damage=np.stack([_added([problem.damages[k] for k in members]) for members in same]),
            cost=np.stack([costs[members].reshape(width, -1) for members in same], axis=1),
        )
        for same in by_options.values()
    ]
    return Hub(position, parts, problem.damages[position], cost)


def solve_hub(problem: Problem, hub: Hub, best: Levels, *, gap: float, deadline: float) -> tuple[Levels, float]:
    """The best choice found, and a lower bound on the damage of any.

    Args:
        problem: what to solve.
        hub: from `find_hub`.
        best: a choice that fits.
        gap: fraction of the damage that is good enough.
        deadline: `time.monotonic()` at which to stop.
    """
    bound = float(problem.bounds[0])
    scale = max(float(sum(d.max() for d in problem.damages)), 1e-300) / bound
    low, high = np.full(len(hub.cost), scale / SPAN), np.full(len(hub.cost), scale * SPAN)
    lowest, prices = hub.damage.astype(np.float64).copy(), np.zeros(len(hub.cost))
    cheapest = hub.cost + sum(part.cost.min(axis=2).sum(axis=1) for part in hub.parts)
    lowest[cheapest > bound] = np.inf
    goal = problem.damage(best)
    found: dict[int, tuple[float, Levels]] = {}
    for _ in range(HALVINGS):
        open_ = np.flatnonzero(lowest < goal * (1 - gap))
        if not len(open_) or time.monotonic() > deadline:
            break
        price = np.sqrt(low[open_] * high[open_])
        picks, damage, cost = _at(hub, open_, price)
        value = damage + price * (cost - bound)
        raised = value > lowest[open_]
        lowest[open_[raised]], prices[open_[raised]] = value[raised], price[raised]
        fits = cost <= bound
        high[open_[fits]], low[open_[~fits]] = price[fits], price[~fits]
        for row in np.flatnonzero(fits):
            level = int(open_[row])
            if level not in found or damage[row] < found[level][0]:
                found[level] = float(damage[row]), _levels(problem, hub, level, [pick[row] for pick in picks])
                goal = min(goal, found[level][0])
    for _, levels in sorted(found.values())[:3]:
        # Sums of floats depend on their order: whether it fits is asked of the problem.
        best = _better(problem, best, levels)
    for level in (int(k) for k in np.argsort(lowest)):
        goal = problem.damage(best) * (1 - gap)
        if lowest[level] >= goal or time.monotonic() > deadline:
            break
        closed = _closed(problem, hub, level, prices[level], room=goal - lowest[level], deadline=deadline)
        if closed is None:
            continue
        lowest[level] = goal
        if closed:
            best = _better(problem, best, closed)
            lowest[level] = min(goal, problem.damage(best))
    return best, float(min(lowest.min(), problem.damage(best)))


def _better(problem: Problem, best: Levels, levels: Levels) -> Levels:
    """The better of two choices, the second of which may turn out not to fit: sums of floats depend on their order."""
    return min(best, fill(problem, levels), key=problem.damage) if problem.fits(levels) else best


def _closed(problem: Problem, hub: Hub, level: int, price: float, *, room: float, deadline: float) -> Levels | None:
    """The best choice at one level of the hub whose damage is less than `room` above its bound; () if there is none.

    A choice is above the bound by the sum of its reduced costs at least. None where that leaves too many choices.
    """
    limit = float(problem.bounds[0]) * (1 + 1e-12)
    picks: list[NDArray[np.int64]] = []
    core: list[tuple[int, int, NDArray[np.int64], Floats, Floats, Floats]] = []
    spent, least = float(hub.cost[level]), 0.0
    for number, part in enumerate(hub.parts):
        own = part.cost[level]
        priced = part.damage + price * own
        reduced = priced - priced.min(axis=1, keepdims=True)
        picks.append(priced.argmin(axis=1))
        for row in range(len(own)):
            kept = np.flatnonzero(reduced[row] < room)
            if len(kept) == 1:
                spent += float(own[row, kept[0]])
            else:
                core.append((number, row, kept, own[row, kept], reduced[row, kept], part.damage[row, kept]))
                least += float(own[row, kept].min())
    core.sort(key=lambda c: -float(c[4].max()))
    cost, above, damage = np.array([spent]), np.zeros(1), np.zeros(1)
    trail = []
    for _, _, _, costs, reduced, damages in core:
        least -= float(costs.min())
        total = [np.add.outer(a, b).ravel() for a, b in ((cost, costs), (above, reduced), (damage, damages))]
        parent = np.repeat(np.arange(len(cost)), len(costs))
        option = np.tile(np.arange(len(costs)), len(cost))
        fine = np.flatnonzero((total[1] < room) & (total[0] + least <= limit))
        fine = fine[np.lexsort((total[2][fine], total[0][fine]))]
        before = np.minimum.accumulate(np.concatenate([[np.inf], total[2][fine]]))[:-1]
        fine = fine[total[2][fine] < before]
        if len(fine) == 0:
            return ()
        if len(fine) > MOST_LABELS or time.monotonic() > deadline:
            return None
        cost, above, damage = (values[fine] for values in total)
        trail.append((parent[fine], option[fine]))
    label = int(damage.argmin())
    for (number, row, kept, *_), (parents, options) in zip(reversed(core), reversed(trail), strict=True):
        picks[number][row] = kept[options[label]]
        label = int(parents[label])
    return _levels(problem, hub, level, picks)


def _at(hub: Hub, levels: NDArray[np.int64], price: Floats) -> tuple[list[NDArray[np.int64]], Floats, Floats]:
    """The best option of each component at each level's price, and damage and cost of all of them together."""
    picks, damage, cost = [], hub.damage[levels].astype(np.float64), hub.cost[levels].copy()
    for part in hub.parts:
        own = part.cost[levels]
        pick = (part.damage + price[:, None, None] * own).argmin(axis=2)
        picks.append(pick)
        damage += np.take_along_axis(part.damage[None], pick[..., None], axis=2)[..., 0].sum(axis=1)
        cost += np.take_along_axis(own, pick[..., None], axis=2)[..., 0].sum(axis=1)
    return picks, damage, cost


def _levels(problem: Problem, hub: Hub, level: int, picks: Sequence[NDArray[np.int64]]) -> Levels:
    chosen = [0] * len(problem.sizes)
    chosen[hub.position] = level
    for part, pick in zip(hub.parts, picks, strict=True):
        for members, sizes, option in zip(part.members, part.sizes, pick, strict=True):
            for k, own in zip(members, np.unravel_index(int(option), sizes), strict=True):
                chosen[k] = int(own)
    return tuple(chosen)


def _added(damages: Sequence[Floats]) -> Floats:
    """Damage of every combination of levels, the last group's varying fastest."""
    total = np.zeros(1)
    for damage in damages:
        total = (total[:, None] + damage).ravel()
    return total


def _components(problem: Problem, hub: int) -> list[Scope]:
    """Groups that are still tied together without the hub."""
    root = {k: k for k in range(len(problem.sizes)) if k != hub}

    def find(k: int) -> int:
        while root[k] != k:
            root[k] = root[root[k]]
            k = root[k]
        return k

    for scope in problem.scopes:
        for a, b in itertools.pairwise([k for k in scope if k != hub]):
            root[find(a)] = find(b)
    members: dict[int, list[int]] = defaultdict(list)
    for k in root:
        members[find(k)].append(k)
    return [tuple(sorted(own)) for own in members.values()]
