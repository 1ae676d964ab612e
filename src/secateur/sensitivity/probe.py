"""Silence units in a working copy, run it on validation data, and compare sample by sample."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from secateur.data import Batch, Batches
from secateur.graph.copies import copy_of
from secateur.graph.trace import named_state
from secateur.measures.evaluate import damage, evaluate
from secateur.measures.metrics import Metric, PerSample
from secateur.surgery.mask import masked_tensors
from secateur.surgery.plan import Plan, Scores, plan_widths
from secateur.types import Evaluation, Floats, Group


@dataclass(frozen=True, eq=False)
class Probe:
    """Measures what removing units costs, against a fixed baseline.

    Attributes:
        model: a private copy, whose weights are silenced and restored in place.
        groups: what can be removed.
        scores: lowest-scored units are removed first.
        data: validation data, read in the same order each time.
        metric: per-sample metric.
        loss: per-sample loss.
        baseline: what damage is measured against.
    """

    model: nn.Module
    groups: Sequence[Group]
    scores: Scores
    data: Batches
    metric: Metric
    loss: PerSample
    baseline: Evaluation

    def damage(self, widths: Mapping[str, int], samples: NDArray[np.int64] | None = None) -> tuple[Floats, Floats]:
        """Metric and loss damage of each sample when each named group keeps `widths[name]` a row.

        Args:
            widths: group name -> units kept in a row.
            samples: positions in the validation data, ascending; None = all.
        """
        plan = plan_widths(self.groups, self.scores, widths)
        batches = self.data if samples is None else chosen(self.data, samples)
        with silenced(self.model, self.groups, plan):
            after = evaluate(self.model, batches, metric=self.metric, loss=self.loss, finite=False)
        where = slice(None) if samples is None else samples
        return (
            damage(self.baseline.metric[where], after.metric, self.metric.sign),
            damage(self.baseline.loss[where], after.loss, -1),
        )


def probe(
    model: nn.Module,
    groups: Sequence[Group],
    scores: Scores,
    data: Batches,
    *,
    metric: Metric,
    loss: PerSample,
    baseline: Evaluation,
) -> Probe:
    """A probe on a private copy of `model`."""
    return Probe(copy_of(model), groups, scores, data, metric, loss, baseline)


@contextlib.contextmanager
def silenced(model: nn.Module, groups: Sequence[Group], plan: Plan) -> Iterator[None]:
    """Zero what masking zeroes, in place; put the old values back afterwards."""
    state = named_state(model)
    saved: dict[str, Tensor] = {}
    try:
        with torch.no_grad():
            for name, masked in masked_tensors(model, groups, plan).items():
                saved[name] = state[name].detach().clone()
                state[name].copy_(masked)
        yield
    finally:
        with torch.no_grad():
            for name, old in saved.items():
                state[name].copy_(old)


def chosen(data: Iterable[Batch], samples: NDArray[np.int64]) -> Iterator[Batch]:
    """The given samples, counted over all batches, batch by batch."""
    start = 0
    for batch in data:
        size = batch.size
        rows = samples[(samples >= start) & (samples < start + size)] - start
        if len(rows):
            yield batch.take(torch.from_numpy(rows))
        start += size
