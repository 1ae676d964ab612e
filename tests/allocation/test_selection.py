"""Which budget, objective and criterion, on curves whose truth is known."""

from dataclasses import replace

import numpy as np
import pytest

from secateur.allocation.objectives import EqualDamage, LeastDamage, UniformDensity
from secateur.allocation.selection import GRID, Candidate, select
from secateur.allocation.thresholds import BudgetCurve, averaged, choose, merged, refine_budgets
from secateur.errors import ArgumentError
from secateur.types import Curve

WIDTHS = (20, 18, 16, 14, 12, 10, 8, 6, 4, 2)


def cost(widths) -> float:
    return float(sum({"a": 20, "b": 20, **widths}.values()))


def candidate(slopes: dict[str, float], seed: int, samples: int = 400, **more) -> Candidate:
    """0/1 damages that add up: each group spoils each sample with a chance that grows with its sparsity."""
    rng = np.random.default_rng(seed)
    chance = {name: rng.random(samples) for name in slopes}
    curves = {}
    for name, slope in slopes.items():
        damage = np.stack([(chance[name] < slope * (1 - w / 20)).astype(float) for w in WIDTHS])
        curves[name] = Curve(name, WIDTHS, tuple(1 - w / 20 for w in WIDTHS), damage, damage)

    def joint(widths, positions):
        return sum((chance[n][positions] < slopes[n] * (1 - w / 20)).astype(float) for n, w in widths.items())

    return Candidate(curves, joint, **more)


def test_the_better_criterion_wins_and_the_control_is_told_apart() -> None:
    good, bad = {"a": 0.02, "b": 0.4}, {"a": 0.4, "b": 0.4}
    found = select(
        {
            "taylor": candidate(good, 0),
            "random": candidate(bad, 1, objective=UniformDensity(), is_control=True),
        },
        cost=cost,
        tolerance=0.05,
    )
    assert found.name == "taylor" and found.as_good == () and found.tolerance == 0.05
    assert found.choice.budget < found.choices["random"].budget
    assert "measurably better than random" in found.reason and "random reaches" in found.reason
    assert found.choice.budget in found.pictures["random"].budgets


def test_a_control_that_does_as_well_is_said_to() -> None:
    slopes = {"a": 0.1, "b": 0.1}
    same = select(
        {"taylor": candidate(slopes, 0), "magnitude": candidate(slopes, 0, is_control=True)}, cost=cost, tolerance=0.05
    )
    assert same.name == "taylor" and same.as_good == ("magnitude",)
    assert "cannot be told from it" in same.reason
    worse = select(
        {"taylor": candidate({"a": 0.5, "b": 0.5}, 0), "magnitude": candidate(slopes, 1, is_control=True)},
        cost=cost,
        tolerance=0.05,
    )
    assert worse.name == "magnitude" and "a naive rule does best" in worse.reason


def test_a_control_is_as_good_within_as_many_standard_errors_as_are_asked_for() -> None:
    """The control spoils 16 samples of 400 more: 0.04 with a standard error of 0.0098, about four of them."""
    zeros = np.zeros((2, 400))
    curves = {"a": Curve("a", (20, 10), (0.0, 0.5), zeros, zeros)}
    worse = (np.arange(400) < 16).astype(float)
    both = {
        "taylor": Candidate(curves, lambda widths, positions: np.zeros(len(positions))),
        "magnitude": Candidate(curves, lambda widths, positions: worse[positions], is_control=True),
    }
    as_good = {
        errors: select(both, cost=cost, tolerance=1.0, budgets=[0.8], refinements=0, standard_errors=errors).as_good
        for errors in (1.0, 3.9, 4.3)
    }
    assert as_good == {1.0: (), 3.9: (), 4.3: ("magnitude",)}


def test_of_two_that_are_equal_the_one_that_is_no_control_wins() -> None:
    slopes = {"a": 0.1, "b": 0.1}
    both = {"magnitude": candidate(slopes, 0, is_control=True), "taylor": candidate(slopes, 0)}
    found = select(both, cost=cost, tolerance=0.05, budgets=[0.9], refinements=0)
    assert found.name == "taylor" and found.as_good == ("magnitude",)
    assert "magnitude reaches the same at a damage of" in found.reason


def test_at_the_same_budget_the_least_damage_wins() -> None:
    both = {"bad": candidate({"a": 0.1, "b": 0.1}, 0), "good": candidate({"a": 0.01, "b": 0.01}, 0)}
    found = select(both, cost=cost, tolerance=1.0, budgets=[0.9, 0.8], refinements=0)
    assert found.name == "good" and found.choice.damage < found.choices["bad"].damage
    # Neither is a control, and none is said to be as good.
    assert found.as_good == () and "control" not in found.reason and "measurably" not in found.reason


