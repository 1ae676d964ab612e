"""Cross-validated thresholds on curves whose truth is known."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn

import secateur as sc
from secateur.allocation.selection import Candidate, select
from secateur.allocation.thresholds import BudgetCurve, choose, cross_validate, folds
from secateur.errors import ArgumentError, MetricError
from secateur.types import Curve


@given(st.integers(2, 60), st.integers(2, 10), st.integers(0, 5))
def test_folds_are_disjoint_and_cover_everything(samples: int, k: int, seed: int) -> None:
    if k > samples:
        with pytest.raises(ArgumentError):
            folds(samples, k, np.random.default_rng(seed))
        return
    parts = folds(samples, k, np.random.default_rng(seed))
    assert sorted(np.concatenate(parts).tolist()) == list(range(samples))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert all((np.diff(p) > 0).all() for p in parts)


def noisy_curves(samples: int, seed: int) -> dict[str, Curve]:
    rng = np.random.default_rng(seed)
    widths = (10, 8, 6, 4, 2)
    found = {}
    for name, slope in (("a", 0.05), ("b", 0.5)):
        mean = slope * (1 - np.array(widths) / 10)
        damage = (rng.random((5, samples)) < mean[:, None]).astype(float)
        damage[0] = 0
        found[name] = Curve(name, widths, tuple(1 - w / 10 for w in widths), damage, damage)
    return found


def cost(widths) -> float:
    return float(sum({"a": 10, "b": 10, **widths}.values()))


def test_each_sample_is_measured_once_by_an_allocation_that_never_saw_it() -> None:
    curves = noisy_curves(50, 0)
    parts = folds(50, 5, np.random.default_rng(0))
    calls: list[tuple[tuple[int, ...], np.ndarray]] = []

    def joint(widths, samples):
        calls.append((tuple(sorted(widths.items())), samples))
        return np.full(len(samples), float(samples[0]))

    found = cross_validate(curves, budgets=[1.0, 0.8, 0.6], cost=cost, joint=joint, folds=parts)
    assert found.budgets == (1.0, 0.8, 0.6)
    expected = sum(float(p[0]) * len(p) for p in parts) / 50
    assert found.mean == pytest.approx([expected] * 3)
    # The same allocation on the same fold is measured once.
    assert len(calls) == len({(w, tuple(s)) for w, s in calls})


def test_predicted_is_the_sum_of_what_other_folds_say_of_each_group() -> None:
    curves = noisy_curves(41, 1)
    parts = folds(41, 4, np.random.default_rng(0))
    expected = []

    def joint(widths, samples):
        others = [k for k in range(41) if k not in samples]
        levels = {name: curve.widths.index(widths[name]) for name, curve in curves.items()}
        expected.append(sum(curves[name].damage[level][others].mean() for name, level in levels.items()))
        return np.full(len(samples), 0.7)

    found = cross_validate(curves, budgets=[0.5], cost=cost, joint=joint, folds=parts)
    assert found.mean == pytest.approx([0.7])
    assert len(set(expected)) > 1
    assert found.predicted == pytest.approx([sum(expected) / 4])
    assert found.interaction == pytest.approx([0.7 - sum(expected) / 4])


def test_budgets_are_of_the_cost_that_the_goal_bounds() -> None:
    # The first group has most of the multiply-adds, the second most of the parameters.
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 3), nn.Flatten(), nn.Linear(32, 20), nn.ReLU(), nn.Linear(20, 40)
    )
    program = sc.trace(model, (torch.zeros(2, 1, 8, 8),))
    groups = [g for g in sc.find_groups(program) if g.name in ("0", "4")]
    price = sc.costs(program, groups)
    rng = np.random.default_rng(0)
    curves = {}
    for group in groups:
        widths = tuple(range(group.width, 0, -1))
        damage = np.arange(group.width)[:, None] * rng.random(12)
        curves[group.name] = Curve(group.name, widths, tuple(1 - w / group.width for w in widths), damage, damage)
    parts = folds(12, 3, np.random.default_rng(0))

    def left(goal) -> tuple[float, float]:
        seen = []

        def joint(widths, samples):
            seen.append((price.macs(widths) / price.macs({}), price.params(widths) / price.params({})))
            return np.zeros(len(samples))

        candidate = Candidate(curves, joint)
        select({"x": candidate}, cost=price, tolerance=1.0, goal=goal, budgets=[0.6], folds=3, refinements=0)
        cross_validate(curves, budgets=[0.6], cost=price, joint=joint, folds=parts, goal=goal)
        assert len(seen) == 6
        return tuple(max(s) for s in zip(*seen, strict=True))

    assert left(None)[0] <= 0.6 < left(None)[1]
    assert left(sc.Budget(params=0.3))[1] <= 0.6 < left(sc.Budget(params=0.3))[0]
    both = left(sc.Budget(macs=0.5, params=0.5))
    assert max(both) <= 0.6


def test_the_error_is_that_of_the_mean_over_all_samples() -> None:
    parts = folds(6, 3, np.random.default_rng(0))
    curves = noisy_curves(6, 1)
    found = cross_validate(curves, budgets=[0.9], cost=cost, joint=lambda w, s: s.astype(float), folds=parts)
    # Of 0 to 5: the sum of squares about 2.5 is 17.5, so the variance is 3.5.
    assert found.mean == pytest.approx([2.5]) and found.standard_error == pytest.approx([(3.5 / 6) ** 0.5])


def test_progress_counts_measurements() -> None:
    parts, told = folds(10, 2, np.random.default_rng(0)), []
    cross_validate(
        noisy_curves(10, 1), budgets=[0.9, 0.8, 0.7], cost=cost, joint=lambda w, s: np.zeros(len(s)), folds=parts,
        progress=lambda done, total: told.append((done, total)),
    )  # fmt: skip
    assert told == [(k, 6) for k in range(1, 7)]


def test_a_budget_that_cannot_be_met_is_left_out() -> None:
    parts = folds(40, 4, np.random.default_rng(0))
    found = cross_validate(
        noisy_curves(40, 1), budgets=[0.9, 0.1], cost=cost, joint=lambda w, s: np.zeros(len(s)), folds=parts
    )
    assert found.budgets == (0.9,)


def test_an_untouched_sample_set_has_no_zero_error() -> None:
    parts = folds(40, 4, np.random.default_rng(0))
    found = cross_validate(
        noisy_curves(40, 1), budgets=[0.9], cost=cost, joint=lambda w, s: np.zeros(len(s)), folds=parts
    )
    assert found.standard_error == pytest.approx([1 / 40])


def picture(mean: list[float], error: list[float]) -> BudgetCurve:
    budgets = tuple(1 - 0.1 * k for k in range(len(mean)))
    return BudgetCurve(budgets, np.array(mean), np.array(error), np.zeros(len(mean)))


def test_the_rule_is_the_most_aggressive_within_before_the_first_failure() -> None:
    curve = picture([0, 0.004, 0.009, 0.002, 0.05], [0.001, 0.002, 0.002, 0.001, 0.01])
    assert choose(curve, 0.01).index == 1
    assert choose(curve, 0.011).index == 3
    assert choose(curve, 0.01, standard_errors=0).index == 3
    assert "0.011" in choose(curve, 0.01).reason


def test_nothing_within_and_nan() -> None:
    assert choose(picture([0.2], [0.1]), 0.01).index is None
    assert choose(picture([float("nan")], [0.0]), 0.01).index is None
    assert choose(picture([0.0, float("inf")], [0.001, 0.0]), 0.01).index == 0


def test_picking_by_the_mean_alone_breaks_the_tolerance_more_often() -> None:
    """On repeated draws of noisy curves the one-standard-error rule holds what the naive rule does not."""
    rng = np.random.default_rng(0)
    truth = np.linspace(0, 0.04, 9)
    tolerance, samples = 0.02, 400
    broken = {0.0: 0, 1.0: 0}
    for _ in range(400):
        draws = rng.binomial(samples, truth) / samples
        error = np.maximum(np.sqrt(draws * (1 - draws) / samples), 1 / samples)
        for k in broken:
            found = choose(
                BudgetCurve(tuple(1 - 0.1 * i for i in range(9)), draws, error, truth), tolerance, standard_errors=k
            )
            broken[k] += truth[found.index or 0] > tolerance + 1e-12
    assert broken[1.0] < 0.15 * 400 < broken[0.0]


def test_the_held_out_fold_has_no_say_in_its_allocation() -> None:
    curves = noisy_curves(40, 1)
    parts = folds(40, 4, np.random.default_rng(0))
    spoilt = {}
    for name, one in curves.items():
        loss = one.loss_damage.copy()
        loss[1:, parts[2]] += 100.0 if name == "a" else 0.0
        spoilt[name] = replace(one, loss_damage=loss)

    def widths_of_fold(given, number: int) -> list[dict[str, int]]:
        seen = []

        def joint(widths, samples):
            if np.array_equal(samples, parts[number]):
                seen.append(dict(widths))
            return np.zeros(len(samples))

        cross_validate(given, budgets=[0.8, 0.5], cost=cost, joint=joint, folds=parts)
        return seen

    assert widths_of_fold(curves, 2) == widths_of_fold(spoilt, 2)
    assert widths_of_fold(curves, 0) != widths_of_fold(spoilt, 0)


def test_a_network_that_gives_nan_ends_the_descent_and_is_not_skipped() -> None:
    """NaN must not be taken for a budget that cannot be met: the milder side of it is where to stop."""
    curves = {
        k: replace(c, damage=np.where(np.arange(5)[:, None] == 2, np.nan, c.damage))
        for k, c in noisy_curves(40, 1).items()
    }
    parts = folds(40, 4, np.random.default_rng(0))
    found = cross_validate(
        curves,
        budgets=[1.0, 0.9, 0.7, 0.5],
        cost=cost,
        joint=lambda w, s: np.full(len(s), np.nan if sum(w.values()) in (13, 14) else 0.0),
        folds=parts,
    )
    assert found.budgets == (1.0, 0.9, 0.7, 0.5)
    assert np.isnan(found.mean[2]) and choose(found, 0.05).budget == 0.9


def test_folds_and_joint_damages_that_do_not_fit_are_refused() -> None:
    curves = noisy_curves(40, 1)
    parts = folds(40, 4, np.random.default_rng(0))
    fine = {"curves": curves, "budgets": [0.9], "cost": cost, "joint": lambda w, s: np.zeros(len(s)), "folds": parts}
    for wrong in (
        {"folds": parts[:3]},
        {"folds": [parts[0], *parts]},
        {"folds": [parts[0], parts[0], *parts[2:]]},
        {"folds": [np.arange(40)]},
    ):
        with pytest.raises(ArgumentError, match="once"):
            cross_validate(**{**fine, **wrong})
    with pytest.raises(ArgumentError, match="fractions of the dense cost"):
        cross_validate(**{**fine, "budgets": [1.2]})
    with pytest.raises(MetricError, match="not one a sample"):
        cross_validate(**{**fine, "joint": lambda w, s: np.zeros(1)})
