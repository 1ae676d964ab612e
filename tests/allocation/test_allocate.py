"""Allocations of real networks' costs, of several bounds, and by every objective."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

import secateur as sc
from networks import CASES, built
from secateur.allocation.allocate import allocate
from secateur.allocation.knapsack import monotone_damage
from secateur.allocation.limits import limits
from secateur.allocation.objectives import EqualDamage, GlobalThreshold, LeastDamage, UniformDensity
from secateur.errors import ArgumentError
from secateur.graph.polynomial import Polynomial
from secateur.types import Budget, Curve, Separable, Status


def curve(name: str, losses, widths) -> Curve:
    table = np.repeat(np.asarray(losses, dtype=float)[:, None], 3, axis=1)
    return Curve(name, tuple(widths), tuple(1 - w / widths[0] for w in widths), table, table)


class Blocks(nn.Module):
    """A stream and two branches that may go."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 8)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 8)) for _ in range(2))
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def levels_of(groups, rng) -> dict[str, Curve]:
    curves = {}
    for group in groups:
        inner = sorted(rng.choice(np.arange(1, group.width + 1), min(3, group.width), replace=False), reverse=True)
        widths = (1, 0) if group.minimum == 0 else (group.width, *(int(w) for w in inner if w < group.width))
        curves[group.name] = curve(group.name, [0, *np.cumsum(rng.exponential(1, len(widths) - 1))], widths)
    return curves


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_the_parts_of_a_cost_add_up_to_it(case) -> None:
    program = sc.trace(built(case), (case.inputs(2),))
    groups = sc.find_groups(program)
    model, rng = sc.costs(program, groups), np.random.default_rng(0)
    curves = levels_of(groups, rng)
    for name, price in model.prices.items():
        assert isinstance(price, Separable)
        parts = price.parts({n: c.widths for n, c in curves.items()})
        for _ in range(5):
            levels = {n: int(rng.integers(len(c.widths))) for n, c in curves.items()}
            total = sum(float(table[tuple(levels[n] for n in scope)]) for scope, table in parts)
            widths = {n: curves[n].widths[level] for n, level in levels.items()}
            counted = {"macs": model.macs, "params": model.params, "memory": model.memory_bytes}[name](widths)
            assert price(widths) == counted
            # Torch's counter leaves out sums over a single position.
            assert total == counted or (total > counted and 1 in widths.values())


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1_000), st.floats(0.15, 1), st.floats(0.15, 1))
def test_branches_and_what_lies_in_them_are_chosen_as_by_enumeration(seed: int, macs: float, params: float) -> None:
    program = sc.trace(Blocks().eval(), (torch.zeros(2, 4),))
    groups = sc.find_groups(program, branches=True)
    assert sum(group.minimum == 0 for group in groups) == 2
    model, rng = sc.costs(program, groups), np.random.default_rng(seed)
    curves = levels_of(groups, rng)
    budget = Budget(macs=macs, params=params)
    found = allocate(curves, model, budget, objective=LeastDamage(gap=0.0, limit_s=30))
    fits = []
    for choice in itertools.product(*(range(len(c.widths)) for c in curves.values())):
        widths = {n: c.widths[k] for (n, c), k in zip(curves.items(), choice, strict=True)}
        if model.macs(widths) <= macs * model.macs({}) and model.params(widths) <= params * model.params({}):
            fits.append(sum(float(c.loss_damage[k, 0]) for c, k in zip(curves.values(), choice, strict=True)))
    if not fits:
        assert found.status is Status.INFEASIBLE
        return
    assert found.status is Status.FOUND
    assert found.costs == {"macs": model.macs(found.widths), "params": model.params(found.widths)}
    assert found.costs["macs"] <= macs * model.macs({}) and found.costs["params"] <= params * model.params({})
    assert found.damage == pytest.approx(min(fits))
    assert found.bound <= found.damage * (1 + 1e-6) and 0 <= found.gap <= 1


