"""`certify` and `certify_sequence`: what pruned models lose, tested on data that nothing else has read."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import nn

from secateur.allocation.certificate import Certificate, certify_agreement, certify_paired
from secateur.data import Batches, BatchFn, as_batches
from secateur.describe import content_hash, describe
from secateur.errors import ArgumentError, DataError
from secateur.measures.metrics import Metric, resolve_metric
from secateur.measures.objects import usable
from secateur.pipeline.certification import ON_SLICE, Certification, SequenceCertification
from secateur.pipeline.paired_values import Paired, paired_values
from secateur.sensitivity.keys import fingerprint
from secateur.storage.data_uses import ROUNDING, DataMark, Level, mark, spend as spend_level
from secateur.types import Floats

AGREEMENT = "agreement"


def certify(  # noqa: PLR0913 - one argument for each thing that a user may decide
    before: nn.Module,
    after: nn.Module,
    test: Any,
    *,
    tolerance: float | Mapping[str, float] | None = None,
    metric: Any = "accuracy",
    higher_is_better: bool | None = None,
    confidence: float = 0.95,
    slices: ArrayLike | Literal["targets"] | None = None,
    slice_tolerance: float | None = None,
    documents: ArrayLike | None = None,
    clip: float | None = None,
    batch_fn: BatchFn | None = None,
    run_dir: str | Path | None = None,
    spend: Level = None,
) -> Certification:
    """Certify on test data what the pruned model loses against the dense one, with a stated confidence.

    Accuracies are tested exactly, bounded metrics by betting, others by a t-test that is marked as asymptotic
    unless `clip` bounds them; see `certify_paired`. Of metrics that are no means over samples (F1, areas under curves)
    no exact test is known: they too get the t-test, on the shares of their samples, and cannot be clipped. Several
    metrics and slices must all pass, each at the full level.

    Source: intersection-union, Berger 1982 (Technometrics 24).

    Args:
        before: the dense model.
        after: the pruned model.
        test: batches that nothing else has read.
        tolerance: damage to rule out, in units of the metric; one a metric by name if there are several.
            None = state bounds only.
        metric: see `resolve_metric`; or "agreement", the share of equal predictions (argmax over the last
            dimension), which needs no targets and bounds the drop in accuracy; or a list of these.
        higher_is_better: direction of a metric that is a function.
        confidence: in (0, 1).
        slices: one label a sample, or "targets" for the classes: each slice must pass too.
        slice_tolerance: for the slices; default: the metric's.
        documents: one label a sample; samples of a document depend on each other, and documents are what is counted.
        clip: differences beyond ±clip count as ±clip, which bounds a metric without bounds.
        batch_fn: takes apart batches of an unusual shape.
        run_dir: remembers which test data were used. A second use is refused unless the first spent less than all.
        spend: level that this test spends of 1 - confidence; None = all of it; "sequence" = 6/(π²k²) of it
            for the k-th use.

    Raises:
        ArgumentError: a value outside its range, or tolerances that do not fit the metrics.
        DataError: no samples or targets, or a dense metric that is not finite.
        MetricError: an unusable metric.
        StoreError: the test data were used before, and too little of the level is left.
    """
    claims = _claims(metric, tolerance, higher_is_better, slices, slice_tolerance, documents, clip)
    purse = _purse(run_dir, confidence, spend, as_batches(test, "test", batch_fn))
    return _tested(before, after, claims, purse)[0]


def certify_sequence(  # noqa: PLR0913 - those of `certify`
    before: nn.Module,
    candidates: Iterable[nn.Module],
    test: Any,
    *,
    tolerance: float | Mapping[str, float],
    metric: Any = "accuracy",
    higher_is_better: bool | None = None,
    confidence: float = 0.95,
    slices: ArrayLike | Literal["targets"] | None = None,
    slice_tolerance: float | None = None,
    documents: ArrayLike | None = None,
    clip: float | None = None,
    batch_fn: BatchFn | None = None,
    run_dir: str | Path | None = None,
    spend: Level = None,
) -> SequenceCertification:
    """Certify candidates from the most conservative to the most aggressive; the last before the first failure ships.

    Each is tested at the full level, without correction: a false certificate needs the first candidate that is
    too bad to pass, which has probability at most 1 - confidence. A candidate may be made when it is
    asked for (`candidates` may be a generator), knowing that all earlier ones passed, but not by how much.

    Source: fixed-sequence testing, Maurer, Hothorn & Lehmacher 1995; Angelopoulos et al. 2021, arXiv:2110.01052.

    Args:
        before: the dense model.
        candidates: pruned models, in an order fixed without the test data; read no further than the first failure.
        test: batches that nothing else has read.
        tolerance: as in `certify`, as are all other arguments.
        metric: likewise.
        higher_is_better: likewise.
        confidence: likewise.
        slices: likewise.
        slice_tolerance: likewise.
        documents: likewise.
        clip: likewise.
        batch_fn: likewise.
        run_dir: likewise; the whole sequence is one use of the test data.
        spend: likewise.

    Raises:
        ArgumentError: there is no tolerance or no candidate, or a value outside its range.
        DataError, MetricError, StoreError: as in `certify`.
    """
    if tolerance is None:
        raise ArgumentError("a sequence needs a tolerance: it stops at the first candidate that exceeds it")
    claims = _claims(metric, tolerance, higher_is_better, slices, slice_tolerance, documents, clip)
    purse = _purse(run_dir, confidence, spend, as_batches(test, "test", batch_fn))
    steps: list[Certification] = []
    shipped, passed = None, "first of a sequence"
    for candidate in candidates:
        step, claim = _tested(before, candidate, claims, purse, step_after=passed, number=len(steps))
        steps.append(step)
        if not step.certified:
            break
        shipped, passed = candidate, claim
    if not steps:
        raise ArgumentError("there is no candidate: pass at least one pruned model")
    return SequenceCertification(tuple(steps), shipped)


@dataclass(frozen=True, eq=False)
class _Claims:
    """What is to be tested, apart from the models and the data.

    Attributes:
        metrics: those that are functions of outputs and targets.
        tolerances: damage to rule out, by name of the metric; "agreement" among them if it is asked for.
        slices: one label a sample, "targets" or None.
        slice_tolerance: None = the metric's.
        documents: one label a sample, or None.
        clip: largest difference that counts, or None.
    """

    metrics: tuple[Metric, ...]
    tolerances: Mapping[str, float | None]
    slices: Any
    slice_tolerance: float | None
    documents: NDArray[Any] | None
    clip: float | None

    @property
    def by_class(self) -> bool:
        """Whether the slices are the classes."""
        return isinstance(self.slices, str)

    def text(self) -> str:
        """All of it, the same in every process."""
        metrics = [(m.name, m.function, m.higher_is_better, m.bounds) for m in self.metrics]
        return describe((metrics, self.tolerances, self.slices, self.slice_tolerance, self.documents, self.clip))

    def about(self, model: nn.Module) -> str:
        """In words, for people."""
        wanted = [
            f"{name} within {t:g}" if t is not None else f"a bound on {name}" for name, t in self.tolerances.items()
        ]
        return f"{' and '.join(wanted)} of a {type(model).__name__}"


def _claims(
    metric: Any,
    tolerance: float | Mapping[str, float] | None,
    higher_is_better: bool | None,
    slices: Any,
    slice_tolerance: float | None,
    documents: ArrayLike | None,
    clip: float | None,
) -> _Claims:
    given = list(metric) if isinstance(metric, list | tuple) else [metric]
    metrics = tuple(resolve_metric(m, higher_is_better) for m in given if not _is_agreement(m))
    names = [m.name for m in metrics] + [AGREEMENT] * any(_is_agreement(m) for m in given)
    if len(set(names)) < len(given) or not given:
        raise ArgumentError(f"metric names {names}: give at least one, and each once")
    if isinstance(tolerance, Mapping):
        if set(tolerance) != set(names):
            raise ArgumentError(f"tolerance is given for {sorted(tolerance)}; needed one for each of {sorted(names)}")
        tolerances: dict[str, float | None] = {name: tolerance[name] for name in names}
    elif tolerance is not None and len(names) > 1:
        raise ArgumentError(f"tolerance={tolerance} for several metrics: pass a mapping with one for each of {names}")
    else:
        tolerances = dict.fromkeys(names, tolerance)
    if isinstance(slices, str) and slices != "targets":
        raise ArgumentError(f'slices={slices!r} is not known; pass "targets" or one label a sample')
    if slice_tolerance is not None and slices is None:
        raise ArgumentError(f"slice_tolerance={slice_tolerance} without slices: pass one label a sample")
    if slices is not None and documents is not None:
        raise ArgumentError("slices and documents together are not offered: certify each slice's data by themselves")
    if documents is not None and AGREEMENT in tolerances:
        raise ArgumentError("agreement is counted by samples, not by documents: certify it in a call of its own")
    labels = slices if slices is None or isinstance(slices, str) else np.asarray(slices)
    return _Claims(
        metrics, tolerances, labels, slice_tolerance, None if documents is None else np.asarray(documents), clip
    )


def _is_agreement(metric: Any) -> bool:
    return isinstance(metric, str) and metric == AGREEMENT


@dataclass(frozen=True, eq=False)
class _Purse:
    """The test data, and what may be spent on them.

    Attributes:
        data: the test data.
        confidence: over all uses of the data.
        spend: see `certify`.
        directory: where uses are written down; None = nowhere.
        mark: by which the data are known again; None without a directory.
    """

    data: Batches
    confidence: float
    spend: Level
    directory: Path | None
    mark: DataMark | None


def check_level(confidence: float, spend: Level, run_dir: str | Path | None) -> None:
    """Raise an error where the level that a test is to spend is out of range, or cannot be written down."""
    if not 0 < confidence < 1:
        raise ArgumentError(f"confidence={confidence} must lie strictly between 0 and 1")
    allowed = 1 - confidence
    if isinstance(spend, str) and spend != "sequence":
        raise ArgumentError(f'spend={spend!r} is not known; pass a level, "sequence" or None')
    if isinstance(spend, int | float) and not 0 < spend <= allowed + ROUNDING:
        raise ArgumentError(f"spend={spend} must lie in (0, {allowed:.4g}]: it is a part of 1 - confidence")
    if spend is not None and run_dir is None:
        raise ArgumentError("spend needs run_dir=..., in which the uses of the test data are written down")


def _purse(run_dir: str | Path | None, confidence: float, spend: Level, data: Batches) -> _Purse:
    check_level(confidence, spend, run_dir)
    if run_dir is None:
        return _Purse(data, confidence, spend, None, None)
    return _Purse(data, confidence, spend, Path(run_dir), mark(data))


def _tested(
    before: nn.Module, after: nn.Module, claims: _Claims, purse: _Purse, *, step_after: str = "", number: int = 0
) -> tuple[Certification, str]:
    """The outcome for one pruned model, and the hash of what was claimed."""
    allowed = 1 - purse.confidence
    claim = content_hash([step_after, fingerprint(before), fingerprint(after), claims.text(), purse.confidence])
    spending = None
    if purse.directory is not None and purse.mark is not None:
        # Before the data are looked at: a run that is killed after it saw the outcome has used them.
        spending = spend_level(
            purse.directory, purse.mark, claim=claim, about=claims.about(after), allowed=allowed, level=purse.spend,
            after=step_after if number else "",
        )  # fmt: skip
    level = allowed if spending is None else spending.level
    claims = replace(claims, metrics=tuple(usable(before, purse.data, metric) for metric in claims.metrics))
    values = paired_values(
        before, after, purse.data, claims.metrics, agreement=AGREEMENT in claims.tolerances, classes=claims.by_class
    )
    parts = tuple(_parts(values, claims, 1 - level))
    return Certification(parts, purse.confidence, level, None if spending is None else spending.number), claim


def _parts(values: Paired, claims: _Claims, confidence: float) -> Iterator[Certificate]:
    """One certificate for each metric, and one for each of its slices, all at the full level."""
    labels = values.classes if claims.by_class else claims.slices
    for name, tolerance in claims.tolerances.items():
        test = _test(name, values, claims, confidence)
        yield test(slice(None), name, tolerance)
        wanted = tolerance if claims.slice_tolerance is None else claims.slice_tolerance
        for label, rows in _slices(labels, values.samples):
            yield test(rows, f"{name}{ON_SLICE}{label}", wanted)


def _test(
    name: str, values: Paired, claims: _Claims, confidence: float
) -> Callable[[Any, str, float | None], Certificate]:
    """(rows, name, tolerance) -> the certificate of a metric on these rows."""
    if name == AGREEMENT:
        return lambda rows, named, tolerance: replace(
            certify_agreement(values.changed[rows], tolerance=tolerance, confidence=confidence), metric=named
        )
    metric = next(m for m in claims.metrics if m.name == name)

    def certified(rows: Any, named: str, tolerance: float | None) -> Certificate:
        before, after = _as_means(metric, *(each[rows] for each in values.metrics[name]))
        return certify_paired(
            before, after, tolerance=tolerance, confidence=confidence,
            bounds=metric.bounds if metric.aggregate is None else None, higher_is_better=metric.higher_is_better,
            clip=claims.clip, documents=claims.documents, shares=metric.aggregate is not None, metric=named,
        )  # fmt: skip

    return certified


def _as_means(metric: Metric, before: Floats, after: Floats) -> tuple[Floats, Floats]:
    """One value for each sample, whose means are the metric before and after."""
    if metric.aggregate is None:
        return before, after
    whole = np.full(len(before), metric.value(before))
    return whole, whole - metric.sign * metric.damage(before, after)


def _slices(labels: Any, samples: int) -> list[tuple[Any, NDArray[np.bool_]]]:
    if labels is None:
        return []
    if labels.shape != (samples,):
        raise DataError(f"slices has shape {labels.shape}; needed one label for each of the {samples} test samples")
    return [(label, labels == label) for label in np.unique(labels)]
