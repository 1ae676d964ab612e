"""One pass over calibration data that gathers what all asked criteria need."""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from secateur.criteria.statistics import GATE_GRADIENTS, NEEDS, Derivatives, Statistics, sum_over_group
from secateur.data import Batch, BatchFn, as_batches, to_device
from secateur.errors import ArgumentError, NumericalError
from secateur.graph.trace import canonical_names, in_eval_mode
from secateur.measures.metrics import PerSample, resolve_loss
from secateur.progress import NoProgress, Progress
from secateur.types import Group


def collect(
    model: nn.Module,
    groups: Sequence[Group],
    calibration: Any = None,
    *,
    needs: Collection[str] = NEEDS,
    loss: Any = "cross_entropy",
    batch_fn: BatchFn | None = None,
    progress: Progress | None = None,
) -> Statistics:
    """Run the calibration data once and gather the statistics that `needs` names.

    Gradients are taken sample by sample (memory: that of one sample's backward pass), in eval mode.

    Args:
        model: left as it is; its `.grad` fields are not touched.
        groups: from `find_groups`.
        calibration: any source of batches; may be None when no statistic needs data.
        needs: `criterion.needs` of every criterion that will be asked.
        loss: name or callable, per sample.
        batch_fn: takes apart batches of an unusual shape.
        progress: shown while running.

    Raises:
        ArgumentError: an unknown statistic, or data missing.
        NumericalError: the loss or a gradient is not finite; names the sample.
    """
    unknown = sorted(set(needs) - NEEDS)
    if unknown:
        raise ArgumentError(f"needs names the statistic {unknown[0]!r}; known are {sorted(NEEDS)}")
    weights = {canonical_names(model)[name]: p.detach() for name, p in model.named_parameters()}
    if GATE_GRADIENTS not in needs:
        return Statistics(weights)
    if calibration is None:
        raise ArgumentError("gradients need calibration data; pass calibration=batches of (inputs, targets)")
    data = as_batches(calibration, "calibration", batch_fn)
    sums = {group.name: torch.zeros(3, group.size, dtype=torch.float64) for group in groups}
    samples = 0
    per_sample_loss = resolve_loss(loss)
    with in_eval_mode(model), (progress or NoProgress()).stage("gradients", data.count()) as advance:
        for batch in data:
            for row in range(batch.size):
                gradients = _gate_products(model, batch.take(torch.tensor([row])), per_sample_loss, samples)
                for group in groups:
                    value = sum_over_group(group, gradients, masked_only=True)
                    sums[group.name] += torch.stack([value, value.abs(), value.square()])
                samples += 1
                advance(1)
    return Statistics(weights, samples, {name: Derivatives(*values) for name, values in sums.items()})


def _gate_products(model: nn.Module, sample: Batch, loss: PerSample, number: int) -> dict[str, Tensor]:
    """Gradient times weight of every parameter, for one sample."""
    names = canonical_names(model)
    trained = {names[name]: p for name, p in model.named_parameters() if p.is_floating_point()}
    frozen = [p for p in trained.values() if not p.requires_grad]
    device = next(iter(trained.values())).device
    sample = to_device(sample, device)
    try:
        for p in frozen:
            p.requires_grad_(True)
        value = loss(model(*sample.args, **sample.kwargs), sample.targets).mean()
        if not bool(value.isfinite()):
            raise NumericalError(
                f"the loss of calibration sample {number} is {value.item()}; check the data and the loss"
            )
        found = torch.autograd.grad(value, list(trained.values()), allow_unused=True)
    finally:
        for p in frozen:
            p.requires_grad_(False)
    return {name: g.detach() * p.detach() for (name, p), g in zip(trained.items(), found, strict=True) if g is not None}
