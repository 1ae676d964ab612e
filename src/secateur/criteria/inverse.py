"""Inverses of second moments, in a scale of their own, damped as little as they let."""

from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.capture.gram import Gram
from secateur.errors import ArgumentError, NumericalError

LEAST = 1e-8
MOST = 1.0
"""Dampings tried after the one asked for: tenfold each time, between these."""

CONSTANT = 1e-7
"""An input whose variance is a smaller share of its mean square is constant, up to rounding in the sums."""


@dataclass(frozen=True, eq=False)
class Whitened:
    """Correlations of the inputs of a map, and their inverse.

    Attributes:
        scale: standard deviation of each column, float64 (groups, columns); 0 for constant ones.
        correlation: float64 (groups, columns, columns), not damped; constant columns go with no other.
        inverse: of the damped correlation.
        note: that damping was raised; empty if not.
    """

    scale: Tensor
    correlation: Tensor
    inverse: Tensor
    note: str


def check_damping(damping: float, who: object) -> None:
    """Refuse what is no damping."""
    if not 0 <= damping <= MOST:
        raise ArgumentError(f"{who!r}: damping must lie in [0, {MOST:g}]")


def whitened(gram: Gram, damping: float, where: str, samples: int) -> Whitened:
    """Invert the correlations of inputs, with `damping` added to their diagonal of ones.

    Damping is relative to the variance of each input, so that the scale of none matters. A singular matrix is
    damped more, and that is noted; it is never replaced.

    Args:
        gram: of the inputs; the constant in its last column stands for a bias that can be changed.
        damping: to begin with.
        where: the weight, for errors.
        samples: of calibration, for errors.

    Raises:
        NumericalError: the moments are not finite, or no damping makes them positive definite.

    >>> from secateur.capture.gram import gram_of
    >>> found = whitened(gram_of(torch.tensor([[[[2.0]], [[6.0]]]])), 1.0, "fc", 2)
    >>> found.scale.item(), round(found.inverse.item(), 9), found.note
    (2.0, 0.5, '')
    """
    mean = gram.mean()
    if not bool(mean.isfinite().all()):
        raise NumericalError(
            f"second moments of the inputs of {where!r} are not finite ({samples} calibration samples); check the data "
            "and the weights before it"
        )
    moments, centre = mean[:, :-1, :-1], mean[:, -1, :-1]
    covariance = moments - centre.unsqueeze(2) * centre.unsqueeze(1)
    variance = covariance.diagonal(dim1=1, dim2=2)
    constant = variance <= CONSTANT * moments.diagonal(dim1=1, dim2=2)
    scale = torch.where(constant, 0.0, variance.clamp(min=0).sqrt())
    by = torch.where(constant, torch.inf, scale)
    correlation = covariance / by.unsqueeze(2) / by.unsqueeze(1)
    correlation = correlation - torch.diag_embed(correlation.diagonal(dim1=1, dim2=2)) + torch.eye(scale.shape[1])
    now = damping
    while True:
        lower, failed = torch.linalg.cholesky_ex(correlation + now * torch.eye(scale.shape[1], dtype=torch.float64))
        pivots = lower.diagonal(dim1=1, dim2=2).square()
        # A pivot that is all rounding noise passes for positive as often as not.
        if not bool(failed.any()) and bool((pivots > 1e-12 * scale.shape[1]).all()):
            break
        if now >= MOST:
            raise NumericalError(
                f"second moments of the inputs of {where!r} ({scale.shape[1]} columns, {samples} calibration samples, "
                f"{gram.positions} positions) are not positive definite even with a damping of {now:g}; they are no "
                "sums of squares: collect them again, with more samples or in a higher precision"
            )
        now = min(max(10 * now, LEAST), MOST)
    note = "" if now == damping else f"damping raised from {damping:g} to {now:g}: inputs of {where!r} are dependent"
    return Whitened(scale, correlation, torch.cholesky_inverse(lower), note)
