"""Damage on slices of the validation data: classes, or whatever the samples are told apart by."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from secateur.data import Batch, Batches
from secateur.errors import ArgumentError, DataError
from secateur.measures.metrics import Metric
from secateur.types import Floats

Labels = NDArray[Any]
Slices = ArrayLike | Literal["targets"] | Callable[[Batch], Any] | None
"""One label a sample; "targets" for the classes; or a function of a batch that gives its samples' labels."""

ON_WORST = " on the worst slice"


@dataclass(frozen=True, eq=False)
class Sliced:
    """Damage of a group by slices.

    Attributes:
        labels: of the slices.
        mean: float64 (levels, slices); NaN where no sample of the slice was measured.
        standard_error: likewise; NaN for fewer than two samples.
    """

    labels: tuple[Any, ...]
    mean: Floats
    standard_error: Floats


def labels_of(data: Batches, slices: Slices) -> Labels | None:
    """One label for each sample; None without slices.

    Raises:
        ArgumentError: targets that are not one class a sample, or another word.
        DataError: another number of labels than of samples.
    """
    if slices is None:
        return None
    if isinstance(slices, str):
        if slices != "targets":
            raise ArgumentError(
                f'slices={slices!r} is not known; pass "targets", one label a sample, or a function of a batch'
            )
        return np.concatenate([_classes(batch) for batch in data])
    if callable(slices):
        return np.concatenate([_checked(_array(slices(batch)), batch.size) for batch in data])
    return _checked(_array(slices), data.count())


def sliced(metric: Metric, before: Floats, after: Floats, labels: Labels) -> tuple[Sliced, Floats]:
    """Damage by slices at one level, and each sample's share of that on the worst slice.

    The mean of the shares is the damage on the worst slice, and their standard error is that of the slice. The worst is
    chosen by what was measured, so its mean is high by chance the more, the more slices there are.

    Args:
        metric: whose damage.
        before: of the whole model, for the samples that were measured.
        after: likewise, without the units.
        labels: of the same samples.

    >>> accuracy = Metric("accuracy", lambda outputs, targets: outputs, higher_is_better=True)
    >>> table, shares = sliced(accuracy, np.ones(4), np.array([1.0, 0.0, 1.0, 1.0]), np.array(["a", "a", "b", "b"]))
    >>> table.labels, table.mean.tolist(), float(shares.mean())
    (('a', 'b'), [[0.5, 0.0]], 0.5)
    """
    names = np.unique(labels)
    parts = [labels == name for name in names]
    lost = [metric.damage(before[part], after[part]) for part in parts]
    means = np.array([values.mean() for values in lost])
    with np.errstate(invalid="ignore", divide="ignore"):
        errors = np.array([np.sqrt(_variance(values) / len(values)) for values in lost])
    worst = int(np.argmax(means))
    shares = np.full(len(labels), means[worst])
    if np.isfinite(means[worst]):
        shares[parts[worst]] += len(labels) / parts[worst].sum() * (lost[worst] - means[worst])
    return Sliced(tuple(names.tolist()), means[None], errors[None]), shares


def stacked(labels: Labels, levels: Sequence[Sliced]) -> Sliced:
    """One table of all levels, the whole group, which loses nothing, first; NaN where a slice was not seen."""
    names = tuple(labels.tolist())
    mean, error = np.full((2, len(levels) + 1, len(names)), np.nan)
    mean[0] = error[0] = 0.0
    for level, part in enumerate(levels, start=1):
        columns = [names.index(label) for label in part.labels]
        mean[level, columns], error[level, columns] = part.mean[0], part.standard_error[0]
    return Sliced(names, mean, error)


def _variance(values: Floats) -> float:
    return float(values.var(ddof=1)) if len(values) > 1 and np.isfinite(values).all() else float("nan")


def _classes(batch: Batch) -> Labels:
    if not isinstance(batch.targets, Tensor) or batch.targets.shape != (batch.size,):
        raise ArgumentError(
            'slices="targets" needs one class a sample; pass one label a sample or a function of a batch instead'
        )
    return _array(batch.targets)


def _array(values: Any) -> Labels:
    return np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values)


def _checked(labels: Labels, samples: int) -> Labels:
    if labels.shape != (samples,):
        raise DataError(f"slices gave labels of shape {labels.shape}; needed one for each of {samples} samples")
    kinds = sorted({type(label).__name__ for label in labels.tolist()})
    if len(kinds) > 1 or (labels != labels).any():  # noqa: PLR0124 - NaN alone is not what it is
        raise DataError(
            f"slices gave labels of types {kinds}, or NaN; needed values of one type that can be told apart"
        )
    return labels
