"""Run a model over a data set, and keep one value of metric and loss for each sample."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from secateur.data import Batch, to_device
from secateur.errors import DataError, NumericalError
from secateur.graph.trace import in_eval_mode
from secateur.measures.metrics import Metric, PerSample, kind_of, per_sample
from secateur.types import Evaluation, Floats


def evaluate(
    model: nn.Module,
    data: Iterable[Batch],
    *,
    metric: Metric,
    loss: PerSample,
    others: Sequence[Metric] = (),
    finite: bool = True,
) -> Evaluation:
    """Metric and loss of `model` on each sample, in eval mode without gradients.

    Args:
        model: left as it is.
        data: batches; moved to the model's device.
        metric: per-sample metric.
        loss: per-sample loss.
        others: more metrics.
        finite: refuse values that are not finite. With False they are kept: the damage of a pruned
            network may be without bound, and NaN is never "better".

    Raises:
        MetricError: the metric or loss gives values of another length.
        NumericalError: NaN or infinity, with `finite`.
        DataError: the model cannot take a batch, with `finite`.
    """
    device = device_of(model)
    parts = []
    with in_eval_mode(model), torch.no_grad():
        for number, batch in enumerate(data):
            moved = to_device(batch, device)
            outputs = outputs_of(model, moved, number) if finite else model(*moved.args, **moved.kwargs)
            parts.append(sample_values(outputs, moved, metric=metric, loss=loss, others=others))
    found = Evaluation(
        np.concatenate([part.metric for part in parts]),
        np.concatenate([part.loss for part in parts]),
        {m.name: np.concatenate([part.others[m.name] for part in parts]) for m in others},
    )
    if finite:
        for m, values in ((metric, found.metric), *((m, found.others[m.name]) for m in others)):
            _check_finite(values, f"metric {m.name!r}")
        _check_finite(found.loss, "the loss")
    return found


def sample_values(
    outputs: Any, batch: Batch, *, metric: Metric, loss: PerSample, others: Sequence[Metric] = ()
) -> Evaluation:
    """Metrics and loss of each sample of a batch, from what the model gave for it.

    Raises:
        MetricError: a metric or the loss gives values of another length.
    """

    def values(m: Metric) -> Floats:
        rows = m.aggregate is not None
        return _array(per_sample(m.function, outputs, batch.targets, batch.size, f"metric {m.name!r}", rows=rows))

    losses = per_sample(loss, outputs, batch.targets, batch.size, "the loss")
    return Evaluation(values(metric), _array(losses), {m.name: values(m) for m in others})


def outputs_of(model: nn.Module, batch: Batch, number: int) -> Any:
    """What a model gives for a batch that it should take; what a cut model raises is for the caller to tell.

    Args:
        model: run as it is.
        batch: on its device.
        number: of the batch, for people.

    Raises:
        DataError: it failed.
    """
    try:
        return model(*batch.args, **batch.kwargs)
    except Exception as error:
        given = ", ".join(map(kind_of, pytree.tree_leaves((batch.args, batch.kwargs)))) or "nothing"
        raise DataError(
            f"{type(model).__name__} failed on batch {number}, which gives it {given}: "
            f"{type(error).__name__}: {error}; pass batches that it takes, or see batch_fn"
        ) from error


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first parameter lies; the CPU if it has none."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def _array(values: torch.Tensor) -> Floats:
    return values.detach().double().cpu().numpy()


def _check_finite(values: Floats, name: str) -> None:
    is_bad = ~np.isfinite(values).reshape(len(values), -1).all(axis=1)
    if is_bad.any():
        raise NumericalError(
            f"{name} is NaN or infinite on {is_bad.sum()} of {len(values)} samples (first: sample "
            f"{int(np.argmax(is_bad))}); check the data, the model's outputs and the metric before pruning"
        )
