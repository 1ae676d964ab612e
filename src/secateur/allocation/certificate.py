"""Certificates: what the pruned model loses on fresh data, with a stated confidence."""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from secateur.allocation.paired_tests import Guarantee, PairedTest, fitting_test, smallest_certified, tolerances
from secateur.allocation.sample_size import share_size
from secateur.errors import ArgumentError, DataError, MetricError, as_number
from secateur.types import Floats

ASSUMES = (
    "The test samples are exchangeable with those the model will meet, were used for nothing before, "
    "and are used for this one test."
)
DOCUMENTS = (
    "The unit is the document: each counts once, whatever its length, and it is documents that are exchangeable; "
    "samples within one may depend on each other."
)
SHARES = (
    "The metric is no mean over samples: what it loses is shared out among them, and there are enough of them for the "
    "sum of the shares to be normal."
)
ZERO_ONE = "The metric of a sample is either 0 or 1: so it was on all of these, and no bounds were given."
NO_MEAN = (
    "{metric} is no mean over samples: clipping or bounding the shares of its samples would bound nothing, and no "
    "exact test is known; leave clip and bounds out for an asymptotic one, or certify a metric that is a mean"
)
UNCHANGED = "A prediction that does not change cannot become wrong: accuracy drops by no more, whatever the labels are."


