"""One level for every group: least total damage while no cost is above its bound."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from secateur.types import Floats

Scope = tuple[int, ...]
"""Positions of the groups that a table is about, ascending; one dimension each."""
Levels = tuple[int, ...]
Part = tuple[Scope, Floats]


@dataclass(frozen=True, eq=False)
class Problem:
    """A choice of levels, as tables.

    Attributes:
        damages: of each level of each group.
        costs: for each cost, tables over the levels of a few groups that add up to it.
        bounds: of each cost, positive.
    """

    damages: Sequence[Floats]
    costs: Sequence[Sequence[Part]]
    bounds: Floats

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Number of levels of each group."""
        return tuple(len(damage) for damage in self.damages)

    @cached_property
    def scopes(self) -> tuple[Scope, ...]:
        """Sets of two groups or more that some cost ties together."""
        return tuple(sorted({scope for parts in self.costs for scope, _ in parts if len(scope) > 1}))

    @cached_property
    def about(self) -> tuple[tuple[tuple[int, Scope, Floats], ...], ...]:
        """For each group, (cost, scope, table) of every table that it is in."""
        found: list[list[tuple[int, Scope, Floats]]] = [[] for _ in self.damages]
        for number, parts in enumerate(self.costs):
            for scope, table in parts:
                for position in scope:
                    found[position].append((number, scope, table))
        return tuple(map(tuple, found))

    def damage(self, levels: Levels) -> float:
        """Total damage."""
        return float(sum(damage[level] for damage, level in zip(self.damages, levels, strict=True)))

    def cost(self, levels: Levels) -> Floats:
        """Each cost."""
        return np.array([sum(float(table[tuple(levels[k] for k in s)]) for s, table in parts) for parts in self.costs])

    def fits(self, levels: Levels) -> bool:
        """Whether no cost is above its bound."""
        return bool((self.cost(levels) <= self.bounds).all())

    def changed(self, levels: Levels, position: int) -> Floats:
        """What each cost gains, (costs, levels), at every level of one group while the others stay."""
        rows = np.zeros((len(self.costs), len(self.damages[position])))
        for number, scope, table in self.about[position]:
            rows[number] += table[tuple(slice(None) if k == position else levels[k] for k in scope)]
        return np.asarray(rows - rows[:, [levels[position]]])

    def restricted(self, position: int, level: int) -> "Problem":
        """The problem in which one group has no level but this."""
        damages = list(self.damages)
        damages[position] = damages[position][[level]]
        costs = [
            [(s, np.take(table, [level], axis=s.index(position)) if position in s else table) for s, table in parts]
            for parts in self.costs
        ]
        return Problem(damages, costs, self.bounds)

    def weighted(self, multipliers: Floats) -> Iterator[Part]:
        """Tables that add up to the damage plus each cost times its multiplier."""
        for position, damage in enumerate(self.damages):
            yield (position,), damage
        for multiplier, parts in zip(multipliers, self.costs, strict=True):
            for scope, table in parts:
                yield scope, multiplier * table


def fill(problem: Problem, levels: Levels) -> Levels:
    """Go back to lower levels, one group after the other, while all costs fit, the best change first.

    Best: the most damage spared for the share of the bounds that it takes. What seems to cost nothing is undone too
    where there is room: a removal that is not needed is not made.
    """
    now = list(levels)
    spent = problem.cost(levels)
    waiting = set(range(len(now)))
    moves: dict[int, tuple[float, int, Floats]] = {}
    while True:
        left = problem.bounds - spent
        for position in waiting:
            moves[position] = _best_move(problem, tuple(now), position, left)
        position = max(moves, key=lambda k: (moves[k][0], -k))
        value, level, more = moves[position]
        if value <= 0:
            # Sums carried on from move to move drift where costs are not whole numbers.
            return tuple(now) if problem.fits(tuple(now)) else levels
        now[position] = level
        spent = spent + more
        ties = {other for _, scope, _ in problem.about[position] for other in scope}
        after = problem.bounds - spent
        waiting = ties | {position} | {k for k, move in moves.items() if move[0] > 0 and (move[2] > after).any()}


def _best_move(problem: Problem, levels: Levels, position: int, left: Floats) -> tuple[float, int, Floats]:
    """(Damage spared for its share of the bounds, level, what each cost gains) of the best move of one group."""
    now = levels[position]
    if now == 0:
        return 0.0, now, np.zeros(len(left))
    more = problem.changed(levels, position)[:, :now]
    allowed = (more <= left[:, None]).all(axis=0)
    spared = np.maximum(problem.damages[position][now] - problem.damages[position][:now], 1e-300)
    share = np.maximum((more / problem.bounds[:, None]).max(axis=0), 1e-12)
    value = np.where(allowed, spared / share, 0.0)
    best = int(value.argmax())
    return float(value[best]), best, more[:, best]
