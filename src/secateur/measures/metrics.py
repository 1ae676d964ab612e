"""Metrics and losses: functions of outputs and targets that give one value for each sample."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from secateur.errors import MetricError
from secateur.measures.outputs import logits

PerSample = Callable[[Any, Any], Tensor]
IGNORED_TARGET = -100


@dataclass(frozen=True, eq=False)
class Metric:
    """A named per-sample value with a direction.

    Attributes:
        name: for people and for the key of stored points.
        function: `(outputs, targets) -> (samples,)`.
        higher_is_better: the direction.
        bounds: least and greatest value of one sample, if they are known.
        whole: a torchmetrics-like object whose value over all data the mean must equal; or None.
    """

    name: str
    function: PerSample
    higher_is_better: bool
    bounds: tuple[float, float] | None = None
    whole: Any = None

    @property
    def sign(self) -> int:
        """Damage is `sign * (before - after)`."""
        return 1 if self.higher_is_better else -1


def accuracy(outputs: Any, targets: Tensor) -> Tensor:
    """Share of right answers: (samples, ..., classes) against (samples, ...) -> (samples,) in [0, 1].

    >>> accuracy(torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 0])).tolist()
    [1.0, 0.0]
    """
    scores = logits(outputs)
    if scores.ndim == targets.ndim:
        right = (scores > 0).to(targets.dtype) == targets
    else:
        right = scores.argmax(-1) == targets
    return _mean_over_targets(right.double(), targets)


def top5_accuracy(outputs: Any, targets: Tensor) -> Tensor:
    """Share of targets among the five highest scores, (samples,) in [0, 1]."""
    best = logits(outputs).topk(min(5, logits(outputs).shape[-1]), dim=-1).indices
    return _mean_over_targets((best == targets.unsqueeze(-1)).any(-1).double(), targets)


def cross_entropy(outputs: Any, targets: Tensor) -> Tensor:
    """Negative log-likelihood in nats, mean over the targets of a sample: (samples,)."""
    scores = logits(outputs)
    losses = functional.cross_entropy(
        scores.flatten(0, -2), targets.flatten(), reduction="none", ignore_index=IGNORED_TARGET
    )
    return _mean_over_targets(losses.reshape(targets.shape), targets)


def squared_error(outputs: Any, targets: Tensor) -> Tensor:
    """Mean squared error of each sample, (samples,)."""
    values = logits(outputs)
    if values.shape != targets.shape:
        values = values.reshape(targets.shape)
    return (values - targets).square().flatten(1).mean(1) if targets.ndim > 1 else (values - targets).square()


METRICS = {
    "accuracy": Metric("accuracy", accuracy, higher_is_better=True, bounds=(0.0, 1.0)),
    "top5_accuracy": Metric("top5_accuracy", top5_accuracy, higher_is_better=True, bounds=(0.0, 1.0)),
    "cross_entropy": Metric("cross_entropy", cross_entropy, higher_is_better=False),
    "mse": Metric("mse", squared_error, higher_is_better=False),
}


def resolve_metric(metric: Any, higher_is_better: bool | None = None) -> Metric:
    """A `Metric` from a name, a callable, a torchmetrics-like object or a `Metric`.

    Args:
        metric: one of `METRICS`; a function `(outputs, targets) -> (samples,)`; or an object with
            `update`, `compute` and `reset` whose value is a mean over samples.
        higher_is_better: the direction; needed for a callable, and for an object without one.

    Raises:
        MetricError: an unknown name, or a direction that is missing or contradicts the metric's own.
    """
    if isinstance(metric, Metric):
        return _with_direction(metric, higher_is_better)
    if isinstance(metric, str):
        if metric not in METRICS:
            raise MetricError(f"metric {metric!r} is not known; use one of {sorted(METRICS)}, or pass a callable")
        return _with_direction(METRICS[metric], higher_is_better)
    if all(hasattr(metric, name) for name in ("update", "compute", "reset")):
        own = getattr(metric, "higher_is_better", None)
        direction = own if higher_is_better is None else higher_is_better
        if direction is None:
            raise MetricError(f"{type(metric).__name__} has no direction; pass higher_is_better=True or False")
        return Metric(type(metric).__name__, _object_values(metric), direction, whole=copy.deepcopy(metric))
    if callable(metric):
        if higher_is_better is None:
            raise MetricError("a metric that is a function has no direction; pass higher_is_better=True or False")
        return Metric(getattr(metric, "__qualname__", type(metric).__name__), metric, higher_is_better)
    raise MetricError(f"a metric must be a name, a function or a torchmetrics-like object; got {type(metric).__name__}")


def resolve_loss(loss: Any) -> PerSample:
    """A per-sample loss from a name, a function, or a loss module of torch (its reduction is taken off)."""
    if isinstance(loss, str):
        if loss not in METRICS or METRICS[loss].higher_is_better:
            raise MetricError(f"loss {loss!r} is not known; use 'cross_entropy' or 'mse', or pass a callable")
        return METRICS[loss].function
    if not callable(loss):
        raise MetricError(f"a loss must be a name or a callable; got {type(loss).__name__}")
    if hasattr(loss, "reduction"):
        single = copy.deepcopy(loss)
        single.reduction = "none"

        def values(outputs: Any, targets: Any) -> Tensor:
            raw: Tensor = single(logits(outputs), targets)
            return raw.flatten(1).mean(1) if raw.ndim > 1 else raw

        return values
    return loss  # type: ignore[no-any-return]


def per_sample(function: PerSample, outputs: Any, targets: Any, samples: int, name: str) -> Tensor:
    """Call a metric or loss and check that it gives one finite value for each sample.

    Raises:
        MetricError: another shape, or NaN where the outputs are finite.
    """
    values = function(outputs, targets)
    if not isinstance(values, Tensor) or values.shape != (samples,):
        got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise MetricError(
            f"{name} gave {got} for a batch of {samples} samples; needed a tensor of shape ({samples},): "
            "one value for each sample (with torch's losses: reduction='none')"
        )
    return values


def _with_direction(metric: Metric, higher_is_better: bool | None) -> Metric:
    if higher_is_better is not None and higher_is_better != metric.higher_is_better:
        word = "higher" if metric.higher_is_better else "lower"
        raise MetricError(f"for {metric.name}, {word} is better; higher_is_better={higher_is_better} contradicts it")
    return metric


def _object_values(metric: Any) -> PerSample:
    def values(outputs: Any, targets: Any) -> Tensor:
        single = copy.deepcopy(metric)
        found = []
        for k in range(len(targets)):
            single.reset()
            single.update(logits(outputs)[k : k + 1], targets[k : k + 1])
            found.append(torch.as_tensor(single.compute(), dtype=torch.float64).reshape(()))
        return torch.stack(found)

    return values


def _mean_over_targets(values: Tensor, targets: Tensor) -> Tensor:
    """Mean over all but the first dimension, without targets that are marked as ignored."""
    if targets.ndim == 1:
        return values
    counted = (targets != IGNORED_TARGET).to(values.dtype).flatten(1)
    return (values.flatten(1) * counted).sum(1) / counted.sum(1).clamp(min=1)
