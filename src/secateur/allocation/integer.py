"""Small problems of any shape, exactly: an integer program, with products of choices made linear."""

import itertools
import math
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from secateur.allocation.problem import Levels, Problem
from secateur.types import Floats

MOST_COLUMNS = 5_000
# HiGHS lets a row be broken by 1e-6 of its bound.
MARGINS = (0.0, 2e-6)


def columns(problem: Problem) -> int:
    """How many columns the integer program has."""
    return sum(problem.sizes) + sum(math.prod(problem.sizes[k] for k in scope) for scope in problem.scopes)


def solve_integer(problem: Problem, *, gap: float, limit_s: float) -> tuple[Levels | None, float]:
    """A choice that fits, if one was found in time, and a lower bound on the damage of any.

    A column for each level of each group, and for each combination of levels that a cost ties together; the
    combinations of a scope must add up to the levels (the linearisation of Adams & Sherali 1986), which makes
    them whole when the levels are.
    """
    model = _model(problem)
    scale = max(float(model.damage.sum()), 1e-300)
    bound = 0.0
    for margin in MARGINS:
        found = milp(
            model.damage / scale,
            constraints=model.rows(margin),
            integrality=model.whole,
            bounds=Bounds(0, 1),
            # What was found in a presolved program may break a row of the whole one by rounding. HiGHS mends that, and
            # prints a line about it that no option silences. Without presolving it is as fast here.
            options={"time_limit": max(limit_s, 0.01), "mip_rel_gap": gap, "presolve": False},
        )
        if margin == 0 and found.mip_dual_bound is not None:
            # Rows that may be broken a little make the bound only lower.
            bound = float(found.mip_dual_bound) * scale
        if found.x is None:
            return None, bound
        levels = tuple(int(np.argmax(found.x[first:end])) for first, end in itertools.pairwise(model.first))
        if problem.fits(levels):
            return levels, bound
    return None, bound


@dataclass(frozen=True, eq=False)
class _Rows:
    """Linear rows, entry by entry."""

    entries: list[tuple[int, int, float]] = field(default_factory=list)
    lower: list[float] = field(default_factory=list)
    upper: list[float] = field(default_factory=list)

    def add(self, values: list[tuple[int, float]], lower: float, upper: float) -> None:
        self.entries.extend((len(self.lower), column, value) for column, value in values)
        self.lower.append(lower)
        self.upper.append(upper)


@dataclass(frozen=True, eq=False)
class _Model:
    """The integer program.

    Attributes:
        damage: of each column.
        whole: 1 where a column must be whole.
        first: the column of the first level of each group, and the end of the last one's.
        choices: rows that say what a choice is.
        bounds: rows that say what it may cost, each as a fraction of its bound.
    """

    damage: Floats
    whole: Floats
    first: list[int]
    choices: _Rows
    bounds: _Rows

    def rows(self, margin: float) -> list[LinearConstraint]:
        """All rows, with the bounds drawn in by a margin."""
        return [
            LinearConstraint(
                coo_array(
                    ([e[2] for e in r.entries], ([e[0] for e in r.entries], [e[1] for e in r.entries])),
                    shape=(len(r.lower), len(self.damage)),
                ).tocsr(),
                np.array(r.lower),
                np.array(r.upper) - drawn_in,
            )
            for r, drawn_in in ((self.choices, 0.0), (self.bounds, margin))
        ]


def _model(problem: Problem) -> _Model:
    sizes = problem.sizes
    first = [0, *itertools.accumulate(sizes)]
    shapes = [tuple(sizes[k] for k in scope) for scope in problem.scopes]
    starts = list(itertools.accumulate(map(math.prod, shapes), initial=first[-1]))
    index = {
        scope: np.arange(start, start + math.prod(shape)).reshape(shape)
        for scope, shape, start in zip(problem.scopes, shapes, starts, strict=False)
    }
    index |= {(k,): np.arange(first[k], first[k + 1]) for k in range(len(sizes))}
    choices, bounds = _Rows(), _Rows()
    for position in range(len(sizes)):
        choices.add([(column, 1.0) for column in range(first[position], first[position + 1])], 1.0, 1.0)
    for scope in problem.scopes:
        for axis, position in enumerate(scope):
            for level in range(sizes[position]):
                together = [(int(column), 1.0) for column in index[scope].take(level, axis=axis).ravel()]
                choices.add([*together, (first[position] + level, -1.0)], 0.0, 0.0)
    for parts, bound in zip(problem.costs, problem.bounds, strict=True):
        constant = sum(float(table) for scope, table in parts if not scope)
        values = [
            (int(column), float(value) / bound)
            for scope, table in parts
            if scope
            for column, value in zip(index[scope].ravel(), np.ravel(table), strict=True)
        ]
        bounds.add(values, -np.inf, 1 - constant / bound)
    damage, whole = np.zeros(starts[-1]), np.zeros(starts[-1])
    damage[: first[-1]], whole[: first[-1]] = np.concatenate(problem.damages), 1
    return _Model(damage, whole, first, choices, bounds)
