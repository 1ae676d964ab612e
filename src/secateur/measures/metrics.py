"""Metrics and losses: functions of outputs and targets that give one value for each sample, or one row of numbers."""

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils import _pytree as pytree

from secateur.errors import MetricError, SecateurError
from secateur.measures.aggregate import Aggregate, OfSums
from secateur.measures.counts import IGNORED_TARGET, by_class, confusion, f1, mean_iou, perplexity, token_losses
from secateur.measures.outputs import class_scores, logits
from secateur.types import Floats

PerSample = Callable[[Any, Any], Tensor]
TOP_K = re.compile(r"top(\d+)(_accuracy)?")


@dataclass(frozen=True, eq=False)
class Metric:
    """A named value with a direction: a mean over samples, or an aggregate of one row of numbers for each.

    Attributes:
        name: for people and for the key of stored points.
        function: `(outputs, targets) -> (samples,)`; `(samples, numbers)` with an aggregate.
        higher_is_better: the direction.
        bounds: least and greatest value of one sample, if they are known.
        whole: a torchmetrics-like object whose value over all data the mean must equal; or None.
        aggregate: makes a value of the rows of all samples; None: the mean.
    """

    name: str
    function: PerSample
    higher_is_better: bool
    bounds: tuple[float, float] | None = None
    whole: Any = None
    aggregate: Aggregate | None = None

    @property
    def sign(self) -> int:
        """Damage is `sign * (before - after)`."""
        return 1 if self.higher_is_better else -1

    def value(self, values: Floats) -> float:
        """The metric over all samples of `values`.

        >>> METRICS["accuracy"].value(np.array([1.0, 0.0]))
        0.5
        """
        return float(values.mean()) if self.aggregate is None else self.aggregate.value(values)

    def damage(self, before: Floats, after: Floats) -> Floats:
        """Paired damage, one value for each sample, positive = worse; their mean is that of the metric.

        What is not finite afterwards is infinitely bad.

        >>> METRICS["accuracy"].damage(np.array([1.0, 1.0]), np.array([0.0, np.nan])).tolist()
        [1.0, inf]
        """
        if self.aggregate is None:
            return paired(before, after, self.sign)
        found = np.full(len(after), np.inf)
        is_finite = np.isfinite(after).all(axis=1)
        if is_finite.any():
            found[is_finite] = self.sign * self.aggregate.lost(before[is_finite], after[is_finite])
        return found


def paired(before: Floats, after: Floats, sign: int) -> Floats:
    """Paired damage of each sample, positive = worse; what is not finite afterwards is infinitely bad.

    >>> paired(np.array([1.0, 1.0]), np.array([0.0, np.nan]), 1).tolist()
    [1.0, inf]
    """
    return np.where(np.isfinite(after), sign * (before - after), np.inf)


def accuracy(outputs: Any, targets: Tensor) -> Tensor:
    """Share of right answers in [0, 1]: (samples,).

    Scores are (samples, ..., classes) or (samples, classes, ...); without a dimension of classes their sign counts.

    >>> accuracy(torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 0])).tolist()
    [1.0, 0.0]
    """
    scores = class_scores(outputs, targets)
    if scores.ndim == targets.ndim:
        right = (scores > 0).to(targets.dtype) == targets
    else:
        right = scores.argmax(-1) == targets
    return _mean_over_targets(right.double(), targets)


def top_k_accuracy(outputs: Any, targets: Tensor, *, k: int) -> Tensor:
    """Share of targets among the `k` highest scores, (samples,) in [0, 1].

    >>> top_k_accuracy(torch.tensor([[3.0, 2.0, 1.0]] * 2), torch.tensor([1, 2]), k=2).tolist()
    [1.0, 0.0]
    """
    scores = class_scores(outputs, targets)
    if scores.ndim != targets.ndim + 1:
        raise MetricError(f"top{k} needs scores of several classes; got {tuple(scores.shape)} for one class")
    best = scores.topk(min(k, scores.shape[-1]), dim=-1).indices
    return _mean_over_targets((best == targets.unsqueeze(-1)).any(-1).double(), targets)