NAMES = ("a", "b", "c")
COST = Polynomial({("a",): 3.0, ("a", "b"): 1.0, ("b", "c"): 1.0, ("c",): 5.0}, dict.fromkeys(NAMES, 8))
RULES = {
    "least damage": LeastDamage(),
    "least accuracy": LeastDamage(of="metric"),
    "equal": EqualDamage(),
    "uniform": UniformDensity(),
    "threshold": GlobalThreshold({n: torch.arange(8.0) * (k + 1) for k, n in enumerate(NAMES)}),
}


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from(sorted(RULES)),
    st.lists(st.lists(st.floats(0, 5), min_size=4, max_size=4), min_size=3, max_size=3),
    st.floats(0.05, 1.2),
    st.booleans(),
)
def test_no_objective_exceeds_a_budget(rule: str, losses: list[list[float]], share: float, known: bool) -> None:
    curves = {n: curve(n, [0, *own], (8, 6, 4, 2, 1)) for n, own in zip(NAMES, losses, strict=True)}
    cost = COST if known else COST.__call__
    found = allocate(curves, cost, share * COST({}), objective=RULES[rule])
    narrowest = COST(dict.fromkeys(NAMES, 1))
    assert (found.status is Status.FOUND) == (narrowest <= share * COST({}))
    if found.status is Status.FOUND:
        assert COST(found.widths) == found.cost <= share * COST({})
        best = allocate(curves, COST, share * COST({}), objective=LeastDamage(gap=0.0, limit_s=30))
        if rule != "least accuracy":
            assert best.damage <= found.damage * (1 + 1e-9) + 1e-12
        assert best.bound <= found.damage * (1 + 1e-6) + 1e-12


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.floats(0.01, 5), min_size=4, max_size=4), min_size=3, max_size=3), st.floats(0.2, 1))
def test_equal_damage_stops_every_group_at_one_value(losses: list[list[float]], share: float) -> None:
    curves = {n: curve(n, [0, *np.cumsum(own)], (8, 6, 4, 2, 1)) for n, own in zip(NAMES, losses, strict=True)}
    found = allocate(curves, COST, share * COST({}), objective=EqualDamage())
    if found.status is Status.FOUND and any(found.levels.values()):
        damages = {n: monotone_damage(c) for n, c in curves.items()}
        value = max(damages[n][k] for n, k in found.levels.items())
        assert all(len(damages[n]) == k + 1 or damages[n][k + 1] > value for n, k in found.levels.items())
        lower = {n: int((d < value).sum()) - 1 for n, d in damages.items()}
        assert COST({n: curves[n].widths[k] for n, k in lower.items()}) > share * COST({})


def test_a_global_threshold_keeps_the_units_above_it() -> None:
    curves = {n: curve(n, [0, 1, 2, 3, 4, 5, 6, 7], range(8, 0, -1)) for n in NAMES}
    scores = {"a": torch.arange(8.0), "b": torch.arange(8.0) + 4, "c": torch.full((8,), 20.0)}
    found = allocate(curves, COST, 0.8 * COST({}), objective=GlobalThreshold(scores))
    assert found.status is Status.FOUND and found.widths["c"] == 8
    dropped = {n: sorted(scores[n].tolist())[: 8 - w] for n, w in found.widths.items()}
    kept = {n: sorted(scores[n].tolist())[8 - w :] for n, w in found.widths.items()}
    assert max(itertools.chain(*dropped.values())) < min(itertools.chain(*kept.values()))
    with pytest.raises(ArgumentError, match="no scores for 'a'"):
        allocate(curves, COST, 100.0, objective=GlobalThreshold({}))


