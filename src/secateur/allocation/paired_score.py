"""The exact test of a drop in a 0/1 metric, measured on the same samples before and after."""

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from secateur.types import Floats

NUISANCE_LEVEL = 1e-4
FIRST_POINTS = 9
SLACK = 5e-4  # the p-value may be too large by this share


def exact_p_value(
    samples: int,
    lost: int,
    gained: int,
    tolerance: float,
    *,
    nuisance: float = NUISANCE_LEVEL,
    enough: float | None = None,
) -> float:
    """P-value of "the drop is at least `tolerance`" from paired 0/1 outcomes.

    Outcomes are ordered by the score statistic with the restricted maximum-likelihood estimate; their
    exact trinomial probability is maximised over a confidence interval of the discordance, and the
    interval's own level is added. The maximum is not that of a grid but a proven bound on it, at most 0.05 %
    too large (see `_supremum`).

    Source: score statistic as in Tango 1998 (Statistics in Medicine 17); confidence-interval p-values,
    Berger & Boos 1994 (JASA 89).

    Args:
        samples: number of pairs.
        lost: pairs in which only the dense model is right.
        gained: pairs in which only the pruned model is right.
        tolerance: in (0, 1).
        nuisance: probability that the interval of the discordance misses it; fixed before the data.
        enough: a level; stop as soon as the p-value is known to lie above or not above it. What is returned
            is a p-value on the same side, larger than need be.

    >>> exact_p_value(1000, 0, 0, 0.02) < 1e-4 + 0.99**1000 < exact_p_value(100, 0, 0, 0.01)
    True
    """
    observed = float(score_statistic(np.array([lost]), np.array([gained]), samples, tolerance)[0])
    total = lost + gained
    low = float(special.betaincinv(total, samples - total + 1, nuisance / 2)) if total else 0.0
    high = float(special.betainccinv(total + 1, samples - total, nuisance / 2)) if total < samples else 1.0
    # No discordance below the tolerance fits the hypothesis.
    low, high = max(low, tolerance), max(high, tolerance)
    first, last = _window(samples, low)[0], _window(samples, high)[1]
    region = _region(samples, tolerance, observed, np.arange(first, last + 1))
    top = _supremum(
        lambda discordance: _tail(samples, tolerance, discordance, region),
        _curvature(samples, tolerance),
        low,
        high,
        floor=nuisance,
        enough=None if enough is None else enough - nuisance,
    )
    return min(1.0, float(top) + nuisance)


def score_statistic(lost: Floats | NDArray[np.int64], gained: Floats | NDArray[np.int64], n: int, eps: float) -> Floats:
    """Score statistic at a drop of `eps`; small values speak for a smaller drop."""
    q = restricted_share(lost / n, gained / n, eps)
    return np.asarray((lost - gained - n * eps) / np.sqrt(n * (2 * q + eps - eps**2)))


def restricted_share(lost: Floats, gained: Floats, eps: float) -> Floats:
    """Maximum-likelihood share of pairs that are gained, if the drop were `eps`; from observed shares."""
    s = (lost + gained) * (1 + eps) - 2 * gained * eps - 2 * eps
    return np.asarray(np.maximum((s + np.sqrt(s**2 + 8 * gained * eps * (1 - eps))) / 4, 0.0))


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
        inside = score_statistic(middle, total - middle, n, eps) <= observed + 1e-12
        low, high = np.where(inside, middle, low), np.where(inside, high, middle - 1)
    return _Region(total, low)


def _tail(n: int, eps: float, discordance: float, region: _Region) -> float:
    """Exact probability of the region at a drop of `eps` and the given discordance."""
    first, last = _window(n, discordance)
    start, stop = np.searchsorted(region.total, [first, last + 1])
    total, most = region.total[start:stop], region.most_lost[start:stop]
    share = min((discordance + eps) / (2 * discordance), 1.0)
    weights = stats.binom.pmf(total, n, discordance)
    # The binomial distribution function; -1 losses have probability 0, all of them 1.
    inside = np.where(most < 0, 0.0, special.bdtr(np.maximum(most, 0), np.maximum(total, 1), share))
    inside = np.where(most >= total, 1.0, inside)
    # What lies outside the window counts as inside the region: never too small a p-value.
    return float((weights * inside).sum() + max(0.0, 1 - float(weights.sum())))


def _curvature(n: int, eps: float) -> Callable[[float, float, float], float]:
    """A bound on the second derivative, between two discordances, of the probability of any region.

    The shares of lost, gained and equal pairs are linear in the discordance d, so the second derivative
    is the expectation, over the region, of a sum over pairs of samples i != j of products of their scores.
    That sum has mean 0 and variance 2n(n-1)i(d)², i the Fisher information of one sample about d;
    Cauchy-Schwarz gives √(2f(1-f)) n i(d) if the region has probability f. It is a second difference of
    probabilities too, hence at most 2n(n-1), which bounds it where i(d) is infinite (d = eps).
    """

    def information(d: float) -> float:
        return math.inf if d <= eps or d >= 1 else n * (0.5 / (d + eps) + 0.5 / (d - eps) + 1 / (1 - d))

    def bound(left: float, right: float, largest: float) -> float:
        largest = min(largest, 0.5)
        # Convex in d, so the information is largest at an end.
        found = max(information(left), information(right))
        return min(math.sqrt(2 * largest * (1 - largest)) * found, 2.0 * n * (n - 1))

    return bound


def _supremum(
    function: Callable[[float], float],
    curvature: Callable[[float, float, float], float],
    low: float,
    high: float,
    *,
    floor: float,
    enough: float | None,
) -> float:
    """An upper bound on a probability between `low` and `high`, too large by `SLACK` of it plus `floor` at most.

    Between two points h apart a function lies at most (largest second derivative) h²/8 above the larger of
    its two values there. The interval with the largest bound is halved until that is close to a value.
    """
    points = np.unique(np.linspace(low, high, FIRST_POINTS))
    values = [function(point) for point in points]
    best = max(values)
    if len(points) == 1:
        return best

    def interval(a: float, b: float, at_a: float, at_b: float) -> tuple[float, float, float, float, float]:
        bound = 1.0
        # The curvature is bounded by means of a bound on the values: each improves the other.
        for _ in range(8):
            bound = min(1.0, max(at_a, at_b) + curvature(a, b, bound) * (b - a) ** 2 / 8)
        return -bound, a, b, at_a, at_b

    heap = [interval(*part) for part in zip(points, points[1:], values, values[1:], strict=False)]
    heapq.heapify(heap)
    while -heap[0][0] > best + SLACK * (best + floor):
        if enough is not None and (best > enough or -heap[0][0] <= enough):
            break
        _, a, b, at_a, at_b = heapq.heappop(heap)
        middle = (a + b) / 2
        found = function(middle)
        best = max(best, found)
        heapq.heappush(heap, interval(a, middle, at_a, found))
        heapq.heappush(heap, interval(middle, b, found, at_b))
    return -heap[0][0]