def test_standard_errors_repeats_folds_and_seed_are_those_asked_for() -> None:
    only = candidate({"a": 0.3, "b": 0.3}, 0, samples=40)
    asked: list[int] = []

    def joint(widths, positions):
        asked.append(len(positions))
        return only.joint(widths, positions)

    def found(**more):
        asked.clear()
        chosen = select({"x": Candidate(only.curves, joint)}, cost=cost, tolerance=0.1, refinements=0, **more)
        return chosen.pictures["x"], chosen.choice

    picture, choice = found(budgets=[1, 0.9, 0.8, 0.7], standard_errors=0.0)
    assert choice == choose(picture, 0.1, standard_errors=0.0) != choose(picture, 0.1)
    found(budgets=[0.8], folds=4, repeats=3)
    assert asked == [10] * 12
    means = {float(found(budgets=[0.8], folds=2, seed=seed)[0].mean[0]) for seed in (0, 0, 1, 2, 3)}
    assert 1 < len(means) < 5
    with pytest.raises(ArgumentError, match="once at least"):
        found(repeats=0)


def test_the_objective_is_chosen_too() -> None:
    slopes = {"a": 0.01, "b": 0.5}
    rules = {"least": LeastDamage(), "equal": EqualDamage(), "uniform": UniformDensity()}
    found = select(
        {name: candidate(slopes, 0, objective=rule) for name, rule in rules.items()}, cost=cost, tolerance=0.03
    )
    assert found.name in ("least", "equal")
    assert found.choices["uniform"].budget > found.choice.budget


def test_more_repeats_and_refinement_keep_the_rule() -> None:
    only = candidate({"a": 0.1, "b": 0.3}, 0)
    coarse = select({"x": only}, cost=cost, tolerance=0.05, budgets=[1, 0.8, 0.6, 0.4], refinements=0)
    fine = select({"x": only}, cost=cost, tolerance=0.05, budgets=[1, 0.8, 0.6, 0.4], refinements=3, repeats=2)
    assert coarse.pictures["x"].budgets == (1, 0.8, 0.6, 0.4)
    assert len(fine.pictures["x"].budgets) > 4
    for found in (coarse, fine):
        picture, choice = found.pictures["x"], found.choice
        upper = picture.mean + picture.standard_error
        assert (upper[: choice.index + 1] <= 0.05).all()
        assert choice.index + 1 == len(upper) or upper[choice.index + 1] > 0.05
    careful = select({"x": only}, cost=cost, tolerance=0.05, confidence=0.999, refinements=0)
    assert careful.choice.budget >= select({"x": only}, cost=cost, tolerance=0.05, refinements=0).choice.budget


def test_nothing_within_the_tolerance_is_said_and_mistakes_are_refused() -> None:
    hopeless = select({"x": candidate({"a": 1.0, "b": 1.0}, 0)}, cost=cost, tolerance=1e-4, budgets=[0.5])
    assert hopeless.choice.index is None and hopeless.choice.budget == 1 and "no budget" in hopeless.reason
    for wrong in ({}, {"x": candidate({"a": 1.0}, 0, 40), "y": candidate({"a": 1.0}, 0, 50)}):
        with pytest.raises(ArgumentError, match="same samples"):
            select(wrong, cost=cost, tolerance=0.1)
    with pytest.raises(ArgumentError, match="confidence"):
        choose(BudgetCurve((1.0,), np.zeros(1), np.zeros(1), np.zeros(1)), 0.1, confidence=0.4)


def test_a_control_that_cannot_be_cut_so_far_is_not_said_to_be_worse() -> None:
    slopes = {"a": 0.1, "b": 0.1}
    control = candidate(slopes, 0, is_control=True)
    short = {
        name: replace(
            c, widths=c.widths[:3], sparsities=c.sparsities[:3], damage=c.damage[:3], loss_damage=c.loss_damage[:3]
        )
        for name, c in control.curves.items()
    }
    found = select({"taylor": candidate(slopes, 0), "random": replace(control, curves=short)}, cost=cost, tolerance=0.1)
    assert found.choice.budget < 0.8 and found.as_good == ()
    assert "random cannot be cut to this budget" in found.reason and "better than" not in found.reason


