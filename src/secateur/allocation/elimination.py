"""The least sum of tables, exactly: one variable after the other is minimised out.

Source: bucket elimination (Dechter 1999, Artificial Intelligence 113). On a chain this is dynamic programming
with the previous level as its state; on a residual stream, all that hangs on the stream goes first.
"""

import heapq
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from secateur.allocation.problem import Levels, Part, Scope
from secateur.types import Floats

LARGEST = 2_000_000
"""Most entries of a table."""


@dataclass(frozen=True)
class Order:
    """In which order variables go.

    Attributes:
        variables: the first goes first.
        scopes: for each of them, the later variables that its table is about, the last to go first.
    """

    variables: tuple[int, ...]
    scopes: tuple[Scope, ...]


def elimination_order(
    sizes: Sequence[int], scopes: Iterable[Scope], *, last: int | None = None, largest: int = LARGEST
) -> Order | None:
    """Variables by the size of the table that they need now, smallest first; None if one has over `largest` entries.

    Args:
        sizes: number of levels of each variable.
        scopes: sets of variables that some table ties together.
        last: the variable that goes last; None: any.
        largest: entries of a table.
    """
    near: dict[int, set[int]] = {k: set() for k in range(len(sizes))}
    for scope in scopes:
        for position in scope:
            near[position] |= set(scope) - {position}

    def entries(position: int) -> int:
        return math.prod(sizes[k] for k in near[position]) * sizes[position]

    waiting = [(k == last, entries(k), k) for k in near]
    heapq.heapify(waiting)
    variables: list[int] = []
    ties: list[set[int]] = []
    while near:
        _, size, position = heapq.heappop(waiting)
        # A variable waits once more whenever its table changes; what it waited with before is out of date.
        if position not in near or size != entries(position):
            continue
        if size > largest:
            return None
        around = near.pop(position)
        for other in around:
            near[other] = (near[other] | around) - {other, position}
        for other in around:
            heapq.heappush(waiting, (other == last, entries(other), other))
        variables.append(position)
        ties.append(around)
    rank = {position: number for number, position in enumerate(variables)}
    return Order(tuple(variables), tuple(tuple(sorted(around, key=lambda k: -rank[k])) for around in ties))


def least(order: Order, sizes: Sequence[int], parts: Iterable[Part]) -> tuple[Levels, float]:
    """The levels at which the sum of `parts` is least, and that sum.

    >>> order = elimination_order([2, 2], [(0, 1)])
    >>> least(order, [2, 2], [((0,), np.array([0.0, 3.0])), ((0, 1), np.array([[5.0, 4.0], [0.0, 2.0]]))])
    ((1, 0), 3.0)
    """
    choices, final = _eliminated(order, sizes, parts)
    levels = [0] * len(sizes)
    for position, around, choice in reversed(list(zip(order.variables, order.scopes, choices, strict=True))):
        levels[position] = int(choice[tuple(levels[k] for k in around)])
    return tuple(levels), float(final.min())


def marginal(order: Order, sizes: Sequence[int], parts: Iterable[Part]) -> Floats:
    """The least sum of `parts` at each level of the last variable of the order."""
    return _eliminated(order, sizes, parts)[1]


def _eliminated(order: Order, sizes: Sequence[int], parts: Iterable[Part]) -> tuple[list[Floats], Floats]:
    """The best level of each variable given later ones, and the least sum at each level of the last."""
    rank = {position: number for number, position in enumerate(order.variables)}
    constant = 0.0
    buckets: list[list[Part]] = [[] for _ in order.variables]
    for scope, table in parts:
        if not scope:
            constant += float(table)
            continue
        # The last to go comes first, so that tables of one bucket differ only by dimensions that they lack.
        axes = sorted(range(len(scope)), key=lambda k: -rank[scope[k]])
        turned = tuple(scope[k] for k in axes)
        buckets[rank[turned[-1]]].append((turned, table if len(axes) == 1 else table.transpose(axes)))
    choices: list[Floats] = []
    whole = np.zeros(1)
    for number, (position, around) in enumerate(zip(order.variables, order.scopes, strict=True)):
        whole = np.zeros([sizes[k] for k in (*around, position)])
        for scope, table in buckets[number]:
            whole += table[tuple(slice(None) if k in scope else None for k in (*around, position))]
        choices.append(whole.argmin(axis=-1))
        message = whole.min(axis=-1)
        if around:
            buckets[rank[around[-1]]].append((around, message))
        elif number + 1 < len(order.variables):
            constant += float(message)
    return choices, whole + constant