def test_budgets_that_do_not_go_with_their_cost_are_refused() -> None:
    curves = {"a": curve("a", [0, 1], (8, 4))}
    program = sc.trace(built(CASES[0]), (CASES[0].inputs(2),))
    model = sc.costs(program, sc.find_groups(program))
    for cost, budget, match in (
        (COST, Budget(macs=0.5), "pass cost=costs"),
        (model, 0.5, "does not say of which cost"),
        (model, Budget(), "bounds nothing"),
        (model, Budget(memory=1.5), "must lie in"),
        (model, Budget(latency=0.5), "was not measured"),
        (model, Budget(latency_s=0.5), "was not measured"),
        (model, Budget(latency_s=-1.0), "above 0"),
        (model, Budget(latency_s="1"), "must be a number"),  # type: ignore[arg-type]
        (model, Budget(macs="half"), r"Budget\(macs\)='half' must be a number"),  # type: ignore[arg-type]
        (COST, "8", "budget='8' must be a number"),
        (COST, float("nan"), "must be a number"),
        (None, 8.0, "cost=None is no cost"),
    ):
        with pytest.raises(ArgumentError, match=match):
            limits(cost, budget)
    with pytest.raises(ArgumentError, match="no curves"):
        allocate({}, COST, 1.0)
    with pytest.raises(ArgumentError, match="'cost' at the widths of the model given=nan must be a number"):
        allocate(curves, lambda widths: float("nan"), 1.0)
    with pytest.raises(ArgumentError, match="'a' starts at 8 units, where the costs have no such group"):
        allocate(curves, model, Budget(macs=0.5))
    [name, *_] = model.groups
    with pytest.raises(ArgumentError, match=f"where the costs have {model.groups[name].width}:"):
        allocate({name: curve(name, [0, 1], (model.groups[name].width + 1, 1))}, model, Budget(macs=0.5))
    with pytest.raises(ArgumentError, match="no group 'other'"):
        sc.costs(program, [sc.Group("other", 3, ())])
    assert curves


def test_objectives_that_cannot_be_followed_are_refused() -> None:
    curves = {"a": curve("a", [0, 1], (8, 4))}
    for objective, match in (
        (lambda: "uniform", "objective='uniform' is none"),
        (lambda: LeastDamage(of="both"), "of='both'"),  # type: ignore[arg-type]
        (lambda: LeastDamage(gap=-1.0), "at least 0"),
        (lambda: EqualDamage(of=""), "of=''"),  # type: ignore[arg-type]
        (lambda: GlobalThreshold({"a": np.array([1.0, np.nan])}), "scores of 'a' must be numbers"),
        (lambda: GlobalThreshold({"a": np.zeros(0)}), "the 0 scores of 'a'"),
    ):
        with pytest.raises(ArgumentError, match=match):
            allocate(curves, lambda widths: widths["a"], 4.0, objective=objective())


def test_a_plan_keeps_the_widths_of_an_allocation() -> None:
    program = sc.trace(Blocks().eval(), (torch.zeros(2, 4),))
    groups = sc.find_groups(program, branches=True, multiple_of=4)
    rng = np.random.default_rng(0)
    scores = {g.name: torch.rand(g.size) for g in groups}
    curves = {
        g.name: curve(g.name, [0, 1], (g.width, 0 if g.minimum == 0 else 4)) for g in groups if rng.random() < 0.9
    }
    found = sc.allocate(curves, sc.costs(program, groups), Budget(params=0.6))
    plan = sc.plan(groups, scores, widths=found.widths)
    assert {name: len(kept) for name, kept in plan.keep.items()} == dict(found.widths)
    assert plan.cost(program).params == found.cost
    for wrong in ({"other": 4}, {"stem": 3}, {"stem": 12}, {groups[1].name: -4}):
        with pytest.raises(ArgumentError, match=r"widths names|cannot keep"):
            sc.plan(groups, scores, widths=wrong)
    for both in ({}, {"sparsity": 0.5, "widths": {"stem": 4}}):
        with pytest.raises(ArgumentError, match="exactly one"):
            sc.plan(groups, scores, **both)


def test_an_allocation_prints_costs_damage_and_widths() -> None:
    curves = {
        name: Curve(name, (4, 2), (0.0, 0.5), np.array([[0.0], [1.0]]), np.array([[0.0], [1.0]]))
        for name in ("a", "long name")
    }
    first, *rows = str(allocate(curves, lambda w: w["a"] + w["long name"], 6.0)).splitlines()
    assert first == "within the budget: cost 6; predicted damage 1"
    assert [row.rsplit(maxsplit=1) for row in rows] in (
        [["a", "2"], ["long name", "4"]],
        [["a", "4"], ["long name", "2"]],
    )
    assert "no choice meets the budget" in str(allocate(curves, lambda w: w["a"] + w["long name"], 3.0))
