"""The number of samples: the exact test has about the power that was asked for with it."""

import numpy as np
import pytest
from scipy import stats

from secateur.allocation.betting import log_capital
from secateur.allocation.paired_score import exact_p_value
from secateur.allocation.sample_size import betting_size, mean_size, sample_size, share_size
from secateur.errors import ArgumentError


def exact_power(n: int, tolerance: float, discordance: float, drop: float) -> float:
    """Probability of a pass: the largest number of losses that passes, for each number of discordant pairs."""
    power = 0.0
    spread = 5 * np.sqrt(n * discordance)
    for total in range(max(0, int(n * discordance - spread)), int(n * discordance + spread)):
        low, high = -1, total
        while low < high:
            middle = (low + high + 1) // 2
            passes = exact_p_value(n, middle, total - middle, tolerance, enough=0.05) <= 0.05
            low, high = (middle, high) if passes else (low, middle - 1)
        share = (discordance + drop) / (2 * discordance)
        power += stats.binom.pmf(total, n, discordance) * stats.binom.cdf(low, total, share)
    return power


@pytest.mark.parametrize(
    ("tolerance", "discordance", "drop"),
    [(0.05, 0.1, 0.0), pytest.param(0.01, 0.05, 0.0, marks=pytest.mark.slow), (0.03, 0.05, 0.01)],
)
def test_the_exact_power_with_so_many_samples_is_the_one_asked_for(tolerance, discordance, drop) -> None:
    n = sample_size(tolerance, discordance=discordance, drop=drop)
    assert exact_power(n, tolerance, discordance, drop) == pytest.approx(0.8, abs=0.03)


def test_close_to_the_published_table() -> None:
    published = {(0.05, 0.0): 3092, (0.05, 0.005): 12366, (0.02, 0.0): 1237, (0.02, 0.005): 4947}
    for (discordance, drop), n in published.items():
        assert sample_size(0.01, discordance=discordance, drop=drop) == pytest.approx(n, rel=0.15)


def test_means_and_shares_by_simulation() -> None:
    rng = np.random.default_rng(0)
    n = betting_size(0.0, 0.2**2, 1.0, 0.03, 0.05)
    won = [log_capital(rng.normal(0, 0.2, n).clip(-1, 1), 1.0, 0.03, 0.05).max() >= np.log(20) for _ in range(400)]
    # The bets need some samples to learn the spread, and may win before the last one.
    assert np.mean(won) == pytest.approx(0.8, abs=0.08)
    n = mean_size(0.03, 0.2**2, 0.05)
    upper = stats.ttest_1samp(rng.normal(0, 0.2, (2000, n)), 0.03, axis=1, alternative="less").pvalue <= 0.05
    assert upper.mean() == pytest.approx(0.8, abs=0.03)
    n = share_size(0.03, 0.015, 0.05)
    passes = stats.binom.cdf(np.arange(n + 1), n, 0.03) <= 0.05
    assert stats.binom.pmf(np.arange(n + 1), n, 0.015)[passes].sum() == pytest.approx(0.8, abs=0.05)


def test_no_number_is_enough_at_the_tolerance() -> None:
    assert sample_size(0.01, discordance=0.1, drop=0.01) is None
    assert share_size(0.01, 0.01, 0.05) is None and mean_size(-1.0, 1.0, 0.05) is None


def test_bad_input() -> None:
    with pytest.raises(ArgumentError, match="discordance"):
        sample_size(0.01, discordance=0.01, drop=0.02)
    with pytest.raises(ArgumentError, match="tolerance='1%' must be a number"):
        sample_size("1%", discordance=0.1)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="discordance=None must be a number"):
        sample_size(0.01, discordance=None)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="power=1"):
        sample_size(0.01, discordance=0.1, power=1.0)


@pytest.mark.parametrize("mean", [0.0, 0.0016, -0.003])
def test_bets_need_samples_to_learn_that_damages_hardly_vary(mean: float) -> None:
    """Damages of almost no variance: the normal approximation alone would say one sample."""
    rng = np.random.default_rng(1)
    n = betting_size(mean, 1e-8, 2.0, 0.05, 0.05)
    assert n is not None

    def wins(count: int) -> bool:
        return bool(log_capital(rng.normal(mean, 1e-4, count), 2.0, 0.05, 0.05).max() >= np.log(20))

    assert wins(int(1.3 * n)) and not wins(int(0.9 * n))
