"""Sums of products of the cut model's inputs with themselves and with the dense model's outputs."""

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import grad

from secateur.capture.calls import Call
from secateur.capture.forms import Convolution
from secateur.capture.gram import gram_of_inputs, single, some_positions
from secateur.capture.shifts import is_cheaper
from secateur.repairs.least_squares import FOLDS, Products, in_folds


def fold_sums(
    before: Sequence[Call], now: Sequence[Call], rows: Tensor, most: int, generator: torch.Generator
) -> list[Products]:
    """For each fold: sample k of the data belongs to fold `k % FOLDS`.

    Args:
        before: of the dense model, one for each batch.
        now: of the cut model.
        rows: for each row of the cut weight, the row of the dense one's: int64 (groups, rows).
        most: positions of each sample that are drawn, if there are more and all together cost more.
        generator: draws them.
    """
    count = min([most, *(call.form.positions(call.inputs) for call in now)])
    if _is_one_image_size(now) and _has_short_way(now[0].form) and is_cheaper(now[0].form, now[0].inputs, count):
        return _everywhere(before, now, rows)
    parts: list[Products] = []
    first = 0
    for old, new in zip(before, now, strict=True):
        positions = some_positions(new, most, generator)
        outputs = old.form.responses(old.run(), positions).flatten(2)
        found = in_folds(new.design(positions), outputs[..., rows.to(outputs.device)], first)
        first += new.form.samples(new.inputs)
        parts = [a + b for a, b in zip(parts, found, strict=True)] if parts else found
    return parts


def _is_one_image_size(calls: Sequence[Call]) -> bool:
    return len({tuple(call.inputs.shape[1:]) for call in calls}) == 1


def _has_short_way(form: object) -> bool:
    """Whether torch's gradient of a convolution by its weight is defined for its padding."""
    return isinstance(form, Convolution) and form.before == form.after


def _everywhere(before: Sequence[Call], now: Sequence[Call], rows: Tensor) -> list[Products]:
    """Over all positions of a convolution of one group, without laying its inputs out as columns."""
    targets, inputs = [call.run() for call in before], [call.inputs for call in now]
    chosen = rows.flatten().to(targets[0].device)
    found = []
    for fold in range(FOLDS):
        x, y = single(_of_fold(inputs, fold)), single(_of_fold(targets, fold).index_select(1, chosen))
        if not len(x):
            width = now[0].matrix().shape[2] + 1
            nothing = torch.zeros(1, rows.numel() + width, width, dtype=torch.float64)
            found.append(Products(nothing[:, -width:], nothing[:, :-width], 0.0, 0))
            continue
        gram = gram_of_inputs(now[0].form, x)
        sums = y.sum((0, *range(2, y.ndim)), dtype=torch.float64)
        cross = torch.cat([_correlation(now[0], x, y).double().cpu(), sums.cpu().unsqueeze(1)], dim=1)
        energy = float(torch.linalg.vector_norm(y.flatten(1), dim=1).double().square().sum())
        found.append(Products(gram.total, cross.unsqueeze(0), energy, gram.positions))
    return found


def _of_fold(batches: Sequence[Tensor], fold: int) -> Tensor:
    """Samples of a fold, from all batches."""
    starts = itertools.accumulate((len(batch) for batch in batches[:-1]), initial=0)
    return torch.cat([batch[(fold - start) % FOLDS :: FOLDS] for start, batch in zip(starts, batches, strict=True)])


def _correlation(call: Call, inputs: Tensor, outputs: Tensor) -> Tensor:
    """Sums over samples and positions of outputs times input columns: the gradient by the weight, (rows, columns)."""
    form = call.form
    assert isinstance(form, Convolution)
    by_rank = {1: grad.conv1d_weight, 2: grad.conv2d_weight, 3: grad.conv3d_weight}
    weight: Callable[..., Tensor] = by_rank[len(form.kernel)]
    shape = (outputs.shape[1], inputs.shape[1], *form.kernel)
    return weight(inputs, shape, outputs, form.stride, form.before, form.dilation, form.groups).flatten(1)
