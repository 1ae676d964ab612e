"""Tests of paired damages against a tolerance: which one the data allow, and the smallest tolerance that passes."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from secateur.allocation.betting import betting_p_value
from secateur.allocation.paired_score import exact_p_value
from secateur.allocation.sample_size import betting_size, mean_size, nuisance_level, sample_size
from secateur.types import Floats

Guarantee = Literal["exact", "anytime", "asymptotic"]
STEP, STEPS = 1.02, 465  # 1.02**-465 is 1e-4: the smallest bound, as a share of the largest drop
ORDER_SEED = 0


@dataclass(frozen=True)
class PairedTest:
    """A test that fits the data.

    Attributes:
        p_value: (tolerance, level) -> p-value; it may be rough as long as it lies on the right side of the level.
        limit: largest possible drop.
        needed: tolerance -> samples that would certify it.
        bound: the smallest tolerance that passes, where it is known; else it is searched.
    """

    p_value: Callable[[float, float | None], float]
    limit: float
    needed: Callable[[float], int | None]
    method: str
    guarantee: Guarantee
    lost: int | None = None
    gained: int | None = None
    bound: float | None = None


def tolerances(limit: float, tolerance: float | None) -> list[float]:
    """The tolerances to test, largest first: fixed by what is known before the data, in steps of 2 %."""
    asked = set() if tolerance is None else {tolerance}
    return sorted({*(limit * STEP ** -np.arange(1.0, STEPS + 1)).tolist(), *asked}, reverse=True)


def smallest_certified(
    p_value: Callable[[float], float], sequence: Sequence[float], limit: float, alpha: float
) -> float:
    """The last tolerance of a descending sequence before the first whose p-value exceeds `alpha`.

    Fixed-sequence testing: a wrong bound needs the largest member of the sequence that does not exceed the
    true drop to be rejected, which has probability at most `alpha`. Bisection would need a p-value that
    falls as the tolerance grows; that of the exact test does not always.

    >>> smallest_certified(lambda t: 0.01 if t != 0.3 else 0.2, [0.5, 0.4, 0.3, 0.2], 1.0, 0.05)
    0.4
    """
    bound = limit
    for tolerance in sequence:
        if not p_value(tolerance) <= alpha:
            break
        bound = tolerance
    return bound


def fitting_test(damage: Floats, is_binary: bool, limit: float | None, alpha: float) -> PairedTest:
    """The strongest test that the data allow."""
    if not np.isfinite(damage).all():
        largest = 1.0 if is_binary else limit or math.inf
        method = "none, for a damage that is not finite"
        return PairedTest(lambda t, level: 1.0, largest, lambda t: None, method, "exact", bound=largest)
    if is_binary:
        return _exact_test(damage, nuisance_level(alpha), alpha)
    if limit is not None:
        return _betting_test(damage, limit, alpha)
    return _t_test(damage, alpha)


def _exact_test(damage: Floats, nuisance: float, alpha: float) -> PairedTest:
    samples, lost, gained = len(damage), int((damage > 0).sum()), int((damage < 0).sum())
    return PairedTest(
        lambda t, level: exact_p_value(samples, lost, gained, t, nuisance=nuisance, enough=level),
        1.0,
        lambda t: sample_size(
            t, discordance=(lost + gained) / samples, drop=(lost - gained) / samples, confidence=1 - alpha
        ),
        "exact paired score test with Berger-Boos correction",
        "exact",
        lost,
        gained,
    )


def _betting_test(damage: Floats, limit: float, alpha: float) -> PairedTest:
    # Bets are made one after the other. An order of its own, drawn before the data, keeps a file that is sorted
    # (by class, say) from looking like a stream that changes.
    shuffled = np.random.default_rng(ORDER_SEED).permutation(damage)
    mean, variance = float(damage.mean()), float(damage.var())
    return PairedTest(
        lambda t, level: betting_p_value(shuffled, limit, t, alpha),
        limit,
        lambda t: betting_size(mean, variance, limit, t, alpha),
        "betting on the paired differences (Waudby-Smith & Ramdas 2020)",
        "anytime",
    )


def _t_test(damage: Floats, alpha: float) -> PairedTest:
    samples, mean = len(damage), float(damage.mean())
    spread = float(damage.std(ddof=1)) if samples > 1 else math.inf
    error = spread / math.sqrt(samples)

    def p_value(tolerance: float, level: float | None) -> float:
        if error == 0:
            return 0.0 if mean < tolerance else 1.0
        return float(stats.t.cdf((mean - tolerance) / error, samples - 1)) if samples > 1 else 1.0

    return PairedTest(
        p_value,
        math.inf,
        lambda t: mean_size(t - mean, spread**2, alpha),
        "paired t-test",
        "asymptotic",
        # The upper end of the one-sided interval, not below 0.
        bound=max(0.0, mean + float(stats.t.isf(alpha, samples - 1)) * error) if samples > 1 else math.inf,
    )
