"""Stop measuring a point once its mean damage is clear of the boundaries that matter.

Samples come in a fixed random order, so the damages of a point are draws without replacement from those of all N
validation samples, and what is asked is on which side of a boundary *their* mean lies: what the exhaustive scan
would say. Two bets are laid for each boundary, one that the mean is above and one that it is below; where it is
not, the stake grows by no more than it shrinks in expectation, whatever was seen before. So a stake that has
grown to 1 / error tells the side wrongly with probability at most `error`, however often one looks (Ville, 1939;
I. Waudby-Smith and A. Ramdas, "Estimating means of bounded random variables by betting", 2020, arXiv:2010.09686).

What is not bounded can be clipped, which makes it a question about clipped damages; or else is decided by an
asymptotic confidence sequence (I. Waudby-Smith, D. Arbour, R. Sinha, E. H. Kennedy and A. Ramdas, "Time-uniform
central limit theory and asymptotic confidence sequences", 2021, arXiv:2103.06476), whose error rate holds as the
samples become many, and which is not asked before there are 100.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Literal

import numpy as np

from secateur.errors import ArgumentError
from secateur.sensitivity.stages import Samples
from secateur.types import Floats

Side = Literal["above", "below"]

SHARE_STAKED = 0.75
LEAST_SAMPLES = 100


@dataclass(frozen=True)
class Racing:
    """When a point has samples enough to tell on which side of a boundary it lies.

    It is for thresholds. What lies far from all boundaries stops early and is known roughly, so an allocation within a
    budget is worse from raced curves, unless the levels that it may choose are measured further: see `Contenders`.

    Attributes:
        boundaries: of the mean damage, in its unit; a point stops when it is clear of all of them. A tolerance.
        error: greatest probability of taking a point to lie on the wrong side of one boundary; 0 stops only
            where no sample that is left could change the answer. Where damages are not bounded, by their metric or by
            `clip`, it holds as samples become many, and damages that are rare and large may mislead.
        on: the damage that is compared with the boundaries.
        clip: damages beyond `clip` on either side count as `clip`; None: as they are.
        stage: samples between two looks.
        least: samples that each point gets, however clear it is.
        indifference: points whose mean lies this near to a boundary may be taken for either side, and so stop earlier;
            the error is that of all others.
        bisect: only the last sparsity within each boundary is looked for, by halving; else all are measured.
        seed: of the order of the samples.
        memory_bytes: greatest size of the samples held at once; None: a quarter of the free memory. With less
            than the data needs, its source is read more than once.

    >>> Racing((0.01,)).error
    0.05
    """

    boundaries: tuple[float, ...]
    error: float = 0.05
    on: Literal["metric", "loss"] = "metric"
    clip: float | None = None
    stage: int = 250
    least: int = 0
    indifference: float = 0.0
    bisect: bool = False
    seed: int = 0
    memory_bytes: int | None = None

    def __post_init__(self) -> None:
        given = self.boundaries if isinstance(self.boundaries, Sequence) else ()
        if not given or not all(isinstance(value, Real) and math.isfinite(value) for value in given):
            raise ArgumentError(f"boundaries={self.boundaries} must be one or more finite numbers, such as (0.01,)")
        if not 0 <= self.error < 1:
            raise ArgumentError(f"error={self.error} must lie in [0, 1): the probability of a wrong decision")
        if self.clip is not None and not self.clip > 0:
            raise ArgumentError(f"clip={self.clip} must be positive: the greatest damage that counts")
        if not 0 <= self.indifference < math.inf:
            raise ArgumentError(f"indifference={self.indifference} must be a damage: finite and not negative")
        if self.stage < 1 or self.least < 0 or (self.memory_bytes or 0) < 0:
            raise ArgumentError(
                f"stage={self.stage} must be at least 1, "
                f"least={self.least} and memory_bytes={self.memory_bytes} at least 0"
            )

    def order(self, samples: int) -> Samples:
        """The samples, in the order in which they are drawn."""
        return np.random.default_rng(self.seed).permutation(samples).astype(np.int64)


def side(
    values: Floats,
    boundary: float,
    total: int,
    *,
    bounds: tuple[float, float] | None,
    error: float,
    indifference: float = 0.0,
) -> Side | None:
    """On which side of `boundary` the mean of all `total` values lies; None if it is not clear yet.

    Args:
        values: those drawn so far, without replacement, in the order in which they were drawn.
        boundary: of the mean.
        total: number of values there are.
        bounds: least and greatest possible value; None if they are not bounded.
        error: greatest probability of a wrong answer, over all looks at more and more values.
        indifference: where the mean lies this near to the boundary, either answer is right.

    >>> side(np.zeros(500), 0.01, 10_000, bounds=(-1, 1), error=0.05)
    'below'
    >>> side(np.zeros(100), 0.01, 10_000, bounds=(-1, 1), error=0.05) is None
    True
    """
    if np.isposinf(values).any():
        return "above"
    if len(values) == total:
        return "above" if values.mean() > boundary else "below"
    if indifference > 0:
        is_above = _clear_side(values, boundary - indifference, total, bounds, error) == "above"
        is_below = _clear_side(values, boundary + indifference, total, bounds, error) == "below"
        if is_above and is_below:
            return "above" if values.mean() > boundary else "below"
        return "above" if is_above else "below" if is_below else None
    return _clear_side(values, boundary, total, bounds, error)


def _clear_side(
    values: Floats, boundary: float, total: int, bounds: tuple[float, float] | None, error: float
) -> Side | None:
    if bounds is None:
        return _side_asymptotic(values, boundary, error)
    low, high = bounds
    return _side_bounded((values - low) / (high - low), (boundary - low) / (high - low), total, error)


def _side_bounded(x: Floats, boundary: float, total: int, error: float) -> Side | None:
    """By betting on values in [0, 1]."""
    drawn = np.arange(len(x) + 1)
    sums = np.concatenate([[0.0], np.cumsum(x)])
    # What the mean of those left would be if that of all were the boundary; known before each draw.
    left = (total * boundary - sums) / (total - drawn)
    certain = _first(left < 0), _first(left > 1)
    if error == 0:
        return _earlier(*certain)
    mean = (0.5 + sums[:-1]) / (1 + drawn[:-1])
    spread = np.concatenate([[0.0], np.cumsum((x - mean) ** 2)])[:-1]
    variance = (0.25 + spread) / (1 + drawn[:-1])
    fair = left[:-1].clip(1e-12, 1 - 1e-12)
    bet = (mean - fair) / (variance + (mean - fair) ** 2)
    wins = math.log(1 / error)
    above = np.cumsum(np.log1p(bet.clip(0, SHARE_STAKED / fair) * (x - fair))) >= wins
    below = np.cumsum(np.log1p((-bet).clip(0, SHARE_STAKED / (1 - fair)) * (fair - x))) >= wins
    return _earlier(min(certain[0], _first(above) + 1), min(certain[1], _first(below) + 1))


def _side_asymptotic(values: Floats, boundary: float, error: float) -> Side | None:
    drawn = len(values)
    if drawn < LEAST_SAMPLES or error == 0:
        return None
    scale = -2 * math.log(error)
    weight = (scale + math.log(scale + 1)) / (4 * LEAST_SAMPLES)
    grown = drawn * weight + 1
    radius = values.std() * math.sqrt(2 * grown / (drawn**2 * weight) * math.log(math.sqrt(grown) / error))
    gap = values.mean() - boundary
    # Values that are all the same say nothing of their spread.
    if radius == 0 or abs(gap) <= radius:
        return None
    return "above" if gap > 0 else "below"


def _first(marks: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> float:
    return float(np.argmax(marks)) if marks.any() else math.inf


def _earlier(above: float, below: float) -> Side | None:
    if math.isinf(above) and math.isinf(below):
        return None
    return "above" if above <= below else "below"
