"""Lagrangian relaxation: costs at a price instead of under a bound, and the best prices."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linprog

from secateur.allocation.problem import Levels, Part, Problem
from secateur.types import Floats

ITERATIONS = 200
Least = Callable[[list[Part]], tuple[Levels, float]]


@dataclass(frozen=True, eq=False)
class Relaxed:
    """What the relaxation gives.

    Attributes:
        bound: no choice within the bounds has less damage.
        multipliers: damage for one unit of each cost, at the best prices found.
        best: the choice with the least damage of those met on the way that fit.
    """

    bound: float
    multipliers: Floats
    best: Levels


def relax(
    problem: Problem,
    least: Least,
    narrowest: Levels,
    deadline: float,
    *,
    start: Floats | None = None,
    enough: float = np.inf,
) -> Relaxed:
    """Raise the lower bound as far as it goes, by cutting planes (Kelley 1960), and keep what fits on the way.

    Args:
        problem: what to solve.
        least: exact minimum of a sum of tables.
        narrowest: a choice that fits.
        deadline: `time.monotonic()` at which to stop.
        start: prices to begin with.
        enough: a bound that need not be raised further.
    """
    scale = max(problem.damage(narrowest), 1e-300)
    met: dict[Levels, tuple[float, Floats]] = {}

    def meet(levels: Levels) -> None:
        met[levels] = problem.damage(levels) / scale, problem.cost(levels) / problem.bounds - 1

    for levels in (tuple(int(d.argmin()) for d in problem.damages), narrowest):
        meet(levels)
    bound, prices = 0.0, np.zeros(len(problem.bounds))
    for _ in range(ITERATIONS):
        ceiling, at = _model(met)
        warm = start is not None
        if start is not None:
            # A choice that is met again ends the search only at prices that the choices so far have led to.
            at, start = start * problem.bounds / scale, None
        levels, value = least(list(problem.weighted(at * scale / problem.bounds)))
        value = value / scale - float(at.sum())
        if value > bound:
            bound, prices = value, at
        known = levels in met
        meet(levels)
        if (known and not warm) or ceiling - bound <= 1e-9 or bound * scale >= enough or time.monotonic() > deadline:
            break
    fitting = [levels for levels, (_, over) in met.items() if (over <= 0).all()]
    best = min(fitting, key=lambda levels: met[levels][0])
    return Relaxed(bound * scale, prices * scale / problem.bounds, best)


def _model(met: dict[Levels, tuple[float, Floats]]) -> tuple[float, Floats]:
    """Highest bound that the choices met so far allow, and the prices there."""
    damage = np.array([d for d, _ in met.values()])
    over = np.array([o for _, o in met.values()])
    count = over.shape[1]
    found = linprog(
        c=np.array([-1.0] + [0.0] * count),
        A_ub=np.column_stack([np.ones(len(damage)), -over]),
        b_ub=damage,
        bounds=[(None, 1e12)] + [(0, 1e9)] * count,
    )
    return float(found.x[0]), np.asarray(found.x[1:])
