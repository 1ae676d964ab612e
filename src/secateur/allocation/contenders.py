"""Which levels a budget turns on: they are worth more samples than the rest of a raced curve.

A race leaves what is far from its boundaries rough, and an allocation picks what happened to come out well: a level
that had luck on few samples is taken, one that had none is not. So damages are lowered by their standard errors, and
the levels that are chosen by them are measured further, until none is chosen that is rough (optimism in the face of
uncertainty: T. L. Lai and H. Robbins, "Asymptotically efficient adaptive allocation rules", 1985; for sets that are
chosen together, W. Chen, Y. Wang and Y. Yuan, "Combinatorial multi-armed bandit", 2013). Luck goes as a level is
measured; a level without it gets its chance as long as its lowered damage could be the best.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from secateur.allocation.allocate import allocate_within
from secateur.allocation.limits import Costs, Limit, limits
from secateur.allocation.objectives import Objective
from secateur.errors import ArgumentError
from secateur.types import Budget, Curve, Curves, Floats, Status


@dataclass(frozen=True, eq=False)
class Contenders:
    """The levels that allocations within some budgets may rest on, and the samples that they should have.

    For `scan(..., racing=..., deepen=Contenders(...))`. Each time it asks for twice the samples that such a level has.

    Attributes:
        cost: see `allocate`.
        budgets: those for which levels will be chosen; of a cost that is a function, bounds in its unit.
        objective: by which they will be chosen.
        standard_errors: by which damages are lowered; 0 asks for what would be chosen now.
        share: of the samples, which is enough for a level. Half of them, drawn at random, miss the mean of all by
            as much as all miss that of the population they come from.

    >>> rough = np.array([[0.0] * 4, [1.0, 3.0, np.nan, np.nan]])
    >>> Contenders(lambda widths: widths["a"], [2.0])({"a": Curve("a", (4, 2), (0, 0.5), rough, rough)})
    {}
    >>> Contenders(lambda widths: widths["a"], [2.0], share=1)({"a": Curve("a", (4, 2), (0, 0.5), rough, rough)})
    {('a', 2): 4}
    """

    cost: Costs
    budgets: Sequence[Budget | float]
    objective: Objective | None = None
    standard_errors: float = 1.0
    share: float = 0.5

    def __post_init__(self) -> None:
        if not isinstance(self.budgets, Sequence) or not self.budgets:
            raise ArgumentError(
                f"budgets={self.budgets!r}: needed a list of those that levels are chosen for, as in [Budget(macs=0.5)]"
            )
        if not 0 < self.share <= 1:
            raise ArgumentError(f"share={self.share} must lie in (0, 1]: the part of the samples that is enough")
        if not 0 <= self.standard_errors < math.inf:
            raise ArgumentError(f"standard_errors={self.standard_errors} must be a number of at least 0")

    def __call__(self, curves: Curves) -> dict[tuple[str, int], int]:
        """Group name and width of each level that should have more samples, and how many; none = all is known."""
        bounds = [limits(self.cost, budget) for budget in self.budgets]
        return contended(curves, bounds, self.objective, standard_errors=self.standard_errors, share=self.share)


def contended(
    curves: Curves,
    bounds: Sequence[Sequence[Limit]],
    objective: Objective | None = None,
    *,
    standard_errors: float = 1.0,
    share: float = 0.5,
) -> dict[tuple[str, int], int]:
    """The same for bounds that are given one by one; each list of them is a budget."""
    hopes = {name: lowered(curve, standard_errors) for name, curve in curves.items()}
    asked: dict[tuple[str, int], int] = {}
    for together in bounds:
        found = allocate_within(hopes, together, objective)
        if found.status is not Status.FOUND:
            continue
        for name, level in found.levels.items():
            seen, enough = int(curves[name].seen()[level]), math.ceil(share * curves[name].damage.shape[1])
            if level and seen < enough:
                asked[name, found.widths[name]] = min(2 * seen, enough)
    return asked


def lowered(curve: Curve, standard_errors: float) -> Curve:
    """The curve as good as it may well be."""
    return replace(
        curve,
        damage=curve.damage - standard_errors * error_of_part(curve.damage)[:, None],
        loss_damage=curve.loss_damage - standard_errors * error_of_part(curve.loss_damage)[:, None],
    )


def error_of_part(values: Floats) -> Floats:
    """Standard error of the mean of what is known of each row, as an estimate of the mean of all of it.

    >>> error_of_part(np.array([[1.0, 3.0, np.nan, np.nan], [1.0, 3.0, 1.0, 3.0]])).tolist()
    [0.7071067811865476, 0.0]
    """
    known = ~np.isnan(values)
    seen = known.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        away = values - (np.where(known, values, 0.0).sum(axis=1) / seen)[:, None]
        variance = np.where(known, away**2, 0.0).sum(axis=1) / (seen - 1)
        error = np.sqrt(variance / seen * (1 - seen / values.shape[1]))
    # Of one value, or of a damage that is not finite, nothing is known; it stays as it is.
    return np.asarray(np.nan_to_num(error, nan=0.0, posinf=0.0))
