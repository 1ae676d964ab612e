"""Batch norms of the cut model: population moments of what they now see."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.capture.gram import single
from secateur.capture.lockstep import Norm
from secateur.errors import NumericalError
from secateur.repairs.changes import REPEATED_NORM, Change, Mended, left
from secateur.repairs.least_squares import FOLDS
from secateur.repairs.rows import kept_columns
from secateur.repairs.walk import Models, Step, only


def mended_norm(step: Step, models: Models, *, is_repeated: bool) -> Mended:
    """Give a batch norm new moments, if they bring its outputs on held-out samples closer to the dense model's.

    Raises:
        NumericalError: inputs that are not finite.
    """
    before, now = only(step.before, Norm), only(step.now, Norm)
    mean, variance = now[0].mean, now[0].variance
    if mean is None or variance is None:
        return Mended()
    where = step.where.removesuffix(".running_mean")
    if is_repeated:
        return left(where, REPEATED_NORM)
    marks = [((1,), marked) for _, marked in models.marks.get(step.where, ())]
    kept = kept_columns((1, models.program.shapes[step.where][0]), marks).to(mean.device)
    held = _held_out([len(norm.inputs) for norm in now])
    whole, fitted = _moments([norm.inputs for norm in now], held, where)
    targets = [_on(norm, h).index_select(1, kept) for norm, h in zip(before, held, strict=True)]
    old = mean.clone(), variance.clone()
    errors = []
    for values in (old, fitted):
        _put((mean, variance), values)
        errors.append(_error([_on(norm, h) for norm, h in zip(now, held, strict=True)], targets))
    is_better = errors[1] < errors[0]
    _put((mean, variance), whole if is_better else old)
    return Mended((Change(where, "batch norm", *errors),)) if is_better else Mended()


def _held_out(sizes: Sequence[int]) -> list[slice]:
    """Every `FOLDS`-th sample of all, in each batch; all of them where there are too few."""
    starts = itertools.accumulate(sizes[:-1], initial=0)
    held = [slice((FOLDS - 1 - first) % FOLDS, None, FOLDS) for first in starts]
    has_any = any(h.start < size for h, size in zip(held, sizes, strict=True))
    return held if has_any else [slice(None) for _ in sizes]


def _on(norm: Norm, samples: slice) -> Tensor:
    """What the norm gives for some samples, with the values that its statistics have now."""
    given = norm.inputs[samples]
    return norm.apply(given) if len(given) else given


@dataclass(frozen=True, eq=False)
class _Spread:
    """Moments of each channel in each sample: float64 (samples, channels), and how many positions they are over."""

    mean: Tensor
    squares: Tensor
    positions: int


def _spread(inputs: Tensor) -> _Spread:
    """About the mean of each sample, so that a large mean costs no digits."""
    rows = single(inputs).flatten(2) if inputs.ndim > 2 else single(inputs).unsqueeze(2)
    mean = rows.mean(2, keepdim=True)
    about = torch.linalg.vector_norm(rows - mean, dim=2)
    return _Spread(mean.squeeze(2).double(), about.double().square(), rows.shape[2])


def _moments(inputs: Sequence[Tensor], held: Sequence[slice], where: str) -> tuple[tuple[Tensor, Tensor], ...]:
    """Population mean and variance of all samples, and of those that are not held out.

    Source: Chan, Golub and LeVeque 1979, updating formulae for sample variances.
    """
    spreads = [_spread(x) for x in inputs]
    fitted = []
    for spread, h in zip(spreads, held, strict=True):
        is_fitted = torch.ones(len(spread.mean), dtype=torch.bool, device=spread.mean.device)
        is_fitted[h] = False
        fitted.append(_Spread(spread.mean[is_fitted], spread.squares[is_fitted], spread.positions))
    whole = _together(spreads, where)
    return whole, _together(fitted, where) if any(len(spread.mean) for spread in fitted) else whole


def _together(spreads: Sequence[_Spread], where: str) -> tuple[Tensor, Tensor]:
    counts = torch.cat([s.mean.new_full((len(s.mean), 1), s.positions) for s in spreads])
    means, squares = (torch.cat(parts) for parts in zip(*((s.mean, s.squares) for s in spreads), strict=True))
    mean = (means * counts).sum(0) / counts.sum()
    variance = (squares + (means - mean).square() * counts).sum(0) / counts.sum()
    if not bool((mean.isfinite() & variance.isfinite()).all()):
        raise NumericalError(
            f"the inputs of {where!r} are not finite on the calibration data; nothing was recalibrated"
        )
    return mean, variance


def _put(tensors: tuple[Tensor, Tensor], values: tuple[Tensor, Tensor]) -> None:
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)


def _error(outputs: Sequence[Tensor], targets: Sequence[Tensor]) -> float:
    """Squared error of outputs beside targets, as a share of the targets' size."""
    error = sum(float((y - t).square().sum()) for y, t in zip(outputs, targets, strict=True))
    return error / max(sum(float(t.square().sum()) for t in targets), torch.finfo(torch.float64).tiny)
