"""Certificates: what the pruned model loses on fresh data, with a stated confidence."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from secateur.errors import ArgumentError, DataError, MetricError
from secateur.types import Floats

Guarantee = Literal["exact", "anytime", "asymptotic"]
NUISANCE_LEVEL = 1e-3
GRID = 25
STEP, STEPS = 1.02, 465  # 1.02**-465 is 1e-4: the smallest bound, as a share of the largest drop
ASSUMES = (
    "The test samples are exchangeable with those the model will meet, were used for nothing before, "
    "and are used for this one test."
)


@dataclass(frozen=True)
class Certificate:
    """The outcome of one paired one-sided test on test data.

    Attributes:
        metric: its name.
        samples: number of test samples.
        before: mean metric of the dense model.
        after: mean metric of the pruned model.
        drop: mean damage, positive = worse.
        drop_error: standard error of the drop.
        tolerance: the drop that was to be ruled out; None if only a bound was asked for.
        confidence: of the statement.
        p_value: of the hypothesis that the drop exceeds the tolerance; None without one.
        certified: bound <= tolerance, which needs p_value <= 1 - confidence; without a tolerance, that
            the data give a bound at all: one below the largest possible drop.
        bound: the smallest tolerance that these data certify, rounded up by at most 2 %.
        lost: samples that only the dense model gets right; None if the metric is not 0/1.
        gained: samples that only the pruned model gets right.
        method: the test.
        guarantee: "exact" and "anytime" hold at any sample size, "asymptotic" does not.
        assumptions: what must be true of the data.
    """

    metric: str
    samples: int
    before: float
    after: float
    drop: float
    drop_error: float
    tolerance: float | None
    confidence: float
    p_value: float | None
    certified: bool
    bound: float
    lost: int | None
    gained: int | None
    method: str
    guarantee: Guarantee
    assumptions: str = ASSUMES

    def sentence(self) -> str:
        """The statement in words."""
        how = "" if self.guarantee != "asymptotic" else " (asymptotic: no guarantee at this sample size)"
        # Rounded up, and the confidence in full: the sentence must not claim more than was tested.
        bound = math.ceil(self.bound * 1e4) / 1e4 if math.isfinite(self.bound) else self.bound
        head = f"With {100 * self.confidence:g}% confidence the {self.metric} worsens by at most {bound:.4f}{how}"
        if self.tolerance is None:
            if self.certified:
                return f"{head}, on {self.samples} test samples."
            return (
                f"{self.samples} test samples give no bound on the damage to {self.metric} with "
                f"{100 * self.confidence:g}% confidence (observed damage {self.drop:.4f})."
            )
        if self.certified:
            return f"{head}; the tolerance of {self.tolerance:g} is certified on {self.samples} test samples."
        return (
            f"{head}; the tolerance of {self.tolerance:g} could NOT be certified on {self.samples} test samples "
            f"(observed damage {self.drop:.4f})."
        )

    def to_dict(self) -> dict[str, Any]:
        """All fields, for JSON."""
        return asdict(self)


def certify_paired(
    before: Floats,
    after: Floats,
    *,
    tolerance: float | None,
    confidence: float = 0.95,
    higher_is_better: bool = True,
    bounds: tuple[float, float] | None = None,
    metric: str = "metric",
) -> Certificate:
    """Test whether the metric drops by more than `tolerance`, and bound how much it drops.

    Metrics of 0 and 1 are tested exactly; metrics with known bounds by betting, valid at any sample
    size; others by a paired t-test, which is marked as asymptotic.

    Args:
        before: per-sample metric of the dense model.
        after: per-sample metric of the pruned model, same samples in the same order.
        tolerance: in units of the metric; in (0, 1) for a 0/1 metric, positive otherwise; None = state
            the bound only.
        confidence: in (0, 1).
        higher_is_better: direction of the metric.
        bounds: least and greatest value of one sample, if known.
        metric: its name.

    Raises:
        ArgumentError: tolerance, confidence or bounds out of range.
        DataError: no samples, lengths that differ, or NaN.
        MetricError: a value outside `bounds`.

    >>> found = certify_paired(np.ones(300), np.ones(300), tolerance=None)
    >>> found.p_value is None, found.certified, found.bound < 0.02
    (True, True, True)
    """
    before, after = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    _check(before, after, tolerance, confidence)
    damage = before - after if higher_is_better else after - before
    alpha = 1 - confidence
    lost = gained = None
    if set(np.unique(before)) | set(np.unique(after)) <= {0.0, 1.0}:
        lost, gained = int((damage > 0).sum()), int((damage < 0).sum())
        p_value = _exact_test(len(damage), lost, gained, min(NUISANCE_LEVEL, alpha / 50))
        method, guarantee = "exact paired score test with Berger-Boos correction", "exact"
        limit = 1.0
    elif bounds is not None:
        limit = _range(before, after, bounds)
        p_value = _betting_test(damage, limit, alpha)
        method, guarantee = "betting on the paired differences (Waudby-Smith & Ramdas 2020)", "anytime"
    else:
        p_value, limit = _t_test(damage), math.inf
        method, guarantee = "paired t-test", "asymptotic"
    if tolerance is not None and tolerance >= limit:
        raise ArgumentError(f"tolerance={tolerance} is no less than the largest possible drop, {limit:g}")
    if math.isfinite(limit):
        bound = smallest_certified(p_value, tolerances(limit, tolerance), limit, alpha)
    else:
        bound = _t_bound(damage, confidence)
    p = None if tolerance is None else p_value(tolerance)
    certified = bound < limit if p is None or tolerance is None else p <= alpha and bound <= tolerance
    return Certificate(
        metric=metric,
        samples=len(damage),
        before=float(before.mean()),
        after=float(after.mean()),
        drop=float(damage.mean()),
        drop_error=float(damage.std(ddof=1) / math.sqrt(len(damage))) if len(damage) > 1 else math.inf,
        tolerance=tolerance,
        confidence=confidence,
        p_value=p,
        certified=certified,
        bound=bound,
        lost=lost,
        gained=gained,
        method=method,
        guarantee=guarantee,  # type: ignore[arg-type]
    )


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


def exact_p_value(samples: int, lost: int, gained: int, tolerance: float, *, nuisance: float = NUISANCE_LEVEL) -> float:
    """P-value of "the drop is at least `tolerance`" from paired 0/1 outcomes.

    Outcomes are ordered by the score statistic with the restricted maximum-likelihood estimate; their
    exact trinomial probability is maximised over a confidence interval of the discordance, and the
    interval's own level is added.

    Source: score statistic as in Tango 1998 (Statistics in Medicine 17); confidence-interval p-values,
    Berger & Boos 1994 (JASA 89).

    Args:
        samples: number of pairs.
        lost: pairs in which only the dense model is right.
        gained: pairs in which only the pruned model is right.
        tolerance: in (0, 1).
        nuisance: probability that the interval of the discordance misses it; fixed before the data.

    >>> exact_p_value(1000, 0, 0, 0.02) < 0.001 + 0.99**1000 < exact_p_value(100, 0, 0, 0.01)
    True
    """
    observed = float(_score(np.array([lost]), np.array([gained]), samples, tolerance)[0])
    total = lost + gained
    low = float(stats.beta.ppf(nuisance / 2, total, samples - total + 1)) if total else 0.0
    high = float(stats.beta.isf(nuisance / 2, total + 1, samples - total)) if total < samples else 1.0
    # No discordance below the tolerance fits the hypothesis.
    low, high = max(low, tolerance), max(high, tolerance)
    first, last = _window(samples, low)[0], _window(samples, high)[1]
    region = _region(samples, tolerance, observed, np.arange(first, last + 1))

    def largest(grid: Floats) -> tuple[int, float]:
        values = [_tail(samples, tolerance, discordance, region) for discordance in grid]
        return int(np.argmax(values)), max(values)

    grid = np.unique(np.linspace(low, high, GRID))
    best, top = largest(grid)
    if len(grid) > 1:
        # The probability is smooth in the discordance: refine around the largest value.
        top = max(top, largest(np.linspace(grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)], GRID))[1])
    return min(1.0, top + nuisance)


def betting_p_value(damage: Floats, limit: float, tolerance: float, alpha: float) -> float:
    """P-value of "the mean damage is at least `tolerance`" for damages in [-limit, limit].

    Capital grows when damages are small; by Ville's inequality it exceeds 1/p with probability at most
    p if the hypothesis holds, whatever the sample size.

    Source: Waudby-Smith & Ramdas 2020, arXiv:2010.09686 (predictable plug-in bets).

    Args:
        damage: in the order in which the samples are read.
        limit: largest possible damage.
        tolerance: in (0, limit).
        alpha: the bets are tuned to this level; validity does not depend on it.
    """
    values = (np.asarray(damage) + limit) / (2 * limit)
    mean = (tolerance + limit) / (2 * limit)
    count = np.arange(1, len(values) + 1)
    running = (0.5 + np.cumsum(values)) / (count + 1)
    spread = (0.25 + np.cumsum((values - running) ** 2)) / (count + 1)
    before = np.concatenate([[0.25], spread[:-1]])
    bets = np.minimum(0.75 / (1 - mean), np.sqrt(2 * np.log(1 / alpha) / (len(values) * before)))
    growth = np.cumsum(np.log1p(-bets * (values - mean)))
    return float(min(1.0, np.exp(-max(growth.max(), 0.0))))


def _exact_test(samples: int, lost: int, gained: int, nuisance: float) -> Callable[[float], float]:
    return lambda tolerance: exact_p_value(samples, lost, gained, tolerance, nuisance=nuisance)


def _betting_test(damage: Floats, limit: float, alpha: float) -> Callable[[float], float]:
    return lambda tolerance: betting_p_value(damage, limit, tolerance, alpha)


def _t_test(damage: Floats) -> Callable[[float], float]:
    if len(damage) < 2:
        return lambda tolerance: 1.0
    error = float(damage.std(ddof=1)) / math.sqrt(len(damage))

    def p_value(tolerance: float) -> float:
        if error == 0:
            return 0.0 if damage.mean() < tolerance else 1.0
        return float(stats.t.cdf((damage.mean() - tolerance) / error, len(damage) - 1))

    return p_value


def _t_bound(damage: Floats, confidence: float) -> float:
    """Upper end of the one-sided t interval, not below 0; infinite for a single sample."""
    if len(damage) < 2:
        return math.inf
    error = float(damage.std(ddof=1)) / math.sqrt(len(damage))
    return max(0.0, float(damage.mean() + stats.t.ppf(confidence, len(damage) - 1) * error))


def _score(lost: Floats | NDArray[np.int64], gained: Floats | NDArray[np.int64], n: int, eps: float) -> Floats:
    """Score statistic at a drop of `eps`; small values speak for a smaller drop."""
    total = lost + gained
    s = total * (1 + eps) - 2 * gained * eps - 2 * n * eps
    q = (s + np.sqrt(s.astype(float) ** 2 + 8 * n * gained * eps * (1 - eps))) / (4 * n)
    return np.asarray((lost - gained - n * eps) / np.sqrt(n * (2 * np.maximum(q, 0.0) + eps - eps**2)))


@dataclass(frozen=True, eq=False)
class _Region:
    """Outcomes at least as extreme as the observed: for `total` discordant pairs, `lost` up to `most_lost`."""

    total: NDArray[np.int64]
    most_lost: NDArray[np.int64]


def _window(n: int, discordance: float) -> tuple[int, int]:
    """Numbers of discordant pairs that hold all but a negligible part of the probability."""
    spread = 8 * math.sqrt(n * discordance * (1 - discordance)) + 30
    return max(0, int(n * discordance - spread)), min(n, int(n * discordance + spread))


def _region(n: int, eps: float, observed: float, total: NDArray[np.int64]) -> _Region:
    low, high = np.full(len(total), -1), total.copy()
    # The score rises with `lost` at a fixed number of discordant pairs, so bisection finds the edge.
    while (low < high).any():
        middle = (low + high + 1) // 2
        inside = _score(middle, total - middle, n, eps) <= observed + 1e-12
        low, high = np.where(inside, middle, low), np.where(inside, high, middle - 1)
    return _Region(total, low)


def _tail(n: int, eps: float, discordance: float, region: _Region) -> float:
    """Exact probability of the region at a drop of `eps` and the given discordance."""
    first, last = _window(n, discordance)
    near = (region.total >= first) & (region.total <= last)
    total = region.total[near]
    share = min((discordance + eps) / (2 * discordance), 1.0)
    weights = stats.binom.pmf(total, n, discordance)
    inside = stats.binom.cdf(region.most_lost[near], total, share)
    # What lies outside the window counts as inside the region: never too small a p-value.
    return float((weights * inside).sum() + max(0.0, 1 - float(weights.sum())))


def _range(before: Floats, after: Floats, bounds: tuple[float, float]) -> float:
    """Width of the bounds, once every value is known to lie within them."""
    low, high = bounds
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ArgumentError(f"bounds={bounds} must be two finite numbers, the least value first")
    seen = min(before.min(), after.min()), max(before.max(), after.max())
    if seen[0] < low or seen[1] > high:
        raise MetricError(
            f"the test metric runs from {seen[0]:g} to {seen[1]:g}, outside bounds={bounds}: correct the bounds, "
            "or pass None for a test without a guarantee"
        )
    return float(high - low)


def _check(before: Floats, after: Floats, tolerance: float | None, confidence: float) -> None:
    if before.shape != after.shape or before.ndim != 1 or len(before) == 0:
        raise DataError(
            f"certify needs one value a sample from both models; got shapes {before.shape} and {after.shape}"
        )
    if not (np.isfinite(before).all() and np.isfinite(after).all()):
        raise DataError("the test metric holds NaN or infinity; a certificate cannot be given")
    if tolerance is not None and not tolerance > 0:
        raise ArgumentError(f"tolerance={tolerance} must be positive")
    if not 0 < confidence < 1:
        raise ArgumentError(f"confidence={confidence} must lie strictly between 0 and 1")
