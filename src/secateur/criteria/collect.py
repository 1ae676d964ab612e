"""One pass over calibration data that gathers what all asked criteria need."""

import itertools
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from secateur.capture.calls import Call
from secateur.capture.watch import watching
from secateur.criteria.data_pass import DataPass, Labels
from secateur.criteria.statistics import (
    GATE_GRADIENTS,
    HESSIAN_DIAGONAL,
    NEEDS,
    WEIGHT_GRADIENTS,
    WEIGHTS,
    Statistics,
)
from secateur.criteria.tally import Tally, bytes_of
from secateur.data import BatchFn, as_batches, to_device
from secateur.errors import ArgumentError
from secateur.graph.trace import canonical_names, in_eval_mode, kept_buffers
from secateur.measures.metrics import resolve_loss
from secateur.progress import NoProgress, Progress
from secateur.types import Group


def collect(
    model: nn.Module,
    groups: Sequence[Group],
    calibration: Any = None,
    *,
    needs: Collection[str] = NEEDS - {HESSIAN_DIAGONAL},
    loss: Any = "cross_entropy",
    batch_fn: BatchFn | None = None,
    labels: Labels = "true",
    positions: int | None = None,
    most_columns: int = 8192,
    hessian_vectors: int | None = 8,
    seed: int = 0,
    progress: Progress | None = None,
) -> Statistics:
    """Run the calibration data once and gather the statistics that `needs` names.

    The model runs in eval mode. Weights need no data, moments of inputs and Grams no labels.

    Gradients are those of each sample's own loss, summed as they are, in absolute value and squared, so
    neither batch size nor order of samples changes them. They come from one backward pass over the whole batch,
    which is taken apart by sample. That is checked: sums over samples against autograd's own gradients in
    every batch; and samples, the first and last of the first batch and one of every batch whose number is a
    power of two, against a run of that sample alone. What does not agree, or cannot be taken apart (packed
    sequences, computed weights), is found by running every sample alone: slow, and right.

    Rounding may put an activation on the other side of a kink when a sample runs alone; then, if the losses
    agree, the gradient of that sample's loss in a run of the whole batch is what must agree.

    Cost, in forward and backward passes over the same data (ResNet-20, 500 images in batches of 250, one thread of a
    busy machine): gates 1.9, gradients of weights 3.0, output gradients 1.2, moments 0.6, Grams of all positions 1.3;
    everything together 3.7 with 1,000 images, without the Hessian's diagonal, which takes two and two more for each
    vector. Checks are about one of these passes, and become rarer as there are more batches.

    Memory: that of a training step with the batch, once more its activations' gradients, and the statistics (see
    `bytes_needed`).

    Args:
        model: left as it is; its `.grad` fields are not touched.
        groups: from `find_groups`.
        calibration: any source of batches; may be None when no statistic needs data.
        needs: `criterion.needs` of every criterion that will be asked. All but the Hessian's diagonal if not
            given.
        loss: name or callable, per sample.
        batch_fn: takes apart batches of an unusual shape.
        labels: where output gradients come from: "true", the targets (empirical Fisher information), or "sampled",
            drawn from the model's own predictions (the Fisher information; cross-entropy only, one more
            backward pass, no targets needed).
        positions: the most positions of each sample that a Gram reads, drawn anew for every batch; None: all.
            All positions of a 3x3 convolution of stride 1 cost about one and a half of its forward passes, of another
            stride nine for each of 64 rows. The error of a mean falls as 1 / sqrt(positions read).
        most_columns: consumers with more columns get no Gram, those with more rows no output gradients; both
            are noted. 8,192 columns take 0.5 GB.
        hessian_vectors: random vectors of the Hessian's diagonal (Hutchinson), one product each for every batch.
            The standard error of an element is the norm of the rest of its row of the Hessian, times
            sqrt(1 / vectors). None: exact, with one product for each element of the model.
        seed: of sampled labels, positions and vectors.
        progress: shown while running.

    Raises:
        ArgumentError: an unknown statistic, or data missing.
        NumericalError: the loss or a gradient is not finite; names the sample.

    >>> model = nn.Linear(2, 1, bias=False)
    >>> _ = nn.init.constant_(model.weight, 1.0)
    >>> data = [(torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.zeros(2, 1))]
    >>> found = collect(model, [], data, needs={"grams", "weight_gradients"}, loss="mse")
    >>> found.consumers[0].gram.total.tolist()
    [[[10.0, 2.0, 4.0], [2.0, 4.0, 2.0], [4.0, 2.0, 2.0]]]
    >>> found.gradients["weight"].squares.tolist()  # of the gradients (6, 12) and (18, 0)
    [[360.0, 144.0]]
    """
    _check(needs, labels, loss, positions, hessian_vectors)
    weights = {canonical_names(model)[name]: p.detach() for name, p in model.named_parameters()}
    needs = frozenset(needs)
    if not needs - {WEIGHTS}:
        return Statistics(weights)
    if calibration is None:
        raise ArgumentError(
            f"{', '.join(sorted(needs - {WEIGHTS}))} need calibration data; "
            "pass calibration=batches of (inputs, targets), or of inputs alone where no gradients are asked for"
        )
    data = as_batches(calibration, "calibration", batch_fn)
    work = DataPass(
        model,
        groups if GATE_GRADIENTS in needs else [],
        needs,
        resolve_loss(loss),
        labels,
        hessian_vectors,
        seed,
        Tally(needs, positions, most_columns, torch.Generator().manual_seed(seed)),
    )
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with (
        torch.inference_mode(False),
        in_eval_mode(model),
        kept_buffers(model),
        (progress or NoProgress()).stage("statistics", data.count()) as advance,
    ):
        for batch in data:
            work.read(to_device(batch, device))
            advance(batch.size)
    return work.statistics(weights)


