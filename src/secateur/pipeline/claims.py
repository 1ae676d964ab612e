"""What is claimed of a pruned model, checked before any test data are used for it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import nn

from secateur.allocation.certificate import NO_MEAN, check_terms
from secateur.data import Batches
from secateur.describe import describe
from secateur.errors import ArgumentError, DataError
from secateur.measures.metrics import Metric, resolve_metric
from secateur.pipeline.paired_values import NO_TARGETS

AGREEMENT = "agreement"


@dataclass(frozen=True, eq=False)
class Claims:
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


def claims_of(
    metric: Any,
    tolerance: float | Mapping[str, float] | None,
    higher_is_better: bool | None,
    slices: Any,
    slice_tolerance: float | None,
    documents: ArrayLike | None,
    clip: float | None,
) -> Claims:
    """The claims that the arguments of `certify` make.

    Raises:
        ArgumentError: arguments that do not fit each other, or that no data could certify.
        DataError: labels that are missing for some samples.
        MetricError: an unusable metric.
    """
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
    labels = slices if slices is None or isinstance(slices, str) else _labels("slices", slices)
    units = None if documents is None else _labels("documents", documents)
    found = Claims(metrics, tolerances, labels, slice_tolerance, units, clip)
    _check_tolerances(found)
    return found


def _labels(name: str, given: ArrayLike) -> NDArray[Any]:
    """Labels as an array in which each is equal to itself and can be told from the others."""
    found = np.asarray(given)
    if found.dtype.kind not in "biufUS" or (found.dtype.kind == "f" and np.isnan(found).any()):
        raise DataError(f"{name} must be numbers, none of them NaN, or strings: one label a sample, none missing")
    return found


def check_models(*models: Any) -> None:
    """Refuse what is no model."""
    for model in models:
        if not isinstance(model, nn.Module):
            raise ArgumentError(f"certify compares two nn.Modules, the dense and the pruned one; got {model!r}")


def _check_tolerances(claims: Claims) -> None:
    """Refuse, before the test data are used for it, what no data could certify."""
    for metric in claims.metrics:
        if metric.aggregate is not None and claims.clip is not None:
            raise ArgumentError(NO_MEAN.format(metric=metric.name))
    limits = {metric.name: _largest_drop(metric, claims.clip) for metric in claims.metrics}
    for name, tolerance in claims.tolerances.items():
        for asked in (tolerance, claims.slice_tolerance):
            check_terms(asked, 0.5, claims.clip)
            if asked is not None and asked >= limits.get(name, 1.0):
                raise ArgumentError(
                    f"tolerance={asked} is no less than the largest possible drop of {name}, {limits.get(name, 1.0):g}"
                )


def _largest_drop(metric: Metric, clip: float | None) -> float:
    if metric.aggregate is not None:
        return math.inf
    if metric.bounds is None:
        return clip or math.inf
    return metric.bounds[1] - metric.bounds[0]


def _is_agreement(metric: Any) -> bool:
    return isinstance(metric, str) and metric == AGREEMENT


def check_data(claims: Claims, data: Batches, samples: int) -> None:
    """Refuse test data that the claims do not fit before they are used."""
    if (claims.metrics or claims.by_class) and any(batch.targets is None for batch in data):
        raise DataError(NO_TARGETS)
    for name, labels in (("slices", claims.slices), ("documents", claims.documents)):
        if labels is not None and not isinstance(labels, str):
            check_labels(name, labels, samples)


def check_labels(name: str, labels: NDArray[Any], samples: int) -> None:
    """Refuse labels that are not one for each sample."""
    if labels.shape != (samples,):
        raise DataError(f"{name} has shape {labels.shape}; needed one label for each of the {samples} test samples")
