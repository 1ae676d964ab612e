"""Run a model over a data set, and keep one value of metric and loss for each sample."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import nn

from secateur.data import Batch, Batches, to_device
from secateur.errors import MetricError, NumericalError
from secateur.graph.trace import in_eval_mode
from secateur.measures.metrics import Metric, PerSample, per_sample
from secateur.measures.outputs import logits
from secateur.types import Evaluation, Floats


def evaluate(
    model: nn.Module, data: Iterable[Batch], *, metric: Metric, loss: PerSample, finite: bool = True
) -> Evaluation:
    """Metric and loss of `model` on each sample, in eval mode without gradients.

    Args:
        model: left as it is.
        data: batches; moved to the model's device.
        metric: per-sample metric.
        loss: per-sample loss.
        finite: refuse values that are not finite. With False they are kept: the damage of a pruned
            network may be without bound, and NaN is never "better".

    Raises:
        MetricError: the metric or loss gives values of another length.
        NumericalError: NaN or infinity, with `finite`.
    """
    device = device_of(model)
    metrics, losses = [], []
    with in_eval_mode(model), torch.no_grad():
        for batch in data:
            moved = to_device(batch, device)
            values = sample_values(model(*moved.args, **moved.kwargs), moved, metric=metric, loss=loss)
            metrics.append(values.metric)
            losses.append(values.loss)
    found = Evaluation(np.concatenate(metrics), np.concatenate(losses))
    if finite:
        _check_finite(found, metric)
    return found


def sample_values(outputs: Any, batch: Batch, *, metric: Metric, loss: PerSample) -> Evaluation:
    """Metric and loss of each sample of a batch, from what the model gave for it.

    Raises:
        MetricError: the metric or loss gives values of another length.
    """
    values = per_sample(metric.function, outputs, batch.targets, batch.size, f"metric {metric.name!r}")
    losses = per_sample(loss, outputs, batch.targets, batch.size, "the loss")
    return Evaluation(_array(values), _array(losses))


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first parameter lies; the CPU if it has none."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def check_decomposable(model: nn.Module, data: Batches, *, metric: Metric, found: Evaluation) -> None:
    """For a torchmetrics-like object: the mean over samples must be its value over all data.

    Raises:
        MetricError: they differ (F1 and AUROC are not means over samples).
    """
    if metric.whole is None:
        return
    metric.whole.reset()
    device = device_of(model)
    with in_eval_mode(model), torch.no_grad():
        for batch in (to_device(batch, device) for batch in data):
            metric.whole.update(logits(model(*batch.args, **batch.kwargs)), batch.targets)
    value, mean = float(metric.whole.compute()), float(found.metric.mean())
    if not abs(value - mean) <= 1e-5 * max(1.0, abs(value)):
        raise MetricError(
            f"{metric.name} over all data is {value:.6g}, its mean over single samples {mean:.6g}: it is not a "
            "mean over samples, so it has no paired damage; pass a function (outputs, targets) -> one value a sample"
        )


def damage(before: Floats, after: Floats, sign: int) -> Floats:
    """Paired damage of each sample, positive = worse; what is not finite afterwards is infinitely bad.

    >>> damage(np.array([1.0, 1.0]), np.array([0.0, np.nan]), 1).tolist()
    [1.0, inf]
    """
    return np.where(np.isfinite(after), sign * (before - after), np.inf)


def _array(values: torch.Tensor) -> Floats:
    return values.detach().double().cpu().numpy()


def _check_finite(found: Evaluation, metric: Metric) -> None:
    for name, values in ((f"metric {metric.name!r}", found.metric), ("the loss", found.loss)):
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            raise NumericalError(
                f"{name} is NaN or infinite on {len(bad)} of {len(values)} samples (first: sample {bad[0]}); "
                "check the data, the model's outputs and the metric before pruning"
            )
