"""Certificates: sizes by full enumeration and simulation, against tests that must fail."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from secateur.allocation.betting import betting_p_value
from secateur.allocation.certificate import certify_agreement, certify_paired
from secateur.allocation.paired_score import exact_p_value, score_statistic as _score
from secateur.allocation.paired_tests import STEP, smallest_certified, tolerances
from secateur.allocation.sample_size import sample_size
from secateur.errors import ArgumentError, DataError, MetricError

ALPHA = 0.05


def outcomes(n: int):
    return [(b, c) for b in range(n + 1) for c in range(n + 1 - b)]


def trinomial(n: int, b: int, c: int, p_b: float, p_c: float) -> float:
    return float(stats.multinomial.pmf([b, c, n - b - c], n, [p_b, p_c, 1 - p_b - p_c]))


@pytest.mark.parametrize(("n", "eps"), [(24, 0.05), (30, 0.1)])
def test_size_by_enumeration_is_at_most_the_level(n: int, eps: float) -> None:
    certified = [(b, c) for b, c in outcomes(n) if exact_p_value(n, b, c, eps) <= ALPHA]
    naive = [(b, c) for b, c in outcomes(n) if (b - c) / n <= eps]
    for discordance in (eps, 0.12, 0.2, 0.5):
        p_b, p_c = (discordance + eps) / 2, (discordance - eps) / 2
        assert sum(trinomial(n, b, c, p_b, p_c) for b, c in certified) <= ALPHA
        # The same check must catch the rule that everybody uses.
        assert sum(trinomial(n, b, c, p_b, p_c) for b, c in naive) > ALPHA


def test_the_tail_probability_is_that_of_full_enumeration() -> None:
    n, eps, b, c = 25, 0.1, 1, 2
    observed = _score(np.array([b]), np.array([c]), n, eps)[0]
    region = [o for o in outcomes(n) if _score(np.array([o[0]]), np.array([o[1]]), n, eps)[0] <= observed + 1e-12]
    total = b + c
    low = max(stats.beta.ppf(0.5e-4, total, n - total + 1), eps)
    high = stats.beta.isf(0.5e-4, total + 1, n - total)
    grid = np.linspace(low, high, 200)
    largest = max(sum(trinomial(n, x, y, (d + eps) / 2, (d - eps) / 2) for x, y in region) for d in grid)
    # Never below the largest, which the grid only approaches, and at most 0.05 % above it.
    assert largest + 1e-4 <= exact_p_value(n, b, c, eps) <= 1.0006 * (largest + 1e-4)


def test_more_losses_never_help() -> None:
    values = [exact_p_value(200, lost, 4, 0.05) for lost in range(0, 40)]
    assert all(b >= a - 1e-12 for a, b in itertools.pairwise(values))


@pytest.mark.parametrize(("discordance", "largest"), [(0.02, 0.0076), (0.05, 0.0062), (0.10, 0.0046)])
def test_largest_certifiable_drop_at_ten_thousand(discordance: float, largest: float) -> None:
    n, total = 10_000, int(10_000 * discordance)

    def p_value(drop: float) -> float:
        lost = (total + round(drop * n)) // 2
        return exact_p_value(n, lost, total - lost, 0.01)

    assert p_value(largest) <= ALPHA < p_value(largest + 0.0004)


def zero_one(n: int, lost: int, gained: int) -> tuple[np.ndarray, np.ndarray]:
    before, after = np.ones(n), np.ones(n)
    after[:lost] = 0
    before[lost : lost + gained] = 0
    return before, after


def test_the_bound_is_the_smallest_tolerance_that_passes() -> None:
    before, after = zero_one(1000, 12, 5)
    found = certify_paired(before, after, tolerance=0.02)
    assert found.guarantee == "exact" and (found.lost, found.gained) == (12, 5)
    assert exact_p_value(1000, 12, 5, found.bound) <= ALPHA < exact_p_value(1000, 12, 5, found.bound / STEP)
    assert found.certified == (found.bound <= 0.02)
    assert found.drop == pytest.approx(0.007)


def test_direction_of_the_metric() -> None:
    before, after = zero_one(500, 10, 0)
    lower = certify_paired(1 - before, 1 - after, tolerance=0.05, higher_is_better=False, metric="error")
    assert lower.lost == 10 and "the error worsens by at most" in lower.sentence()
    assert certify_paired(before, after, tolerance=0.05).lost == 10


def test_betting_is_valid_by_simulation_and_has_power() -> None:
    rng = np.random.default_rng(1)
    eps, n = 0.05, 400
    broken = powered = 0
    for _ in range(600):
        boundary = np.clip(rng.normal(eps, 0.2, n), eps - 0.6, eps + 0.6)
        broken += betting_p_value(boundary, 1.0, eps, ALPHA) <= ALPHA
        fine = np.clip(rng.normal(0, 0.2, n), -0.6, 0.6)
        powered += betting_p_value(fine, 1.0, eps, ALPHA) <= ALPHA
    assert broken / 600 <= ALPHA + 2 * np.sqrt(ALPHA * (1 - ALPHA) / 600)
    assert powered / 600 > 0.5


def test_the_betting_capital_has_mean_one_at_the_boundary() -> None:
    """By enumeration of all outcomes of six two-valued samples."""
    eps, low, high = 0.2, -0.5, 0.9
    weight = (eps - low) / (high - low)
    total = 0.0
    for signs in itertools.product((low, high), repeat=6):
        chance = np.prod([weight if s == high else 1 - weight for s in signs])
        values = (np.array(signs) + 1) / 2
        mean = (eps + 1) / 2
        count = np.arange(1, 7)
        running = (0.5 + np.cumsum(values)) / (count + 1)
        spread = (0.25 + np.cumsum((values - running) ** 2)) / (count + 1)
        before = np.concatenate([[0.25], spread[:-1]])
        bets = np.minimum(0.75 / (1 - mean), np.sqrt(2 * np.log(1 / ALPHA) / (6 * before)))
        capital = np.cumprod(1 - bets * (values - mean))
        assert betting_p_value(np.array(signs), 1.0, eps, ALPHA) == pytest.approx(min(1, 1 / max(capital.max(), 1)))
        total += chance * capital[-1]
    assert total == pytest.approx(1.0)


def test_metrics_without_bounds_are_marked_asymptotic() -> None:
    rng = np.random.default_rng(0)
    before = rng.normal(1, 0.1, 300)
    found = certify_paired(before, before + rng.normal(0.01, 0.05, 300), tolerance=0.05, higher_is_better=False)
    assert found.guarantee == "asymptotic" and "no guarantee" in found.sentence()
    assert found.certified


def test_bounded_metrics_are_bet_on() -> None:
    rng = np.random.default_rng(0)
    before = rng.random(800)
    found = certify_paired(before, np.clip(before - 0.001, 0, 1), tolerance=0.1, bounds=(0, 1))
    assert found.guarantee == "anytime" and found.certified and found.lost is None
    mixed = np.random.default_rng(0).permutation(before - np.clip(before - 0.001, 0, 1))
    assert betting_p_value(mixed, 1.0, found.bound, 1 - 0.95) <= ALPHA


def test_zeros_and_ones_alone_do_not_make_a_metric_binary() -> None:
    """A loss of 100 in one of a thousand samples: a drop of 0.1, which 500 samples miss six times in ten."""
    rng = np.random.default_rng(3)
    wrong = {name: 0 for name in ("bounds", "clip")}
    for _ in range(60):
        after = np.where(rng.random(500) < 0.001, 100.0, 0.0)
        for name, more in (("bounds", {"bounds": (0, 100)}), ("clip", {"clip": 100.0})):
            found = certify_paired(np.zeros(500), after, tolerance=0.09, higher_is_better=False, **more)
            wrong[name] += found.certified
            assert found.guarantee == "anytime"
    assert max(wrong.values()) <= 60 * ALPHA
    known, unknown = (certify_paired(*zero_one(500, 1, 0), tolerance=0.05, bounds=b) for b in ((0, 1), None))
    assert known.guarantee == unknown.guarantee == "exact" and known.bound == unknown.bound
    assert "either 0 or 1" in str(unknown) and "either 0 or 1" not in str(known)


def test_before_and_after_are_means_of_what_is_counted() -> None:
    documents = [0] * 9 + [1]
    found = certify_paired(np.ones(10), np.array([1.0] * 9 + [0.0]), tolerance=None, documents=documents, bounds=(0, 1))
    assert (found.before, found.after, found.drop) == (1.0, 0.5, 0.5)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"tolerance": "0.1"}, "tolerance='0.1' must be a number"),
        ({"tolerance": math.nan}, "tolerance=nan must be a number"),
        ({"confidence": "95%"}, "confidence='95%' must be a number"),
        ({"confidence": 95}, "confidence=95 must lie"),
        ({"clip": "a"}, "clip='a' must be a number"),
        ({"bounds": 3}, "bounds=3 must be two finite numbers"),
        ({"bounds": (1, 0)}, "the least value first"),
    ],
)
def test_what_is_no_number_is_named(more, message) -> None:
    with pytest.raises(ArgumentError, match=message):
        certify_paired(np.ones(10), np.ones(10), **{"tolerance": 0.1, **more})


def test_changed_predictions_are_no_predictions() -> None:
    for given in ([2, 0, 1], [0.5], [np.nan], ["a"]):
        with pytest.raises(DataError):
            certify_agreement(given, tolerance=0.1)
    assert certify_agreement([1, 0, 0], tolerance=None).drop == pytest.approx(1 / 3)


def test_bad_input() -> None:
    good = np.ones(10)
    with pytest.raises(DataError, match="one number a sample"):
        certify_paired(["a"], ["b"], tolerance=0.1)
    with pytest.raises(DataError, match="shapes"):
        certify_paired(good, np.ones(9), tolerance=0.1)
    with pytest.raises(DataError, match="dense model's test metric holds NaN"):
        certify_paired(np.full(10, np.nan), good, tolerance=0.1)
    with pytest.raises(ArgumentError, match="clip"):
        certify_paired(good, good, tolerance=0.1, clip=0.0)
    with pytest.raises(DataError, match="one label for each of the 10 samples"):
        certify_paired(good, good, tolerance=0.1, bounds=(0, 1), documents=[1, 2])
    with pytest.raises(ArgumentError, match="positive"):
        certify_paired(good, good, tolerance=0.0)
    with pytest.raises(ArgumentError, match="largest possible drop"):
        certify_paired(good, good, tolerance=1.0)
    with pytest.raises(ArgumentError, match="confidence"):
        certify_paired(good, good, tolerance=0.1, confidence=1.0)


def test_the_bound_stops_at_the_first_tolerance_that_fails() -> None:
    """The exact p-value need not fall as the tolerance grows: what lies under a failure is not certified."""
    level = 0.075
    assert exact_p_value(12, 1, 2, 0.1829) <= level < exact_p_value(12, 1, 2, 0.1879)
    found = smallest_certified(lambda t: exact_p_value(12, 1, 2, t), [0.3, 0.1879, 0.1829], 1.0, level)
    assert found == 0.3
    assert smallest_certified(lambda t: float("nan"), [0.3], 1.0, level) == 1.0


def test_the_tested_tolerances_descend_and_hold_the_one_asked_for() -> None:
    found = tolerances(2.0, 0.0123)
    assert 0.0123 in found and found == sorted(found, reverse=True)
    assert max(a / b for a, b in itertools.pairwise(found)) <= STEP + 1e-12
    assert found[0] < 2.0 and found[-1] < 2.1e-4


@pytest.mark.slow
def test_coverage_of_the_bound_by_enumeration() -> None:
    n = 9
    bounds = {o: certify_paired(*zero_one(n, *o), tolerance=0.3).bound for o in outcomes(n)}
    for drop in (0.1, 0.1829, 0.1879, 0.3, 0.5, 0.8):
        for discordance in np.linspace(drop, 0.99, 7):
            p_b, p_c = (discordance + drop) / 2, (discordance - drop) / 2
            assert sum(trinomial(n, *o, p_b, p_c) for o, bound in bounds.items() if bound <= drop) <= ALPHA


def test_a_high_confidence_can_be_reached() -> None:
    same = np.ones(3000)
    found = certify_paired(same, same, tolerance=0.01, confidence=0.9995)
    assert found.certified and 0.0 < found.bound < 0.005
    assert "99.95%" in found.sentence()


def test_the_sentence_claims_no_more_than_the_bound() -> None:
    found = certify_paired(*zero_one(1000, 12, 5), tolerance=0.02)
    said = float(found.sentence().split("at most ")[1].split(";")[0])
    assert found.bound <= said < found.bound + 1e-4


def test_the_asymptotic_bound_is_that_of_scipy() -> None:
    rng = np.random.default_rng(2)
    before = rng.normal(1, 0.1, 50)
    after = before - rng.normal(0.02, 0.05, 50)
    expected = stats.ttest_1samp(before - after, 0.0, alternative="less").confidence_interval(0.95).high
    assert certify_paired(before, after, tolerance=0.05).bound == pytest.approx(expected)


def test_one_sample_without_bounds_certifies_nothing() -> None:
    found = certify_paired(np.array([0.5]), np.array([0.5]), tolerance=0.1)
    assert not found.certified and found.bound == np.inf and found.p_value == 1.0


def test_without_a_tolerance_the_bound_alone_is_stated() -> None:
    rng = np.random.default_rng(3)
    noise = rng.normal(0.02, 0.05, 400)
    for before, after, bounds in (
        (*zero_one(400, 6, 2), None),
        (np.full(400, 0.5), np.clip(0.5 - noise, 0, 1), (0.0, 1.0)),
        (np.full(400, 0.5), 0.5 - noise, None),
    ):
        alone = certify_paired(before, after, tolerance=None, bounds=bounds)
        # A tolerance out of reach: the sequence of tested tolerances is cut by nothing that was asked for.
        asked = certify_paired(before, after, tolerance=0.999, bounds=bounds)
        assert alone.certified and alone.p_value is None and alone.tolerance is None
        assert alone.bound == asked.bound
        assert alone.sentence().endswith(" on 400 test samples.") and "tolerance" not in alone.sentence()


def test_without_a_tolerance_no_bound_is_no_certificate() -> None:
    lost = certify_paired(*zero_one(20, 20, 0), tolerance=None)
    assert not lost.certified and lost.bound == 1.0
    assert "20 test samples give no bound on the damage to metric with 95% confidence" in lost.sentence()
    assert not certify_paired(np.array([0.5]), np.array([0.5]), tolerance=None).certified


def test_values_outside_the_bounds_are_refused() -> None:
    half = np.full(20, 0.5)
    with pytest.raises(MetricError, match="outside bounds"):
        certify_paired(half, np.full(20, 7.0), tolerance=0.1, bounds=(0, 1))
    with pytest.raises(ArgumentError, match="least value first"):
        certify_paired(half, half, tolerance=0.1, bounds=(1, 0))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("higher_is_better", [True, False])
def test_what_is_not_finite_is_infinitely_bad(bad: float, higher_is_better: bool) -> None:
    before = np.ones(500)
    after = before.copy()
    after[7] = bad
    for bounds in (None, (0.0, 1.0)):
        found = certify_paired(before, after, tolerance=0.5, bounds=bounds, higher_is_better=higher_is_better)
        assert not found.certified and found.drop == np.inf and found.not_finite == 1 and found.p_value == 1.0
        assert "Nothing is certified" in found.sentence() and "on 1 of 500 test samples" in found.sentence()


def test_a_clip_makes_an_unbounded_loss_a_bounded_one() -> None:
    rng = np.random.default_rng(5)
    before = rng.exponential(2.0, 2000)
    after = before + rng.normal(0, 0.1, 2000)
    after[:3] = [np.inf, np.nan, 1e9]
    found = certify_paired(before, after, tolerance=0.05, higher_is_better=False, clip=1.0, metric="loss")
    assert found.guarantee == "anytime" and found.certified
    # Each of the three counts as +1, never as an improvement.
    rest = np.clip(after[3:] - before[3:], -1, 1)
    assert found.drop == pytest.approx((3 + rest.sum()) / 2000)
    assert "beyond ±1 count as ±1" in str(found)


def test_documents_are_the_units_of_the_test() -> None:
    rng = np.random.default_rng(6)
    documents = np.repeat(rng.permutation(200), 30)
    noise = np.repeat(rng.normal(0, 0.2, 200), 30) + rng.normal(0, 0.05, 6000)
    before = np.full(6000, 3.0)
    found = certify_paired(
        before, before + noise, tolerance=0.1, higher_is_better=False, clip=1.0, documents=documents, metric="loss"
    )
    alone = certify_paired(
        before[:200], before[:200] + noise.reshape(200, 30).mean(1), tolerance=0.1, higher_is_better=False, clip=1.0
    )
    assert found.samples == 200 and found.unit == "documents" and "documents" in found.sentence()
    assert found.bound == alone.bound and found.drop == pytest.approx(alone.drop)
    assert "it is documents that are exchangeable" in str(found)
    # Tokens taken for samples would claim far more than these data can.
    assert certify_paired(before, before + noise, tolerance=0.1, higher_is_better=False, clip=1.0).bound < found.bound


def test_an_order_of_the_file_does_not_matter_to_the_bets() -> None:
    rng = np.random.default_rng(7)
    damage = np.sort(rng.normal(0.0, 0.2, 1500).clip(-1, 1))
    bounds = [certify_paired(np.zeros(1500), -d, tolerance=None, bounds=(-1, 1)).bound for d in (damage, damage[::-1])]
    assert max(bounds) < 0.05


@pytest.mark.parametrize(("samples", "changed"), [(300, 0), (300, 4), (20, 20)])
def test_the_bound_on_disagreement_is_that_of_scipy(samples: int, changed: int) -> None:
    found = certify_agreement(np.arange(samples) < changed, tolerance=0.02)
    interval = stats.binomtest(changed, samples, alternative="less").proportion_ci(0.95, method="exact")
    assert found.bound == pytest.approx(interval.high)
    assert found.certified == (found.bound <= 0.02) == (found.p_value <= ALPHA)
    assert "whatever the labels" in str(found)


def test_what_would_be_needed_is_said() -> None:
    refused = certify_paired(*zero_one(300, 5, 2), tolerance=0.02)
    assert not refused.certified and refused.needed == sample_size(0.02, discordance=7 / 300, drop=0.01)
    assert f"about {refused.needed} samples would be needed" in refused.sentence()
    hopeless = certify_paired(*zero_one(300, 9, 0), tolerance=0.02)
    assert hopeless.needed is None and "no number of samples would do" in hopeless.sentence()
    # The sentence names the smallest tolerance that can be certified in both cases.
    assert f"at most {np.ceil(refused.bound * 1e4) / 1e4:.4f}" in refused.sentence()
