"""The solver: exact where the structure of the costs allows it, and honest about the gap where not."""

import time
from dataclasses import dataclass, replace

import numpy as np

from secateur.allocation.branching import branch
from secateur.allocation.elimination import elimination_order, least
from secateur.allocation.hub import find_hub, solve_hub
from secateur.allocation.integer import MOST_COLUMNS, columns, solve_integer
from secateur.allocation.labels import chain_order, solve_chain
from secateur.allocation.lagrange import relax
from secateur.allocation.problem import Levels, Problem, fill


@dataclass(frozen=True)
class Solution:
    """A choice of levels.

    Attributes:
        levels: one for each group.
        bound: no choice that fits has less damage than this.
    """

    levels: Levels
    bound: float


def is_solvable(problem: Problem) -> bool:
    """Whether the solver can take the costs as they are: few enough groups are tied together at once."""
    return elimination_order(problem.sizes, problem.scopes) is not None


def solve(problem: Problem, *, gap: float = 1e-6, limit_s: float = 2.5) -> Solution | None:
    """The choice with the least damage within all bounds; None if the last levels do not fit.

    A Lagrangian relaxation first: its lower bound is exact for the priced problem, by elimination. What it leaves
    open is closed by constrained shortest paths on a chain and by an integer program elsewhere, in what is left
    of the time; the bound says how far from the best the answer can be.

    Args:
        problem: levels of each group in ascending order of damage; the last ones cost least.
        gap: fraction of the damage that is good enough.
        limit_s: seconds after which the best so far is given.
    """
    narrowest = tuple(size - 1 for size in problem.sizes)
    if not problem.fits(narrowest):
        return None
    free = (0,) * len(problem.sizes)
    if problem.fits(free):
        return Solution(free, problem.damage(free))
    found = _solve(problem, narrowest, gap, time.monotonic() + limit_s)
    return Solution(fill(problem, found.levels), found.bound)


def _solve(problem: Problem, narrowest: Levels, gap: float, deadline: float) -> Solution:
    order = elimination_order(problem.sizes, problem.scopes)
    assert order is not None
    relaxed = relax(problem, lambda parts: least(order, problem.sizes, parts), narrowest, deadline)
    best = fill(problem, relaxed.best)
    if _is_closed(problem.damage(best), relaxed.bound, gap):
        return Solution(best, relaxed.bound)
    chain = chain_order(len(problem.sizes), problem.scopes)
    if chain is not None:
        better, proven = solve_chain(problem, chain, relaxed.multipliers, best, gap=gap, deadline=deadline)
        return Solution(better, max(relaxed.bound, problem.damage(better) * (1 - gap)) if proven else relaxed.bound)
    hub = find_hub(problem)
    if hub is not None:
        best, bound = solve_hub(problem, hub, best, gap=gap, deadline=deadline)
        relaxed = replace(relaxed, bound=max(bound, relaxed.bound), best=best)
        if _is_closed(problem.damage(best), relaxed.bound, gap):
            return Solution(best, relaxed.bound)
    if columns(problem) > MOST_COLUMNS:
        better, bound = branch(problem, relaxed, best, gap=gap, deadline=deadline)
        return Solution(better, bound)
    found, bound = solve_integer(problem, gap=gap, limit_s=deadline - time.monotonic())
    better = min((levels for levels in (best, found) if levels is not None), key=problem.damage)
    return Solution(better, float(np.clip(bound, relaxed.bound, problem.damage(better))))


def _is_closed(damage: float, bound: float, gap: float) -> bool:
    return damage - bound <= gap * damage