def test_where_nothing_goes_no_rule_is_as_good() -> None:
    hopeless = candidate({"a": 1.0, "b": 1.0}, 0)
    found = select({"x": hopeless, "random": replace(hopeless, is_control=True)}, cost=cost, tolerance=0.0)
    assert found.choice.index is None and found.as_good == ()
    assert "naive" not in found.reason and "better" not in found.reason


@pytest.mark.parametrize(
    "more",
    [
        {"tolerance": -0.1},
        {"tolerance": float("nan")},
        {"tolerance": "0.1"},
        {"standard_errors": -1.0},
        {"confidence": "high"},
        {"folds": 2.5},
        {"folds": "5"},
        {"budgets": []},
        {"budgets": ["half"]},
        {"budgets": [1.5]},
    ],
)
def test_settings_that_mean_nothing_are_named(more) -> None:
    with pytest.raises(ArgumentError, match="budget" if "budgets" in more else next(iter(more))):
        select({"x": candidate({"a": 1.0}, 0, 40)}, cost=cost, **{"tolerance": 0.1, **more})


@pytest.mark.parametrize(("more", "rate"), [({}, 0.159), ({"confidence": 0.95}, 0.05)])
def test_the_true_damage_exceeds_the_tolerance_as_often_as_is_said(more, rate: float) -> None:
    """The least favourable place of the tolerance: right above a budget of the grid the damage is too large."""
    rng = np.random.default_rng(0)
    samples, runs, tolerance = 1000, 500, 0.0149

    def true_damage(budget: float) -> float:
        return 0.06 * (1 - budget) ** 2

    exceeded = 0
    for _ in range(runs):
        lost, gained = rng.random(samples), rng.random(samples) < 0.02

        def measure(budgets, lost=lost, gained=gained):
            ordered = tuple(sorted(budgets, reverse=True))
            rows = np.array([(lost < true_damage(b) + 0.02 * (b < 1)) * 1.0 - gained * (b < 1) for b in ordered])
            error = rows.std(axis=1, ddof=1) / np.sqrt(samples)
            return BudgetCurve(ordered, rows.mean(axis=1), error, np.zeros(len(rows)))

        _, choice = refine_budgets(measure, GRID, lambda c: choose(c, tolerance, **more), refinements=6)
        exceeded += true_damage(choice.budget) > tolerance
    allowed = rate * 7 / 6
    assert allowed / 2 < exceeded / runs <= allowed + 2 * np.sqrt(allowed / runs)


def test_a_confidence_is_the_quantile_of_the_normal_distribution() -> None:
    curve = BudgetCurve((0.9, 0.8), np.array([0.0, 0.01]), np.array([0.01, 0.01]), np.zeros(2))
    # 0.01 + 1.6449 * 0.01 = 0.026449
    assert choose(curve, 0.0265, confidence=0.95).budget == 0.8
    assert choose(curve, 0.0264, confidence=0.95).budget == 0.9


def test_refinement_halves_the_interval_in_which_the_boundary_lies() -> None:
    def measure(budgets):
        mean = np.array([(1 - b) ** 2 for b in sorted(budgets, reverse=True)])
        return BudgetCurve(tuple(sorted(budgets, reverse=True)), mean, np.zeros(len(mean)), mean)

    curve, choice = refine_budgets(measure, [1.0, 0.8, 0.4], lambda c: choose(c, 0.09), refinements=5)
    assert abs(choice.budget - 0.7) <= 0.4 / 2**5 and choice.budget >= 0.7
    assert len(curve.budgets) == 8
    curve, choice = refine_budgets(measure, [0.4], lambda c: choose(c, 0.0901), refinements=1)
    assert curve.budgets == (0.7, 0.4) and choice.budget == 0.7


def test_repetitions_are_averaged_sample_by_sample() -> None:
    rows = np.array([[0.0, 1.0, 2.0], [3.0, 3.0, 6.0]])
    one = BudgetCurve((0.8, 0.5), rows.mean(1), np.zeros(2), np.ones(2), rows)
    two = BudgetCurve((0.5,), np.ones(1), np.zeros(1), np.zeros(1), np.array([[1.0, 1.0, 4.0]]))
    both = averaged([one, two])
    assert both.budgets == (0.5,) and both.samples is not None
    assert (
        both.samples.tolist() == [[2.0, 2.0, 5.0]] and both.mean.tolist() == [3.0] and both.predicted.tolist() == [0.5]
    )
    assert both.standard_error == pytest.approx(np.std([2, 2, 5], ddof=1) / np.sqrt(3))
    assert merged([two, one]).budgets == (0.8, 0.5, 0.5)
