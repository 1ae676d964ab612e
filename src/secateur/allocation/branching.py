"""Large problems that turn on a few groups: fix those, and what is left has almost no gap.

The width of a residual stream multiplies the cost of all that reads it, so no price of a unit of cost is right for all
its widths at once. Source: best-first branch and bound (Land & Doig 1960) with Lagrangian bounds.
"""

import heapq
import itertools
import time
from dataclasses import dataclass

import numpy as np

from secateur.allocation.elimination import elimination_order, least, marginal
from secateur.allocation.lagrange import Relaxed, relax
from secateur.allocation.problem import Levels, Problem, fill
from secateur.types import Floats


@dataclass(frozen=True, eq=False)
class _Node:
    """A part of the choices.

    Attributes:
        problem: with a single level left for each group that is fixed.
        fixed: position -> its level.
        multipliers: prices that are good for a problem close to this one.
    """

    problem: Problem
    fixed: dict[int, int]
    multipliers: Floats

    def whole(self, levels: Levels) -> Levels:
        """Levels of the undivided problem."""
        return tuple(self.fixed.get(k, level) for k, level in enumerate(levels))


def branch(problem: Problem, relaxed: Relaxed, best: Levels, *, gap: float, deadline: float) -> tuple[Levels, float]:
    """The best choice found, and a lower bound on the damage of any.

    Args:
        problem: what to solve.
        relaxed: its relaxation.
        best: a choice that fits.
        gap: fraction of the damage that is good enough.
        deadline: `time.monotonic()` at which to stop.
    """
    number = itertools.count()
    waiting = [(relaxed.bound, next(number), _Node(problem, {}, relaxed.multipliers))]
    while waiting and time.monotonic() < deadline:
        bound, _, node = heapq.heappop(waiting)
        goal = problem.damage(best) * (1 - gap)
        if node.fixed and bound < goal:
            node, bound, found = _raised(node, bound, goal, deadline)
            if found is not None and problem.damage(found) < problem.damage(best):
                best, goal = found, problem.damage(found) * (1 - gap)
        position = _most_tied(node.problem)
        if bound >= goal or position is None:
            continue
        for level, value in enumerate(_bounds(node, position)):
            if time.monotonic() > deadline:
                # Its bound still holds for the levels that were not looked at.
                heapq.heappush(waiting, (bound, next(number), node))
                break
            if value < goal:
                part = node.problem.restricted(position, level)
                child = _Node(part, {**node.fixed, position: level}, node.multipliers)
                heapq.heappush(waiting, (max(bound, float(value)), next(number), child))
    # What was dropped was no better than this fraction of a choice that was no better than the best.
    lowest = min((bound for bound, _, _ in waiting), default=np.inf)
    return best, max(relaxed.bound, min(lowest, problem.damage(best) * (1 - gap)))


def _raised(node: _Node, bound: float, goal: float, deadline: float) -> tuple[_Node, float, Levels | None]:
    """The node with its own prices, its own bound, and a choice that fits if there is one."""
    part = node.problem
    narrowest = tuple(size - 1 for size in part.sizes)
    if not part.fits(narrowest):
        return node, np.inf, None
    order = elimination_order(part.sizes, part.scopes)
    assert order is not None
    found = relax(
        part,
        lambda parts: least(order, part.sizes, parts),
        narrowest,
        deadline,
        start=node.multipliers,
        enough=goal,
    )
    raised = _Node(part, node.fixed, found.multipliers) if found.bound > bound else node
    # Filling up may take as long as all else; out of time, what fits is good enough.
    best = found.best if time.monotonic() > deadline else fill(part, found.best)
    return raised, max(bound, found.bound), node.whole(best)


def _bounds(node: _Node, position: int) -> Floats:
    """A lower bound on the damage with each level of one group, at the node's prices."""
    part = node.problem
    order = elimination_order(part.sizes, part.scopes, last=position)
    if order is None:
        return np.full(part.sizes[position], -np.inf)
    table = marginal(order, part.sizes, part.weighted(node.multipliers))
    return np.asarray(table - float(node.multipliers @ part.bounds))


def _most_tied(problem: Problem) -> int | None:
    """The group in the most tables of those that are not fixed; None if all are."""
    free = [position for position, size in enumerate(problem.sizes) if size > 1]
    return max(free, key=lambda k: (len(problem.about[k]), problem.sizes[k]), default=None)