def cross_entropy(outputs: Any, targets: Tensor) -> Tensor:
    """Negative log-likelihood in nats, mean over the targets of a sample: (samples,)."""
    scores = class_scores(outputs, targets)
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
    "top5_accuracy": Metric("top5_accuracy", partial(top_k_accuracy, k=5), higher_is_better=True, bounds=(0.0, 1.0)),
    "cross_entropy": Metric("cross_entropy", cross_entropy, higher_is_better=False),
    "mse": Metric("mse", squared_error, higher_is_better=False),
    "perplexity": Metric("perplexity", token_losses, higher_is_better=False, aggregate=OfSums(perplexity)),
    "f1": Metric("f1", confusion, higher_is_better=True, aggregate=OfSums(f1, by_class)),
    "mean_iou": Metric("mean_iou", confusion, higher_is_better=True, aggregate=OfSums(mean_iou, by_class)),
}
LOSSES = ("cross_entropy", "mse")


def resolve_metric(metric: Any, higher_is_better: bool | None = None) -> Metric:
    """A `Metric` from a name, a callable, a torchmetrics-like object or a `Metric`.

    Args:
        metric: one of `METRICS`, or "top3" and the like; a function `(outputs, targets) -> (samples,)`; or an object
            with `update`, `compute` and `reset` whose value is a mean over samples.
        higher_is_better: the direction; needed for a callable, and for an object without one.

    Raises:
        MetricError: an unknown name, or a direction that is missing or contradicts the metric's own.
    """
    if isinstance(metric, Metric):
        return _with_direction(metric, higher_is_better)
    if isinstance(metric, str):
        return _with_direction(_named(metric), higher_is_better)
    if isinstance(metric, type):
        raise MetricError(f"{metric.__name__} is a class; pass an object of it, such as {metric.__name__}(...)")
    if all(hasattr(metric, name) for name in ("update", "compute", "reset")):
        own = getattr(metric, "higher_is_better", None)
        direction = own if higher_is_better is None else higher_is_better
        if direction is None:
            raise MetricError(f"{type(metric).__name__} has no direction; pass higher_is_better=True or False")
        return Metric(type(metric).__name__, partial(_object_values, metric), direction, whole=copy.deepcopy(metric))
    if callable(metric):
        if higher_is_better is None:
            raise MetricError("a metric that is a function has no direction; pass higher_is_better=True or False")
        return Metric(getattr(metric, "__qualname__", type(metric).__name__), metric, higher_is_better)
    raise MetricError(f"a metric must be a name, a function or a torchmetrics-like object; got {type(metric).__name__}")


def resolve_metrics(metric: Any, higher_is_better: bool | None, loss: Any) -> tuple[Metric, ...]:
    """One metric, or a list of them; "loss" is the loss that was given.

    Args:
        metric: what `resolve_metric` takes, or a list of such.
        higher_is_better: direction of those that have none of their own.
        loss: see `resolve_loss`.

    Raises:
        MetricError: no metric, or two of one name; or as in `resolve_metric`.

    >>> [found.name for found in resolve_metrics(["accuracy", "loss"], None, "cross_entropy")]
    ['accuracy', 'loss']
    """
    if not isinstance(metric, list | tuple):
        given = _loss_metric(loss) if _is_loss(metric) else metric
        return (resolve_metric(given, higher_is_better),)
    found = tuple(
        _loss_metric(loss) if _is_loss(m) else resolve_metric(m, None if _has_direction(m) else higher_is_better)
        for m in metric
    )
    names = [m.name for m in found]
    if not found or len(set(names)) < len(names):
        raise MetricError(f"metrics are {names}; needed at least one, each with a name of its own (see sc.Metric)")
    return found


def _is_loss(metric: Any) -> bool:
    return isinstance(metric, str) and metric == "loss"


def _loss_metric(loss: Any) -> Metric:
    return Metric("loss", resolve_loss(loss), higher_is_better=False)


def _has_direction(metric: Any) -> bool:
    return isinstance(metric, str | Metric) or getattr(metric, "higher_is_better", None) is not None


def _named(name: str) -> Metric:
    if name in METRICS:
        return METRICS[name]
    top = TOP_K.fullmatch(name)
    if top is None or int(top[1]) < 1:
        raise MetricError(
            f"metric {name!r} is not known; use one of {sorted(METRICS)}, top3 or the like, or a callable"
        )
    k = int(top[1])
    return Metric(f"top{k}_accuracy", partial(top_k_accuracy, k=k), higher_is_better=True, bounds=(0.0, 1.0))