@dataclass(frozen=True)
class Certificate:
    """The outcome of one paired one-sided test on test data; printed, it states what it assumes.

    Attributes:
        metric: its name.
        samples: number of test samples, or of documents (see `unit`).
        before: mean metric of the dense model.
        after: mean metric of the pruned model.
        drop: mean damage, positive = worse; infinite if a sample's metric is not finite after pruning.
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
        assumptions: what must be true of the data, a sentence each.
        needed: about how many samples would certify the tolerance with 80 % probability, if the true drop
            and spread were those observed; None without a tolerance, or if no number would.
        unit: what `samples` counts: "samples" or "documents".
        not_finite: samples whose metric is NaN or infinite after pruning.
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
    assumptions: tuple[str, ...] = (ASSUMES,)
    needed: int | None = None
    unit: str = "samples"
    not_finite: int = 0

    def sentence(self) -> str:
        """The statement in words."""
        how = "" if self.guarantee != "asymptotic" else " (asymptotic: no guarantee at this sample size)"
        # Rounded up, and the confidence in full: the sentence must not claim more than was tested.
        bound = math.ceil(self.bound * 1e4) / 1e4 if math.isfinite(self.bound) else self.bound
        confidence = f"{100 * self.confidence:.10g}% confidence"
        head = f"With {confidence} the {self.metric} worsens by at most {bound:.4f}{how}"
        test = f"{self.samples} test {self.unit}"
        if self.not_finite and not math.isfinite(self.drop):
            return (
                f"Nothing is certified: after pruning the {self.metric} is NaN or infinite on {self.not_finite} of "
                f"{test}, which counts as infinitely bad."
            )
        if self.tolerance is None and self.certified:
            return f"{head}, on {test}."
        if self.tolerance is None:
            return (
                f"{test} give no bound on the damage to {self.metric} with {confidence} "
                f"(observed damage {self.drop:.4f})."
            )
        if self.certified:
            return f"{head}; the tolerance of {self.tolerance:g} is certified on {test}."
        remedy = (
            f"about {self.needed} {self.unit} would be needed if all were like these"
            if self.needed is not None
            else f"no number of {self.unit} would do if all were like these"
        )
        return (
            f"{head}; the tolerance of {self.tolerance:g} could NOT be certified on {test} "
            f"(observed damage {self.drop:.4f}): {remedy}."
        )

    def __str__(self) -> str:
        """The statement, the test, and what must be true of the data."""
        return f"{self.sentence()}\nTest: {self.method}.\nAssumed: {' '.join(self.assumptions)}"

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
    clip: float | None = None,
    documents: ArrayLike | None = None,
    shares: bool = False,
    metric: str = "metric",
) -> Certificate:
    """Test whether the metric drops by more than `tolerance`, and bound how much it drops.

    Metrics of 0 and 1 are tested exactly; metrics with known bounds by betting, valid at any sample
    size; others by a paired t-test, which is marked as asymptotic. Wider bounds than (0, 1), or a clip, say that other
    values may occur: then it is betting, even if none did.

    Args:
        before: per-sample metric of the dense model.
        after: per-sample metric of the pruned model, same samples in the same order. NaN and the infinities
            count as infinitely bad.
        tolerance: in units of the metric; in (0, 1) for a 0/1 metric, positive otherwise; None = state
            the bound only.
        confidence: in (0, 1).
        higher_is_better: direction of the metric.
        bounds: least and greatest value of one sample, if known.
        clip: count differences beyond ±clip as ±clip, which makes any metric a bounded one. Decided before the data
            are seen; the statement is about the clipped difference.
        documents: one label a sample; samples with the same label depend on each other, and the mean
            over each document is what is tested.
        shares: values are each sample's share of a metric that is no mean over samples. They depend on each other and
            have no bounds of their own, so only the t-test serves, and nothing is certified where they do not vary.
        metric: its name.

    Raises:
        ArgumentError: tolerance, confidence, bounds or clip out of range, or bounds or clip of shares.
        DataError: no samples, lengths that differ, or a dense metric that is not finite.
        MetricError: a value outside `bounds`.

    >>> found = certify_paired(np.ones(300), np.ones(300), tolerance=None)
    >>> found.p_value is None, found.certified, found.bound < 0.02
    (True, True, True)
    """
    before, after = _values(before), _values(after)
    check_terms(tolerance, confidence, clip)
    _check(before, after)
    if shares and (bounds is not None or clip is not None):
        raise ArgumentError(NO_MEAN.format(metric=metric))
    finite = np.isfinite(after)
    limit = None if bounds is None else _range(before, after[finite], bounds)
    damage = np.where(finite, before - after if higher_is_better else after - before, np.inf)
    assumptions: tuple[str, ...] = (ASSUMES,)
    unit = "samples"
    # What the data show does not say what a metric can be: a loss of 100 may be rare.
    may_be_binary = clip is None if bounds is None else tuple(bounds) == (0, 1)
    is_binary = may_be_binary and set(np.unique(before)) | set(np.unique(after[finite])) <= {0.0, 1.0} and not shares
    if documents is not None:
        before, after, damage = (_means(values, documents) for values in (before, after, damage))
        unit, is_binary = "documents", False
        assumptions = (ASSUMES, DOCUMENTS)
    if is_binary and bounds is None:
        assumptions += (ZERO_ONE,)
    if clip is not None and not is_binary:
        damage, limit = np.clip(damage, -clip, clip), min(clip, limit or clip)
        assumptions += (f"Differences beyond ±{clip:g} count as ±{clip:g}.",)
    if shares:
        assumptions += (SHARES,)
    test = fitting_test(damage, is_binary, limit, 1 - confidence)
    if shares and damage.min() == damage.max():
        test = replace(test, p_value=lambda tolerance, level: 1.0, bound=math.inf)
    return _certificate(
        damage, test, tolerance, confidence, metric=metric, before=float(before.mean()), after=_mean(after),
        assumptions=assumptions, unit=unit, not_finite=int((~finite).sum()),
    )  # fmt: skip


def certify_agreement(changed: ArrayLike, *, tolerance: float | None, confidence: float = 0.95) -> Certificate:
    """Bound the share of samples on which the two models predict differently; needs no labels.

    The drop in accuracy is no larger than that share, whatever the labels are.

    Source: Clopper & Pearson 1934 (Biometrika 26).

    Args:
        changed: True for each sample whose prediction is another after pruning.
        tolerance: in (0, 1); None = state the bound only.
        confidence: in (0, 1).

    Raises:
        ArgumentError: tolerance or confidence out of range.
        DataError: no samples.

    >>> found = certify_agreement([False] * 299, tolerance=0.01)  # 0.99**299 <= 0.05 < 0.99**298
    >>> found.certified, certify_agreement([False] * 298, tolerance=0.01).certified
    (True, False)
    """
    damage = _values(changed)
    check_terms(tolerance, confidence)
    if not np.isin(damage, (0, 1)).all():
        raise DataError("changed must say of each sample whether its prediction is another: True or False, or 1 or 0")
    _check(damage, damage)
    count, samples, alpha = int(damage.sum()), len(damage), 1 - confidence
    test = PairedTest(
        lambda tolerance, level: float(stats.binom.cdf(count, samples, tolerance)),
        1.0,
        lambda tolerance: share_size(tolerance, count / samples, alpha),
        "exact binomial (Clopper-Pearson) on changed predictions",
        "exact",
        bound=float(stats.beta.isf(alpha, count + 1, samples - count)) if count < samples else 1.0,
    )
    return _certificate(
        damage, test, tolerance, confidence, metric="agreement", before=1.0, after=1 - float(damage.mean()),
        assumptions=(ASSUMES, UNCHANGED), unit="samples", not_finite=0,
    )  # fmt: skip


def _certificate(
    damage: Floats,
    test: PairedTest,
    tolerance: float | None,
    confidence: float,
    *,
    metric: str,
    before: float,
    after: float,
    assumptions: tuple[str, ...],
    unit: str,
    not_finite: int,
) -> Certificate:
    alpha = 1 - confidence
    if tolerance is not None and tolerance >= test.limit:
        raise ArgumentError(f"tolerance={tolerance} is no less than the largest possible drop, {test.limit:g}")
    bound = test.bound
    if bound is None:
        sequence = tolerances(test.limit, tolerance)
        bound = smallest_certified(lambda t: test.p_value(t, alpha), sequence, test.limit, alpha)
    p = None if tolerance is None else test.p_value(tolerance, None)
    certified = bound < test.limit if p is None or tolerance is None else p <= alpha and bound <= tolerance
    drop, drop_error = _mean(damage), math.inf
    if math.isfinite(drop) and len(damage) > 1:
        drop_error = float(damage.std(ddof=1) / math.sqrt(len(damage)))
    return Certificate(
        metric=metric, samples=len(damage), before=before, after=after, drop=drop, drop_error=drop_error,
        tolerance=tolerance, confidence=confidence, p_value=p, certified=certified, bound=bound, lost=test.lost,
        gained=test.gained, method=test.method, guarantee=test.guarantee, assumptions=assumptions,
        needed=None if tolerance is None else test.needed(tolerance), unit=unit, not_finite=not_finite,
    )  # fmt: skip


def _means(damage: Floats, documents: ArrayLike) -> Floats:
    """Mean damage of each document, in the order in which they first occur."""
    labels = np.asarray(documents)
    if labels.shape != damage.shape:
        raise DataError(f"documents has shape {labels.shape}; needed one label for each of the {len(damage)} samples")
    _, first, member = np.unique(labels, return_index=True, return_inverse=True)
    means = np.bincount(member, damage) / np.bincount(member)
    return np.asarray(means[np.argsort(first)])


def _mean(values: Floats) -> float:
    with np.errstate(invalid="ignore"):
        return float(values.mean())


def _range(before: Floats, after: Floats, bounds: tuple[float, float]) -> float:
    """Width of the bounds, once every value is known to lie within them."""
    low, high = (-math.inf, math.inf) if np.shape(bounds) != (2,) else (as_number("bounds", b) for b in bounds)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ArgumentError(f"bounds={bounds} must be two finite numbers, the least value first")
    seen = np.concatenate([before, after])
    if seen.min() < low or seen.max() > high:
        raise MetricError(
            f"the test metric runs from {seen.min():g} to {seen.max():g}, outside bounds={bounds}: correct the bounds, "
            "or pass None for a test without a guarantee"
        )
    return float(high - low)


def _values(given: ArrayLike) -> Floats:
    try:
        return np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"certify needs one number a sample from both models: {error}") from error


def _check(before: Floats, after: Floats) -> None:
    if before.shape != after.shape or before.ndim != 1 or len(before) == 0:
        raise DataError(
            f"certify needs one value a sample from both models; got shapes {before.shape} and {after.shape}"
        )
    if not np.isfinite(before).all():
        raise DataError(
            "the dense model's test metric holds NaN or infinity, so nothing can be compared with it; drop those "
            "samples before anything is measured"
        )


def check_terms(tolerance: float | None, confidence: float, clip: float | None = None) -> None:
    """Refuse what no test of any data can be about.

    Raises:
        ArgumentError: a tolerance, confidence or clip that is no number, or out of range.
    """
    if tolerance is not None and not as_number("tolerance", tolerance) > 0:
        raise ArgumentError(f"tolerance={tolerance} must be positive")
    if not 0 < as_number("confidence", confidence) < 1:
        raise ArgumentError(f"confidence={confidence} must lie strictly between 0 and 1")
    if clip is not None and not 0 < as_number("clip", clip) < math.inf:
        raise ArgumentError(f"clip={clip} must be a positive finite number, in units of the metric")
