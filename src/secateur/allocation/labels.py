"""A chain, exactly: a constrained shortest path from level to level.

Source: label setting with bounds from the Lagrangian relaxation (Handler & Zang 1980, Networks 10; Dumitrescu &
Boland 2003, Networks 42). A label is a way to choose the levels so far; its damage, what it costs, and the last level
are all that matters for the rest, and most labels cannot lead to anything better than what is known.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from secateur.allocation.problem import Levels, Problem, Scope
from secateur.types import Floats

MOST_LABELS = 400_000
PAIRWISE = 1_500
Integers = NDArray[np.int64]


def chain_order(count: int, scopes: Sequence[Scope]) -> tuple[int, ...] | None:
    """Positions so that only neighbours share a scope; None if there is no such order.

    >>> chain_order(4, [(0, 2), (1, 2)])
    (0, 2, 1, 3)
    """
    near: dict[int, set[int]] = {k: set() for k in range(count)}
    for scope in scopes:
        if len(scope) > 2:
            return None
        near[scope[0]].add(scope[1])
        near[scope[1]].add(scope[0])
    if any(len(around) > 2 for around in near.values()):
        return None
    found: dict[int, None] = {}
    for start in (k for k in range(count) if len(near[k]) < 2):
        at: int | None = None if start in found else start
        while at is not None:
            found[at] = None
            at = next((k for k in near[at] if k not in found), None)
    # What has no end to start from is a ring.
    return tuple(found) if len(found) == count else None


@dataclass(frozen=True, eq=False)
class _Step:
    """One group of the chain.

    Attributes:
        damage: (levels,).
        cost: (costs, levels before, levels): its own, and that with the group before.
        least_cost: (costs, levels): the least that all later groups add.
        least_price: (levels,): the least damage plus priced cost that all later groups add.
    """

    damage: Floats
    cost: Floats
    least_cost: Floats
    least_price: Floats


def solve_chain(
    problem: Problem, order: tuple[int, ...], multipliers: Floats, best: Levels, *, gap: float, deadline: float
) -> tuple[Levels, bool]:
    """The best choice, and whether it is proven that none is better by more than the fraction `gap`.

    Args:
        problem: with tables of neighbours only.
        order: from `chain_order`.
        multipliers: any prices; good ones leave few labels.
        best: a choice that fits.
        gap: labels that could improve on `best` by no more than this fraction are dropped.
        deadline: `time.monotonic()` at which to give up.
    """
    steps, constant = _steps(problem, order, multipliers)
    left = problem.bounds - constant
    goal = problem.damage(best) * (1 - gap)
    slack = 1e-9 * np.abs(problem.bounds)
    damage, spent = np.zeros(1), np.zeros((1, len(left)))
    last: Integers = np.zeros(1, dtype=np.int64)
    trail: list[tuple[Integers, Integers]] = []
    for step in steps:
        if len(last) * len(step.damage) > 20 * MOST_LABELS or time.monotonic() > deadline:
            return best, False
        total = damage[:, None] + step.damage
        costs = spent[:, :, None] + step.cost[:, last].transpose(1, 0, 2)
        fits = (costs + step.least_cost <= (left + slack)[:, None]).all(axis=1)
        lower = total + np.tensordot(costs, multipliers, axes=(1, 0)) + step.least_price - float(multipliers @ left)
        parent, level = np.nonzero(fits & (lower < goal - 1e-12 * max(goal, 1e-300)))
        damage, spent = total[parent, level], costs[parent, :, level]
        if not len(level):
            return best, True
        kept = _undominated(level, damage, spent)
        damage, spent, last = damage[kept], spent[kept], level[kept]
        trail.append((parent[kept], last))
        if len(last) > MOST_LABELS:
            return best, False
    for label in np.argsort(damage, kind="stable"):
        found = _trace_back(problem, order, trail, int(label))
        # Tables add up in another order here: the problem's own sum decides.
        if problem.fits(found):
            return found, True
    return best, True


def _steps(problem: Problem, order: tuple[int, ...], multipliers: Floats) -> tuple[list[_Step], Floats]:
    """The groups in the order of the chain, and what is spent whatever is chosen."""
    place = {position: number for number, position in enumerate(order)}
    sizes = [problem.sizes[position] for position in order]
    before = [1, *sizes[:-1]]
    cost = [np.zeros((len(problem.costs), b, s)) for b, s in zip(before, sizes, strict=True)]
    constant = np.zeros(len(problem.costs))
    for number, parts in enumerate(problem.costs):
        for scope, table in parts:
            if not scope:
                constant[number] += float(table)
            elif len(scope) == 1:
                cost[place[scope[0]]][number] += table
            else:
                first, second = (place[k] for k in scope)
                cost[max(first, second)][number] += table if first < second else table.T
    steps: list[_Step] = []
    least_cost, least_price = np.zeros((len(problem.costs), sizes[-1])), np.zeros(sizes[-1])
    for number in reversed(range(len(order))):
        damage = np.asarray(problem.damages[order[number]], dtype=np.float64)
        steps.append(_Step(damage, cost[number], least_cost, least_price))
        priced = damage + np.tensordot(multipliers, cost[number], axes=1) + least_price
        least_cost = (cost[number] + least_cost[:, None]).min(axis=2)
        least_price = priced.min(axis=1)
    return steps[::-1], constant


def _undominated(level: Integers, damage: Floats, spent: Floats) -> Integers:
    """Positions of labels such that no other of the same level is at least as good in everything."""
    order = np.lexsort((*spent.T, damage, level))
    kept = []
    for part in np.split(order, np.flatnonzero(np.diff(level[order])) + 1):
        if spent.shape[1] == 1:
            before = np.minimum.accumulate(spent[part, 0])[:-1]
            kept.append(part[np.concatenate([[True], spent[part[1:], 0] < before])])
        else:
            kept.append(part[_not_beaten(spent[part])] if len(part) <= PAIRWISE else part)
    return np.concatenate(kept)


def _not_beaten(spent: Floats) -> NDArray[np.bool_]:
    """Of labels in ascending order of damage: those for which no earlier one costs at most as much in everything."""
    below = (spent[:, None, :] <= spent[None, :, :]).all(axis=2)
    return np.asarray(~np.triu(below, k=1).any(axis=0))


def _trace_back(problem: Problem, order: tuple[int, ...], trail: list[tuple[Integers, Integers]], label: int) -> Levels:
    levels = [0] * len(order)
    for position, (parents, chosen) in zip(reversed(order), reversed(trail), strict=True):
        levels[position] = int(chosen[label])
        label = int(parents[label])
    return tuple(levels)
