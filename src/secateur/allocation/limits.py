"""What a budget bounds, as functions of the widths."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from secateur.errors import ArgumentError, as_number
from secateur.graph.costs import CostModel
from secateur.types import Budget, Separable

CostFunction = Callable[[Mapping[str, int]], float]
Costs = CostModel | Separable | CostFunction


@dataclass(frozen=True, eq=False)
class Limit:
    """A cost and what it must not exceed.

    Attributes:
        name: "macs", "params", "memory", "latency", or "cost" for a function.
        cost: widths -> cost.
        bound: in the unit of the cost.
    """

    name: str
    cost: CostFunction
    bound: float

    def holds(self, widths: Mapping[str, int]) -> bool:
        """Whether the cost is within the bound."""
        return self.cost(widths) <= self.bound


def limits(cost: Costs, budget: Budget | float) -> tuple[Limit, ...]:
    """Every bound of a budget.

    Raises:
        ArgumentError: a budget that bounds nothing, that does not go with the cost, or that is out of range.

    >>> [found] = limits(lambda widths: 2.0 * widths["a"], 6.0)
    >>> found.holds({"a": 3}), found.holds({"a": 4})
    (True, False)
    """
    if not isinstance(cost, CostModel):
        if isinstance(budget, Budget):
            raise ArgumentError(f"{budget} goes with the costs of a model: pass cost=costs(program, groups)")
        if not callable(cost):
            raise ArgumentError(f"cost={cost!r} is no cost: pass costs(program, groups), or a function of the widths")
        return (Limit("cost", cost, as_number("budget", budget)),)
    if not isinstance(budget, Budget):
        raise ArgumentError(f"budget={budget} does not say of which cost: pass Budget(macs=...) or the like")
    check_budget(budget)
    prices = cost.prices
    wanted = budget.fractions()
    if (wanted.keys() | ({"latency"} if budget.latency_s is not None else set())) - prices.keys():
        raise ArgumentError(
            "the budget bounds the latency, which was not measured: pass latency_costs(program, groups)"
        )
    found = [Limit(name, prices[name], bound * prices[name]({})) for name, bound in wanted.items()]
    if budget.latency_s is not None:
        found.append(Limit("latency", prices["latency"], budget.latency_s))
    return tuple(found)


def check_budget(budget: Budget) -> None:
    """Refuse a budget that bounds nothing, or by what is no fraction.

    Raises:
        ArgumentError: such a budget.
    """
    fractions = budget.fractions()
    if not fractions and budget.latency_s is None:
        raise ArgumentError("the budget bounds nothing; pass Budget(macs=0.5), Budget(params=0.5) or both")
    for name, value in fractions.items():
        if not 0 < as_number(f"Budget({name})", value) <= 1:
            raise ArgumentError(f"Budget({name}={value}) must lie in (0, 1]: a fraction of the dense model's cost")
    if budget.latency_s is not None and not as_number("Budget(latency_s)", budget.latency_s) > 0:
        raise ArgumentError(f"Budget(latency_s={budget.latency_s}) must be above 0: seconds of a call")


def fraction_of(cost: Costs, goal: Budget | None, dense: Mapping[str, int], fraction: float) -> Budget | float:
    """The budget at which the smallest bound of `goal` is `fraction`, and the others are in proportion.

    Args:
        cost: what is bounded.
        goal: proportions of the bounds; multiply-adds alone unless it is given. A function has but one bound.
        dense: widths of the model given.
        fraction: of the dense cost.

    Raises:
        ArgumentError: a goal that bounds nothing, or by what is no fraction.

    >>> fraction_of(lambda widths: 10.0 * widths["a"], None, {"a": 4}, 0.5)
    20.0
    """
    if not isinstance(cost, CostModel):
        return fraction * cost(dense)
    goal = goal or Budget(macs=1.0)
    check_budget(goal)
    return scaled(as_fractions(cost, goal), fraction)


def as_fractions(cost: CostModel, budget: Budget) -> Budget:
    """The budget with seconds told as a fraction of the dense model's."""
    if budget.latency_s is None or cost.latency is None:
        return budget
    fraction = budget.latency_s / cost.latency({})
    return replace(budget, latency_s=None, latency=min(fraction, budget.latency or fraction))


def scaled(budget: Budget, fraction: float) -> Budget:
    """The budget with its smallest fraction made `fraction` and the others in proportion, at most 1.

    >>> scaled(Budget(macs=0.5, params=0.25), 0.5).fractions()
    {'macs': 1.0, 'params': 0.5}
    """
    factor = fraction / min(budget.fractions().values())
    return replace(budget, **{name: min(bound * factor, 1.0) for name, bound in budget.fractions().items()})


def holds(bounds: Sequence[Limit], widths: Mapping[str, int]) -> bool:
    """Whether all costs are within their bounds."""
    return all(limit.holds(widths) for limit in bounds)
