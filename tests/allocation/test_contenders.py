"""What contenders ask for is enough for the allocation that all samples would give, and less than all samples."""

from itertools import combinations, product

import numpy as np
import pytest

from secateur.allocation.allocate import allocate
from secateur.allocation.contenders import Contenders, error_of_part, lowered
from secateur.allocation.objectives import LeastDamage
from secateur.errors import ArgumentError
from secateur.types import Budget, Curve, Curves

WIDTHS, SAMPLES, FIRST = (6, 5, 4, 3, 2, 1), 256, 16


PRICES = {"a": 1, "b": 2, "c": 3, "d": 4}


class Weighted:
    """A cost that is a sum of parts."""

    def __call__(self, widths) -> float:
        return sum(PRICES[name] * width for name, width in widths.items())

    def parts(self, levels):
        return [((name,), PRICES[name] * np.array(own, dtype=float)) for name, own in levels.items()]


cost = Weighted()


def population(seed: int) -> dict[str, Curve]:
    """Four groups whose damage rises with sparsity, on samples that differ much more than levels do."""
    rng = np.random.default_rng(seed)
    found = {}
    for name in "abcd":
        means = np.concatenate([[0.0], np.cumsum(rng.uniform(0.2, 1.0, 5))])
        noise = rng.normal(size=(6, SAMPLES))
        noise -= noise.mean(axis=1, keepdims=True)
        noise[0] = 0
        damage = means[:, None] + 2 * noise
        found[name] = Curve(name, WIDTHS, tuple(1 - w / 6 for w in WIDTHS), damage, damage)
    return found


def part(curves: Curves, seen: dict[tuple[str, int], int]) -> dict[str, Curve]:
    """The first samples of each level."""
    found = {}
    for name, curve in curves.items():
        damage = curve.damage.copy()
        for row, width in enumerate(curve.widths[1:], 1):
            damage[row, seen[name, width] :] = np.nan
        found[name] = Curve(name, curve.widths, curve.sparsities, damage, damage)
    return found


def deepened(curves: Curves, asks: Contenders) -> dict[tuple[str, int], int]:
    """Give what is asked for until nothing is; samples of each level."""
    seen = {(name, width): FIRST for name, curve in curves.items() for width in curve.widths[1:]}
    while asked := asks(part(curves, seen)):
        assert all(seen[place] < samples <= SAMPLES for place, samples in asked.items())
        seen |= asked
    return seen


def true_damage(curves: Curves, widths) -> float:
    return sum(curve.mean_loss()[curve.widths.index(widths[name])] for name, curve in curves.items())


def best_of_all(curves: Curves, bound: float) -> float:
    """The least damage within a bound, by enumeration."""
    choices = np.array(list(product(range(6), repeat=4)))
    damage = sum(curve.mean_loss()[choices[:, k]] for k, curve in enumerate(curves.values()))
    price = sum(PRICES[name] * np.array(WIDTHS)[choices[:, k]] for k, name in enumerate(curves))
    return float(damage[price <= bound].min())


def test_what_is_asked_for_gives_the_allocation_of_all_samples() -> None:
    right, rough, samples = 0, 0, []
    bound = 0.6 * cost(dict.fromkeys("abcd", 6))
    for seed in range(12):
        curves = population(seed)
        seen = deepened(curves, Contenders(cost, [bound], LeastDamage(), standard_errors=3.0, share=1.0))
        best = 1.001 * best_of_all(curves, bound)  # the solver's gap
        right += true_damage(curves, allocate(part(curves, seen), cost, bound).widths) <= best
        rough += true_damage(curves, allocate(part(curves, dict.fromkeys(seen, FIRST)), cost, bound).widths) <= best
        samples.append(sum(seen.values()) / (len(seen) * SAMPLES))
    assert right == 12
    assert rough <= 6
    assert np.mean(samples) < 0.75


def test_levels_have_their_share_and_no_more_is_asked_for() -> None:
    curves = population(0)
    bound = 0.6 * cost(dict.fromkeys("abcd", 6))
    asks = Contenders(cost, [bound, 10.0], standard_errors=0.0, share=0.3)
    seen = deepened(curves, asks)
    assert max(seen.values()) == 77  # 0.3 of 256, rounded up
    known = part(curves, seen)
    for budget in (bound, 10.0):
        for name, width in allocate(known, cost, budget).widths.items():
            assert width == 6 or seen[name, width] == 77
    # What no budget can meet turns on nothing.
    assert Contenders(cost, [3.0], share=1.0)(part(curves, dict.fromkeys(seen, FIRST))) == {}


def test_a_level_that_lacks_one_sample_is_asked_for_and_one_that_lacks_none_is_not() -> None:
    for seen, asked in ((3, {("a", 2): 4}), (4, {})):
        row = [1.0, 3.0, 2.0, 2.0][:seen] + [np.nan] * (6 - seen)
        damage = np.array([[0.0] * 6, row])
        curve = Curve("a", (4, 2), (0, 0.5), damage, damage)
        # Four of six samples are enough; twice three would be more than that.
        assert Contenders(lambda widths: widths["a"], [2.0], share=0.6)({"a": curve}) == asked


def test_the_error_of_a_part_is_that_over_all_draws_without_replacement() -> None:
    values = np.array([0.0, 1.0, 1.0, 4.0, 7.0, -3.0])
    draws = [values[list(chosen)] for chosen in combinations(range(6), 4)]
    true = np.mean([(draw.mean() - values.mean()) ** 2 for draw in draws])
    rows = np.array([[*draw, np.nan, np.nan] for draw in draws])
    assert np.mean(error_of_part(rows) ** 2) == pytest.approx(true)


def test_single_values_and_infinite_damage_stay_as_they_are() -> None:
    damage = np.array([[0.0, 0.0, 0.0], [2.0, np.nan, np.nan], [1.0, np.inf, np.nan], [1.0, 3.0, np.nan]])
    curve = Curve("a", (4, 3, 2, 1), (0, 0.25, 0.5, 0.75), damage, 10 * damage)
    found = lowered(curve, 2.0)
    np.testing.assert_array_equal(found.damage[:3], damage[:3])
    error = np.sqrt(2 / 2 * (1 - 2 / 3))
    np.testing.assert_allclose(found.damage[3], damage[3] - 2 * error)
    np.testing.assert_allclose(found.loss_damage[3], 10 * (damage[3] - 2 * error))


def test_settings_out_of_range() -> None:
    for bad, word in (
        ({"budgets": ()}, "budgets"),
        ({"budgets": Budget(macs=0.5)}, "needed a list"),
        ({"budgets": (1.0,), "share": 0.0}, "share"),
        ({"budgets": (1.0,), "share": 1.1}, "share"),
        ({"budgets": (1.0,), "standard_errors": -1.0}, "standard_errors"),
    ):
        with pytest.raises(ArgumentError, match=word):
            Contenders(cost, **bad)
