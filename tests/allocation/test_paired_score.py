"""The exact test: the bound on the largest probability is one, and a close one."""

import numpy as np
import pytest
from scipy import stats

from secateur.allocation.paired_score import (
    NUISANCE_LEVEL,
    SLACK,
    _curvature,
    _region,
    _supremum,
    _tail,
    exact_p_value,
    restricted_share,
    score_statistic,
)


@pytest.mark.parametrize(
    ("n", "lost", "gained", "eps"), [(40, 2, 3, 0.1), (400, 3, 8, 0.01), (2000, 40, 25, 0.02), (60, 0, 0, 0.03)]
)
def test_no_point_of_a_fine_grid_lies_above_the_bound(n: int, lost: int, gained: int, eps: float) -> None:
    nuisance, total = NUISANCE_LEVEL, lost + gained
    low = max(stats.beta.ppf(nuisance / 2, total, n - total + 1) if total else 0.0, eps)
    high = max(stats.beta.isf(nuisance / 2, total + 1, n - total), eps)
    observed = score_statistic(np.array([lost]), np.array([gained]), n, eps)[0]
    region = _region(n, eps, observed, np.arange(n + 1))
    largest = max(_tail(n, eps, d, region) for d in np.linspace(low, high, 3001))
    found = exact_p_value(n, lost, gained, eps)
    assert largest + nuisance <= found <= largest + nuisance + 1.5 * SLACK * (largest + nuisance)


def test_the_curvature_is_bounded_by_what_is_claimed() -> None:
    n, eps, step = 300, 0.02, 2e-4
    for observed in (-3.0, -1.6, 0.0):
        region = _region(n, eps, observed, np.arange(n + 1))
        for d in (0.021, 0.03, 0.06, 0.2, 0.6):
            f = [_tail(n, eps, d + k * step, region) for k in (-1, 0, 1)]
            second = abs(f[0] - 2 * f[1] + f[2]) / step**2
            assert second <= 1.01 * _curvature(n, eps)(d - step, d + step, max(f)) + 1e-6


def test_a_peak_between_the_first_points_is_found() -> None:
    def peak(x: float) -> float:
        return 0.9 * float(np.exp(-((x - 0.3071) ** 2) / (2 * 0.004**2)))

    found = _supremum(peak, lambda a, b, top: 0.9 / 0.004**2, 0.0, 1.0, floor=0.0, enough=None)
    assert 0.9 <= found <= 0.9 * (1 + SLACK)


@pytest.mark.parametrize("level", [0.01, 0.05, 0.2])
def test_stopping_early_changes_no_decision(level: float) -> None:
    for lost in range(0, 30, 3):
        exact, early = (exact_p_value(500, lost, 6, 0.03, enough=enough) for enough in (None, level))
        assert (exact <= level) == (early <= level) and early >= exact * (1 - SLACK)


def test_the_restricted_share_maximises_the_likelihood() -> None:
    lost, gained, eps = 0.05, 0.02, 0.01
    grid = np.linspace(1e-4, 0.2, 20001)
    likelihood = lost * np.log(grid + eps) + gained * np.log(grid) + (1 - lost - gained) * np.log(1 - 2 * grid - eps)
    assert restricted_share(lost, gained, eps) == pytest.approx(grid[likelihood.argmax()], abs=2e-5)
