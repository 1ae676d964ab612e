"""Objects with `update`, `compute` and `reset`, such as torchmetrics': as means over samples, or by resampling."""

import contextlib
import copy
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secateur.data import Batches, to_device
from secateur.errors import MetricError
from secateur.graph.trace import in_eval_mode
from secateur.measures.aggregate import OfResamples
from secateur.measures.evaluate import device_of, outputs_of
from secateur.measures.metrics import Metric, kind_of
from secateur.measures.outputs import logits
from secateur.types import Floats

CLOSE = 1e-5
MIXTURES = 2


def usable(model: nn.Module, data: Batches, metric: Metric) -> Metric:
    """The metric as it is; an object whose value is no mean over samples, as an aggregate of outputs and targets.

    Then each sample's outputs and targets are kept, and its damage is shared out by the paired bootstrap.

    Raises:
        MetricError: targets that are not tensors, or outputs or targets whose shapes differ between batches, so that
            samples cannot be drawn.
    """
    if metric.whole is None:
        return metric
    device = device_of(model)
    pairs: list[tuple[Tensor, Tensor]] = []
    with in_eval_mode(model), torch.no_grad():
        for batch in (to_device(batch, device) for batch in data):
            if not isinstance(batch.targets, Tensor):
                raise MetricError(f"{metric.name} needs targets that are a tensor; got {type(batch.targets).__name__}")
            pairs.append((logits(outputs_of(model, batch, len(pairs))), batch.targets))
    _check_value(metric, pairs)
    # Of a model that makes no error, or as many in each class, much is a mean that is none elsewhere.
    if _is_mean(metric, pairs) and all(_is_mean(metric, _mixed(pairs, seed)) for seed in range(MIXTURES)):
        return metric
    shapes = {(s.shape[1:], s.dtype, t.shape[1:], t.dtype) for s, t in pairs}
    if len(shapes) > 1:
        raise MetricError(
            f"{metric.name} is no mean over samples, so samples are drawn anew, which needs outputs and targets of one "
            f"shape; got {len(shapes)}: pass a metric by name, or a function (outputs, targets) -> one value a sample"
        )
    whole = OfResamples(_Whole(metric.whole, *shapes.pop()))
    return replace(metric, function=_outputs_and_targets, bounds=None, aggregate=whole, whole=None)


def _check_value(metric: Metric, pairs: list[tuple[Tensor, Tensor]]) -> None:
    """Raise an error where an object does not take what the model gives, or gives no number."""
    whole = copy.deepcopy(metric.whole)
    try:
        whole.reset()
        for scores, targets in pairs:
            whole.update(scores, targets)
        found = whole.compute()
    except Exception as error:
        first_scores, first_targets = map(kind_of, pairs[0])
        raise MetricError(
            f"{metric.name} failed on outputs {first_scores} and targets {first_targets}: "
            f"{type(error).__name__}: {error}"
        ) from error
    try:
        float(found)
    except (TypeError, ValueError) as error:
        raise MetricError(
            f"{metric.name} gives a result {kind_of(found)}; needed one number: choose an average, or pass the "
            "metrics of a collection as a list"
        ) from error


def _mixed(pairs: list[tuple[Tensor, Tensor]], seed: int) -> list[tuple[Tensor, Tensor]]:
    """Samples drawn anew, half of them with the targets of others."""
    drawing = torch.Generator().manual_seed(seed)
    found = []
    for scores, targets in pairs:
        size = len(targets)
        rows, others = torch.randint(size, (2, size), generator=drawing)
        sources = torch.where(torch.rand(size, generator=drawing) < 0.5, others, rows)
        found.append((scores[rows.to(scores.device)], targets[sources.to(targets.device)]))
    return found


def _is_mean(metric: Metric, pairs: list[tuple[Tensor, Tensor]]) -> bool:
    whole = copy.deepcopy(metric.whole)
    whole.reset()
    for scores, targets in pairs:
        whole.update(scores, targets)
    value = float(whole.compute())
    try:
        with _silent():
            mean = float(torch.cat([metric.function(scores, targets) for scores, targets in pairs]).mean())
    except Exception:
        # Much that is no mean cannot be had of one sample; what an object raises then is its own affair.
        return False
    return abs(value - mean) <= CLOSE * max(1.0, abs(value))


def _outputs_and_targets(outputs: Any, targets: Tensor) -> Tensor:
    scores = logits(outputs)
    return torch.cat([scores.reshape(len(scores), -1).double(), targets.reshape(len(targets), -1).double()], dim=1)


@dataclass(frozen=True, eq=False)
class _Whole:
    """Rows of outputs and targets -> the value of an object.

    Attributes:
        metric: the object; a copy is updated.
        scores: shape of the outputs of one sample.
        scores_type: their type.
        targets: shape of the targets of one sample.
        targets_type: their type.
    """

    metric: Any
    scores: torch.Size
    scores_type: torch.dtype
    targets: torch.Size
    targets_type: torch.dtype

    def __call__(self, rows: Floats) -> float:
        found = torch.from_numpy(np.ascontiguousarray(rows))
        width = self.scores.numel()
        whole = copy.deepcopy(self.metric)
        whole.reset()
        whole.update(
            found[:, :width].to(self.scores_type).reshape(-1, *self.scores),
            found[:, width:].to(self.targets_type).reshape(-1, *self.targets),
        )
        with _silent():
            return float(whole.compute())


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Of few samples, or of samples drawn anew, objects warn that a class is missing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