def bytes_needed(
    model: nn.Module,
    groups: Sequence[Group],
    batch: Any,
    *,
    needs: Collection[str] = NEEDS - {HESSIAN_DIAGONAL},
    batch_fn: BatchFn | None = None,
    most_columns: int = 8192,
) -> int:
    """Bytes of the statistics that `collect` will give, weights aside; found by a run of one sample.

    Args:
        model: as for `collect`.
        groups: as for `collect`.
        batch: one batch of calibration data.
        needs: as for `collect`.
        batch_fn: as for `collect`.
        most_columns: as for `collect`.

    >>> bytes_needed(nn.Linear(3, 2), [], torch.zeros(1, 3), needs={"grams"}) == 8 * (3 + 1) ** 2
    True
    """
    (one,) = itertools.islice(as_batches([batch], "calibration", batch_fn), 1)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    sample = to_device(one.take(torch.tensor([0])), device)
    each: dict[Any, int] = {}

    def visit(call: Call) -> Tensor:
        each[call.weight, call.form] = bytes_of(call, needs, most_columns)
        return call.run()

    with torch.no_grad(), in_eval_mode(model), kept_buffers(model), watching(model, visit):
        model(*sample.args, **sample.kwargs)
    elements = sum(p.numel() for p in model.parameters() if p.is_floating_point())
    units = sum(group.size for group in groups)
    total = 3 * 8 * units if GATE_GRADIENTS in needs else 0
    total += 3 * 8 * elements if WEIGHT_GRADIENTS in needs else 0
    total += 8 * elements if HESSIAN_DIAGONAL in needs else 0
    return total + sum(each.values())


def _check(needs: Collection[str], labels: str, loss: Any, positions: int | None, hessian_vectors: int | None) -> None:
    unknown = sorted(set(needs) - NEEDS)
    if unknown:
        raise ArgumentError(f"needs names the statistic {unknown[0]!r}; known are {sorted(NEEDS)}")
    if labels not in {"true", "sampled"}:
        raise ArgumentError(f"labels={labels!r}; needed 'true' or 'sampled'")
    if labels == "sampled" and loss != "cross_entropy":
        raise ArgumentError("labels='sampled' draws classes, which needs loss='cross_entropy'; pass labels='true'")
    for name, value in (("positions", positions), ("hessian_vectors", hessian_vectors)):
        if value is not None and value < 1:
            raise ArgumentError(f"{name}={value}; needed at least 1, or None")
