"""Moments of a batch norm behind sparse weights, from what it now sees."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.capture.lockstep import Norm
from secateur.sparsity.seen import HELD_EVERY

TINY = 1e-12

ELEMENTS = 2**16
"""Of inputs that are added up at once."""


@dataclass(frozen=True, eq=False)
class _Sums:
    """Over positions, for each channel: of inputs x, wanted normalised outputs t, and their products: float64."""

    count: int
    x: Tensor
    xx: Tensor
    t: Tensor
    xt: Tensor

    def __add__(self, other: "_Sums") -> "_Sums":
        return _Sums(
            self.count + other.count, self.x + other.x, self.xx + other.xx, self.t + other.t, self.xt + other.xt
        )

    def variance(self) -> Tensor:
        return (self.xx / self.count - (self.x / self.count).square()).clamp(min=0)

    def covariance(self) -> Tensor:
        return self.xt / self.count - self.x * self.t / self.count**2

    def error(self, variance: Tensor) -> Tensor:
        """Mean squared error of (x - best mean) / sqrt(variance), less what no variance changes."""
        slope = 1 / (variance + TINY).sqrt()
        return slope.square() * self.variance() - 2 * slope * self.covariance()


def recalibrate(norms: Sequence[Norm], targets: Sequence[Norm] | None) -> None:
    """Give a batch norm the moments of what it sees on all batches, in place.

    Population moments make up for outputs that have become smaller; but a weight that was fitted to the dense
    model's outputs may need its mean only. Which variance comes closest to the dense model (the old one, that of
    the population, or that of the least-squares line) is decided channel by channel, on held-out samples.

    Source: EagleEye (Li et al. 2020, arXiv:2007.02491), with population moments.

    Args:
        norms: about to be applied, one for each batch.
        targets: the same in the dense model; None: the moments are those of the population.
    """
    mean, variance = norms[0].mean, norms[0].variance
    assert mean is not None
    assert variance is not None
    fit, held = _sums(norms, targets)
    whole = fit + held
    if targets is None:
        mean.copy_(whole.x / whole.count)
        variance.copy_(whole.variance())
        return
    judge = held if held.count else fit
    line = fit.variance().square() / fit.covariance().square().clamp(min=TINY)
    choices = torch.stack(
        [
            variance.detach().double().cpu(),
            fit.variance(),
            # A line that falls is none that a batch norm can follow.
            torch.where(fit.covariance() > 0, line, fit.variance()),
        ]
    )
    best = torch.stack([judge.error(choice) for choice in choices]).argmin(dim=0)
    chosen = choices.gather(0, best.unsqueeze(0))[0]
    mean.copy_((whole.x - whole.t * (chosen + TINY).sqrt()) / whole.count)
    variance.copy_(chosen)


def _sums(norms: Sequence[Norm], targets: Sequence[Norm] | None) -> tuple[_Sums, _Sums]:
    channels = norms[0].inputs.shape[1]
    fit = held = _Sums(0, *(torch.zeros(channels, dtype=torch.float64) for _ in range(4)))
    first = 0
    for number, norm in enumerate(norms):
        is_held = (first + torch.arange(len(norm.inputs))) % HELD_EVERY == HELD_EVERY - 1
        first += len(norm.inputs)
        target = None if targets is None else targets[number]
        fit += _of(norm, target, ~is_held)
        held += _of(norm, target, is_held)
    return fit, held


def _of(norm: Norm, target: Norm | None, chosen: Tensor) -> _Sums:
    """Few samples at a time: what fits a processor's cache is added up several times faster."""
    rows = chosen.nonzero().flatten().to(norm.inputs.device)
    total = _Sums(0, *(torch.zeros(norm.inputs.shape[1], dtype=torch.float64) for _ in range(4)))
    each = max(1, ELEMENTS // max(norm.inputs[:1].numel(), 1))
    for part in torch.split(rows, each):
        total += _part(norm, target, part)
    return total


def _part(norm: Norm, target: Norm | None, rows: Tensor) -> _Sums:
    x = norm.inputs[rows].movedim(1, 0).flatten(1).double()
    t = torch.zeros_like(x)
    if target is not None and target.mean is not None and target.variance is not None:
        y = target.inputs[rows].movedim(1, 0).flatten(1).double()
        t = (y - target.mean.double().unsqueeze(1)) / (target.variance.double().unsqueeze(1) + TINY).sqrt()
    sums = (x.sum(1), x.square().sum(1), t.sum(1), (x * t).sum(1))
    return _Sums(x.shape[1], *(total.cpu() for total in sums))
