"""Linear maps of the cut model, fitted to the outputs of the dense one."""

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from secateur.capture.calls import Call, Place
from secateur.repairs.changes import NO_BETTER, READ_OTHERWISE, REORDERED, Change, Mended, left
from secateur.repairs.least_squares import NEGLIGIBLE, Products, Solution, shift, solve
from secateur.repairs.readers import feeds_batch_norm, is_own_bias, is_read_otherwise, linear_reads
from secateur.repairs.rows import kept_rows
from secateur.repairs.sums import fold_sums
from secateur.repairs.walk import Models, Step, only, rows_of, side_by_side
from secateur.types import Note

Sums = Mapping[str, Sequence[Products] | None]
"""Rows of a weight -> sums for each fold; None where its rows are not those of one use in the dense model."""


def mended_call(
    step: Step, models: Models, repeated: Sums, seen: Mapping[str, int], generator: torch.Generator
) -> Mended:
    """Fit the weight of a call, and its bias, if that is better on held-out samples.

    Args:
        step: what both models are about to do.
        models: both.
        repeated: sums of the weights that are used several times.
        seen: how often each parameter is seen to be used; see `calls_of`.
        generator: draws positions.

    Raises:
        NumericalError: inputs that are not finite, or a Gram matrix that cannot be factored.
    """
    before, now = only(step.before, Call), only(step.now, Call)
    call, where = now[0], step.where
    if not _is_wanted(before[0], call, models):
        return Mended()
    parts = repeated[where] if where in repeated else _sums(before, now, models, generator)
    if parts is None:
        return left(where, REORDERED)
    old = _old(call)
    name = call.weight.name
    bias = call.bias if call.bias is not None and is_own_bias(models.program, name, call.bias.name) else None
    # A map of entries in another shape, `h @ w.view(...)`, runs unseen: a fit would change it too.
    if is_read_otherwise(models.program, name) or linear_reads(models.program, name) > seen[name]:
        note = Note(where, READ_OTHERWISE)
        return Mended(() if bias is None else _mended_bias(bias, parts, old, models), (note,))
    if bias is not None:
        return _kept(call, bias, where, solve(parts, old, where, ridges=models.ridges), models)
    # A constant that is taken off again by batch norm need not be fitted, and cannot be kept. Any other stays as
    # it is: a fixed part of the outputs.
    is_free = feeds_batch_norm(models.program, name)
    reduced = [part.centred() if is_free else part.less(old[..., -1]).without_constant() for part in parts]
    solution = solve(reduced, old[..., :-1], where, has_constant=False, ridges=models.ridges)
    return _kept(call, None, where, solution, models)


def sums_of_repeated(models: Models, generator: torch.Generator) -> Sums:
    """Of weights that are used several times: sums over all uses, with the inputs of the unrepaired model."""
    sums: dict[str, Sequence[Products] | None] = {}
    counts: Counter[str] = Counter()
    for step in side_by_side(models):
        before, now = only(step.before, Call), only(step.now, Call)
        if not before or not _is_wanted(before[0], now[0], models):
            continue
        parts, earlier = _sums(before, now, models, generator), sums.get(step.where, ())
        if parts is None or earlier is None:
            sums[step.where] = None
        else:
            sums[step.where] = [a + b for a, b in zip(earlier, parts, strict=True)] if earlier else parts
        counts[step.where] += 1
    return {where: parts for where, parts in sums.items() if counts[where] > 1}


def _kept(call: Call, bias: Place | None, where: str, solution: Solution, models: Models) -> Mended:
    """Write the solution, if it is better."""
    if solution.share == 0:
        return left(where, NO_BETTER) if solution.before > NEGLIGIBLE else Mended()
    weights = solution.weights
    if bias is not None:
        _write(bias, weights[..., -1].flatten(), models)
        weights = weights[..., :-1]
    _write(call.weight, call.form.weight(weights, call.values.shape), models)
    return Mended((Change(where, "least squares", solution.before, solution.after),))


def _mended_bias(bias: Place, parts: Sequence[Products], old: Tensor, models: Models) -> tuple[Change, ...]:
    moved, before, after = shift(parts, old)
    if not after < before:
        return ()
    _write(bias, (old[..., -1] + moved).flatten(), models)
    return (Change(rows_of(bias, models), "bias", before, after),)


def _write(place: Place, values: Tensor, models: Models) -> None:
    part = models.state[place.name][place.start : place.stop]
    part.copy_(values.reshape(part.shape))


def _is_wanted(before: Call, now: Call, models: Models) -> bool:
    return models.reach == "all" or now.matrix().shape[2] < before.matrix().shape[2]


def _old(call: Call) -> Tensor:
    """The weight as it is, its constant in the last column: float64 (groups, rows, columns + 1)."""
    matrix = call.matrix().double().cpu()
    offset = matrix.new_zeros(matrix.shape[:2]) if call.offset is None else call.offset.double().cpu()
    return torch.cat([matrix, offset.reshape(*matrix.shape[:2], 1)], dim=2)


def _sums(
    before: Sequence[Call], now: Sequence[Call], models: Models, generator: torch.Generator
) -> list[Products] | None:
    name = now[0].weight.name
    dense, small = (before[0].form, before[0].weight), (now[0].form, now[0].weight)
    rows = kept_rows(dense, small, models.program.shapes[name], models.marks.get(name, ()))
    if rows is None:
        return None
    wanted = models.rows_per_column * (now[0].matrix().shape[2] + 1)
    samples = sum(batch.size for batch in models.batches)
    return fold_sums(before, now, rows, -(-wanted // samples), generator)
