"""Allocation: which sparsity each group takes so that the cost fits and the predicted damage is least."""

from collections.abc import Sequence

from secateur.allocation.knapsack import monotone_damage
from secateur.allocation.limits import Costs, Limit, limits
from secateur.allocation.objectives import LeastDamage, Objective, Proposal, widths_of
from secateur.errors import ArgumentError, as_number
from secateur.graph.costs import CostModel
from secateur.types import Allocation, Budget, Curves, Status


def allocate(curves: Curves, cost: Costs, budget: Budget | float, *, objective: Objective | None = None) -> Allocation:
    """Choose a level for every group so that no cost is above its bound.

    Args:
        curves: damage of every group alone.
        cost: from `costs(program, groups)`; or a function widths -> cost that does not fall when a width grows.
        budget: bounds in fractions of the dense model's costs; for a function, one bound in its own unit.
        objective: `LeastDamage()` unless another is given: `EqualDamage()`, `GlobalThreshold(scores)` or
            `UniformDensity()`.

    Returns:
        The allocation; with status INFEASIBLE, that of the smallest widths, when none fits.

    Raises:
        ArgumentError: no curves, or curves of other groups than the cost; a budget that does not go with the cost or is
            out of range; a cost that is no number.

    >>> import numpy as np
    >>> from secateur.types import Curve
    >>> damage = {"a": np.array([[0.0], [1.0]]), "b": np.array([[0.0], [3.0]])}
    >>> curves = {name: Curve(name, (4, 2), (0.0, 0.5), d, d) for name, d in damage.items()}
    >>> found = allocate(curves, lambda widths: widths["a"] * widths["b"], 8.0)
    >>> found.widths, found.damage, found.cost
    ({'a': 2, 'b': 4}, 1.0, 8)
    """
    if not curves:
        raise ArgumentError("there are no curves to choose from: scan at least one group")
    if isinstance(cost, CostModel):
        _check_groups(curves, cost)
    bounds = limits(cost, budget)
    dense = {name: curve.widths[0] for name, curve in curves.items()}
    for limit in bounds:
        as_number(f"the cost {limit.name!r} at the widths of the model given", limit.cost(dense))
    return allocate_within(curves, bounds, objective)


def allocate_within(curves: Curves, bounds: Sequence[Limit], objective: Objective | None = None) -> Allocation:
    """Choose a level for every group within bounds that are given one by one; see `allocate`."""
    narrowest = Proposal({name: len(curve.widths) - 1 for name, curve in curves.items()})
    aim = objective or LeastDamage()
    if not callable(aim):
        raise ArgumentError(
            f"objective={aim!r} is none: pass LeastDamage(), EqualDamage(), UniformDensity() or the like"
        )
    found = aim(curves, bounds)
    levels, bound = (found or narrowest).levels, (found or narrowest).bound
    widths = widths_of(curves, levels)
    of = aim.of if isinstance(aim, LeastDamage) else "loss"
    return Allocation(
        levels=dict(levels),
        widths=widths,
        damage=float(sum(monotone_damage(curve, of)[levels[name]] for name, curve in curves.items())),
        costs={limit.name: limit.cost(widths) for limit in bounds},
        status=Status.INFEASIBLE if found is None else Status.FOUND,
        bound=bound,
    )


def _check_groups(curves: Curves, cost: CostModel) -> None:
    for name, curve in curves.items():
        full = cost.groups[name].width if name in cost.groups else None
        if curve.widths[0] != full:
            raise ArgumentError(
                f"the curve of {name!r} starts at {curve.widths[0]} units, where the costs have "
                f"{'no such group' if full is None else full}: scan and price the same groups of the same model"
            )
