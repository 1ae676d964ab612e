"""The measured front against enumeration."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

import secateur as sc
from secateur.allocation.front import front
from secateur.allocation.objectives import EqualDamage, LeastDamage, UniformDensity
from secateur.errors import ArgumentError, MetricError
from secateur.graph.polynomial import Polynomial
from secateur.types import Curve

NAMES = ("a", "b", "c")
WIDTHS = (8, 6, 4, 2)
COST = Polynomial({("a", "b"): 1.0, ("b", "c"): 2.0}, dict.fromkeys(NAMES, 8))
RULES = {"least": LeastDamage(), "equal": EqualDamage(), "uniform": UniformDensity()}


def curves_of(seed: int) -> dict[str, Curve]:
    rng = np.random.default_rng(seed)
    tables = {n: np.concatenate([[0.0], np.cumsum(rng.exponential(1, 3))])[:, None].repeat(2, 1) for n in NAMES}
    return {n: Curve(n, WIDTHS, tuple(1 - w / 8 for w in WIDTHS), t, t) for n, t in tables.items()}


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_marked_points_are_those_that_nothing_beats(seed: int) -> None:
    rng = np.random.default_rng(seed)
    noise = {}

    def measure(widths):
        key = tuple(widths.values())
        assert key not in noise, "each allocation is measured once"
        noise[key] = float(rng.integers(0, 6))
        return noise[key], 0.5

    found = front(curves_of(seed), COST, measure=measure, budgets=[0.9, 0.6, 0.5, 0.3, 0.001], objectives=RULES)
    assert all(p.share <= p.budget and p.allocation.cost == COST(p.allocation.widths) for p in found.points)
    assert found.points[0].rule == "whole" and found.points[0].damage == 0
    assert [p.share for p in found.points] == sorted((p.share for p in found.points), reverse=True)
    for p in found.points:
        beaten = any(
            o.share <= p.share and o.damage <= p.damage and (o.share < p.share or o.damage < p.damage)
            for o in found.points
        )
        assert p.is_dominated == beaten
    limit = 2.5
    fine = [p.share for p in found.points if p.damage + p.standard_error <= limit]
    chosen = found.within(limit)
    assert chosen is not None and chosen.share == min(fine)
    assert found.within(-1) is None
    assert str(found).count("*") == len(found.best) + 1


def test_nan_is_beaten_by_all_and_progress_counts() -> None:
    seen = []
    found = front(
        curves_of(0),
        COST,
        measure=lambda widths: (float("nan"), 0.0),
        budgets=[0.5, 0.4],
        progress=lambda done, total: seen.append((done, total)),
    )
    assert [p.rule for p in found.best] == ["whole"]
    assert found.within(10.0) is found.points[0]
    assert seen == [(1, 2), (2, 2)]
    for wrong in ({"budgets": [1.5]}, {"curves": {}}):
        with pytest.raises(ArgumentError, match="need curves"):
            front(**{"curves": curves_of(0), "cost": COST, "measure": lambda w: (0.0, 0.0), **wrong})


def test_a_point_that_is_known_better_may_be_within_where_a_better_one_is_not() -> None:
    def measure(widths):
        return (1.0, 0.5) if widths["a"] == 1 else (1.1, 0.1)

    zeros = np.zeros((3, 2))
    found = front(
        {"a": Curve("a", (4, 2, 1), (0.0, 0.5, 0.75), zeros, zeros)},
        lambda widths: widths["a"], measure=measure, budgets=[0.5, 0.25],
    )  # fmt: skip
    assert [point.share for point in found.best] == [1.0, 0.25]
    assert [found.within(damage).share for damage in (1.5, 1.25, 1.0)] == [0.25, 0.5, 1.0]
    assert found.within(-0.1) is None


def test_what_was_predicted_is_in_the_unit_of_what_was_measured() -> None:
    """Loss damages 10 and 20 where the metric loses 0.1 and 0.3 a group; the levels are chosen by the loss."""
    metric = np.array([[0.0, 0.0], [0.1, 0.1], [0.2, 0.4]])
    loss = np.array([[0.0, 0.0], [10.0, 10.0], [20.0, 20.0]])
    curves = {name: Curve(name, (4, 2, 1), (0.0, 0.5, 0.75), metric, loss) for name in "ab"}
    more = {"measure": lambda widths: (0.35, 0.01), "budgets": [0.5, 0.25]}
    found = front(curves, lambda widths: float(sum(widths.values())), **more)
    assert [point.predicted for point in found.points] == pytest.approx([0.0, 0.2, 0.6])
    assert [line.split()[3] for line in str(found).splitlines()[1:4]] == ["0", "0.2", "0.6"]
    by_loss = front(curves, lambda widths: float(sum(widths.values())), of="loss", **more)
    assert [point.predicted for point in by_loss.points] == [0.0, 20.0, 40.0]
    assert [point.allocation.damage for point in found.points] == [0.0, 20.0, 40.0]
    with pytest.raises(ArgumentError, match="of='accuracy' is not known"):
        front(curves, lambda widths: 1.0, of="accuracy", **more)


def test_the_standard_error_counts_in_what_is_within() -> None:
    zeros = np.zeros((3, 2))
    found = front(
        {"a": Curve("a", (4, 2, 1), (0.0, 0.5, 0.75), zeros, zeros)}, lambda widths: widths["a"],
        measure=lambda widths: (0.01, 0.001 if widths["a"] == 2 else 0.02), budgets=[0.5, 0.25],
    )  # fmt: skip
    # 0.01 + 0.02 at a quarter, 0.01 + 0.001 at half.
    assert [found.within(damage).share for damage in (0.03, 0.02, 0.011, 0.0105)] == [0.25, 0.5, 0.5, 1.0]


def test_what_is_no_budget_goal_or_damage_is_named() -> None:
    curves, price = curves_of(0), lambda widths: float(sum(widths.values()))
    for more, error, match in (
        ({"budgets": ["half"]}, ArgumentError, "budget='half' must be a number"),
        ({"measure": lambda widths: 1.0}, MetricError, "measure gave 1.0"),
    ):
        with pytest.raises(error, match=match):
            front(curves, price, **{"measure": lambda widths: (1.0, 0.1), "budgets": [0.6], **more})
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    program = sc.trace(model, (torch.zeros(1, 3),))
    costs = sc.costs(program, sc.find_groups(program))
    zeros = np.zeros((2, 3))
    one = {"0": Curve("0", (4, 2), (0.0, 0.5), zeros, zeros)}
    with pytest.raises(ArgumentError, match="bounds nothing"):
        front(one, costs, measure=lambda widths: (1.0, 0.1), goal=sc.Budget())
