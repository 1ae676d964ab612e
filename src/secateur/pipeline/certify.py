"""`certify` and `certify_sequence`: what pruned models lose, tested on data that nothing else has read."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import nn

from secateur.allocation.certificate import Certificate, certify_agreement, certify_paired, check_terms
from secateur.data import Batches, BatchFn, as_batches
from secateur.describe import content_hash
from secateur.errors import ArgumentError, as_number
from secateur.measures.metrics import Metric
from secateur.measures.objects import usable
from secateur.pipeline.certification import ON_SLICE, REPEATED, Certification, SequenceCertification
from secateur.pipeline.claims import AGREEMENT, Claims, check_data, check_labels, check_models, claims_of
from secateur.pipeline.paired_values import Paired, paired_values
from secateur.sensitivity.keys import fingerprint
from secateur.storage.data_uses import ROUNDING, DataMark, Level, mark, spend as spend_level
from secateur.types import Floats


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
        metric: see `resolve_metric`; or "agreement", the share of samples of which all predictions are equal, which
            needs no targets and bounds the drop in accuracy (see `paired_values`); or a list of these.
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
    claims = claims_of(metric, tolerance, higher_is_better, slices, slice_tolerance, documents, clip)
    check_models(before, after)
    purse = _purse(run_dir, confidence, spend, as_batches(test, "test", batch_fn), claims)
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
    if tolerance is None or (isinstance(tolerance, Mapping) and None in tolerance.values()):
        raise ArgumentError("a sequence needs a tolerance: it stops at the first candidate that exceeds it")
    claims = claims_of(metric, tolerance, higher_is_better, slices, slice_tolerance, documents, clip)
    if isinstance(candidates, nn.Module) and not isinstance(candidates, nn.ModuleList):
        raise ArgumentError("candidates is one model; pass a list of them, from mild to aggressive, or use certify")
    purse = _purse(run_dir, confidence, spend, as_batches(test, "test", batch_fn), claims)
    steps: list[Certification] = []
    shipped, passed = None, "first of a sequence"
    for candidate in candidates:
        check_models(before, candidate)
        step, claim = _tested(before, candidate, claims, purse, step_after=passed, number=len(steps))
        steps.append(step)
        if not step.certified:
            break
        shipped, passed = candidate, claim
    if not steps:
        raise ArgumentError("there is no candidate: pass at least one pruned model")
    return SequenceCertification(tuple(steps), shipped)


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
    check_terms(None, confidence)
    allowed = 1 - confidence
    if isinstance(spend, str) and spend != "sequence":
        raise ArgumentError(f'spend={spend!r} is not known; pass a level, "sequence" or None')
    if spend not in (None, "sequence") and not 0 < as_number("spend", spend) <= allowed + ROUNDING:
        raise ArgumentError(f"spend={spend} must lie in (0, {allowed:.4g}]: it is a part of 1 - confidence")
    if spend is not None and run_dir is None:
        raise ArgumentError("spend needs run_dir=..., in which the uses of the test data are written down")


def _purse(run_dir: str | Path | None, confidence: float, spend: Level, data: Batches, claims: Claims) -> _Purse:
    check_level(confidence, spend, run_dir)
    if run_dir is None:
        return _Purse(data, confidence, spend, None, None)
    found = mark(data)
    check_data(claims, data, found.samples)
    return _Purse(data, confidence, spend, Path(run_dir), found)


def _tested(
    before: nn.Module, after: nn.Module, claims: Claims, purse: _Purse, *, step_after: str = "", number: int = 0
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
    if values.repeated:
        repeated = REPEATED.format(count=values.repeated, samples=values.samples)
        parts = tuple(replace(part, assumptions=(*part.assumptions, repeated)) for part in parts)
    return Certification(parts, purse.confidence, level, None if spending is None else spending.number), claim


def _parts(values: Paired, claims: Claims, confidence: float) -> Iterator[Certificate]:
    """One certificate for each metric, and one for each of its slices, all at the full level."""
    labels = values.classes if claims.by_class else claims.slices
    if claims.documents is not None:
        check_labels("documents", claims.documents, values.samples)
    for name, tolerance in claims.tolerances.items():
        test = _test(name, values, claims, confidence)
        yield test(slice(None), name, tolerance)
        wanted = tolerance if claims.slice_tolerance is None else claims.slice_tolerance
        for label, rows in _slices(labels, values.samples):
            yield test(rows, f"{name}{ON_SLICE}{label}", wanted)


def _test(
    name: str, values: Paired, claims: Claims, confidence: float
) -> Callable[[Any, str, float | None], Certificate]:
    """(rows, name, tolerance) -> the certificate of a metric on these rows."""
    if name == AGREEMENT:
        return lambda rows, named, tolerance: replace(
            certify_agreement(values.changed[rows], tolerance=tolerance, confidence=confidence), metric=named
        )
    metric = next(m for m in claims.metrics if m.name == name)

    def certified(rows: Any, named: str, tolerance: float | None) -> Certificate:
        # Bets are made one after the other: in an order that no other order of the same samples can change.
        chosen = values.order[np.isin(values.order, np.arange(values.samples)[rows])]
        documents = None if claims.documents is None else claims.documents[chosen]
        before, after = _as_means(metric, *(each[chosen] for each in values.metrics[name]))
        return certify_paired(
            before, after, tolerance=tolerance, confidence=confidence,
            bounds=metric.bounds if metric.aggregate is None else None, higher_is_better=metric.higher_is_better,
            clip=claims.clip, documents=documents, shares=metric.aggregate is not None, metric=named,
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
    check_labels("slices", labels, samples)
    return [(label, labels == label) for label in np.unique(labels)]