def resolve_loss(loss: Any) -> PerSample:
    """A per-sample loss from a name, a function, or a loss module of torch (its reduction is taken off)."""
    if isinstance(loss, str):
        if loss not in LOSSES:
            raise MetricError(f"loss {loss!r} is not known; use 'cross_entropy' or 'mse', or pass a callable")
        return METRICS[loss].function
    if not callable(loss):
        raise MetricError(f"a loss must be a name or a callable; got {type(loss).__name__}")
    if hasattr(loss, "reduction"):
        single = copy.deepcopy(loss)
        single.reduction = "none"
        return partial(_module_losses, single)
    return loss  # type: ignore[no-any-return]


# Functions of a module, as those within others cannot be sent to workers.
def _module_losses(single: Any, outputs: Any, targets: Any) -> Tensor:
    scores = logits(outputs)
    raw: Tensor = single(scores, targets)
    if isinstance(targets, Tensor) and raw.numel() > max(scores.numel(), targets.numel()):
        raise MetricError(
            f"{type(single).__name__} held each of the outputs {kind_of(scores)} against each of the targets "
            f"{kind_of(targets)}; give targets of the shape of the outputs, or loss='mse'"
        )
    return raw.flatten(1).mean(1) if raw.ndim > 1 else raw


def per_sample(
    function: PerSample, outputs: Any, targets: Any, samples: int, name: str, *, rows: bool = False
) -> Tensor:
    """Call a metric or loss and check that it gives one value for each sample, or one row of numbers.

    Raises:
        MetricError: another shape, or it failed, or it writes to what others are measured on.
    """
    before = _versions(outputs, targets)
    try:
        values = function(outputs, targets)
    except SecateurError:
        raise
    except Exception as error:
        remedy = "; pass batches (inputs..., targets), or see batch_fn" if targets is None else ""
        raise MetricError(
            f"{name} failed on outputs {kind_of(outputs)} and targets {kind_of(targets)}: "
            f"{type(error).__name__}: {error}{remedy}"
        ) from error
    if _versions(outputs, targets) != before:
        raise MetricError(f"{name} writes to the outputs or targets in place; let it work on a copy")
    if rows and isinstance(values, Tensor) and values.ndim == 2 and len(values) == samples:
        return values
    if not isinstance(values, Tensor) or values.shape != (samples,):
        got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise MetricError(
            f"{name} gave {got} for a batch of {samples} samples; needed a tensor of shape ({samples},): "
            "one value for each sample (with torch's losses: reduction='none')"
        )
    return values


def _versions(*values: Any) -> list[int]:
    """How often each tensor was written to; of those made in inference mode nobody knows."""
    leaves = [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor)]
    return [0 if leaf.is_inference() else leaf._version for leaf in leaves]


def kind_of(value: Any) -> str:
    """Shape and type of a tensor.

    >>> kind_of(torch.zeros(2, 3)), kind_of([1])
    ('(2, 3) of float32', 'of type list')
    """
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    return f"of type {type(value).__name__}"


def _with_direction(metric: Metric, higher_is_better: bool | None) -> Metric:
    if higher_is_better is not None and higher_is_better != metric.higher_is_better:
        word = "higher" if metric.higher_is_better else "lower"
        raise MetricError(f"for {metric.name}, {word} is better; higher_is_better={higher_is_better} contradicts it")
    return metric


def _object_values(metric: Any, outputs: Any, targets: Any) -> Tensor:
    single = copy.deepcopy(metric)
    found = []
    for k in range(len(targets)):
        single.reset()
        single.update(logits(outputs)[k : k + 1], targets[k : k + 1])
        found.append(torch.as_tensor(single.compute(), dtype=torch.float64).reshape(()))
    return torch.stack(found)


def _mean_over_targets(values: Tensor, targets: Tensor) -> Tensor:
    """Mean over all but the first dimension, without targets that are marked as ignored."""
    if targets.ndim == 1:
        return values
    counted = (targets != IGNORED_TARGET).to(values.dtype).flatten(1)
    return (values.flatten(1) * counted).sum(1) / counted.sum(1).clamp(min=1)
