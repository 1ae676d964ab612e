"""Metrics that are no mean over samples, made into one value for each sample whose mean they are.

Whatever a metric is, what it loses can be shared out among the samples, so that the mean of the shares is the
damage and their standard error is that of the damage. All that is made for means (curves, folds, races) then
serves such metrics too.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from secateur.types import Floats

CHUNK = 4096


class Aggregate(Protocol):
    """A metric's value over many samples, from a row of numbers for each."""

    def value(self, rows: Floats) -> float:
        """The metric over all samples of `rows` (samples, numbers)."""

    def lost(self, before: Floats, after: Floats) -> Floats:
        """One value for each sample; their mean is `value(before) - value(after)`."""


def _as_it_is(rows: Tensor) -> Tensor:
    return rows


@dataclass(frozen=True, eq=False)
class OfSums:
    """A smooth function of the sums of the rows: perplexity, F1, mean intersection over union.

    A sample's share is what the function would move by, to first order, if the sample counted more (the infinitesimal
    jackknife, whose standard error is that of the delta method). The mean is exact.

    Source: Jaeckel 1972, "The infinitesimal jackknife"; Efron 1982, ch. 6.

    Attributes:
        function: (sums,) -> (), differentiable; not finite nowhere.
        expand: rows as they are kept -> rows as they are summed.

    >>> ratio = OfSums(lambda sums: sums[0] / sums[1])
    >>> rows = np.array([[1.0, 1.0], [1.0, 3.0]])
    >>> ratio.value(rows), ratio.shares(rows).tolist()
    (0.5, [0.75, 0.25])
    """

    function: Callable[[Tensor], Tensor]
    expand: Callable[[Tensor], Tensor] = _as_it_is

    def value(self, rows: Floats) -> float:
        """The metric over all samples of `rows` (samples, numbers)."""
        return float(self.function(self._sums(torch.from_numpy(rows))))

    def shares(self, rows: Floats) -> Floats:
        """One value for each sample; their mean is the metric."""
        kept = torch.from_numpy(rows)
        with torch.enable_grad():
            sums = self._sums(kept).requires_grad_()
            value = self.function(sums)
            (slope,) = torch.autograd.grad(value, sums)
        along = torch.cat([self.expand(part) @ slope for part in torch.split(kept, CHUNK)])
        return np.asarray((value.detach() + len(rows) * (along - along.mean())).numpy())

    def lost(self, before: Floats, after: Floats) -> Floats:
        """One value for each sample; their mean is `value(before) - value(after)`."""
        return np.asarray(self.shares(before) - self.shares(after))

    def _sums(self, rows: Tensor) -> Tensor:
        parts = [self.expand(part).sum(0) for part in torch.split(rows, CHUNK)]
        return torch.stack(parts).sum(0)


@dataclass(frozen=True, eq=False)
class OfResamples:
    """Any function of all rows, by the paired bootstrap: before and after are drawn together.

    A sample's share is its covariance with what is lost over the resamples, scaled such that the standard error of
    the shares' mean is the spread over the resamples. The mean is exact.

    Source: Efron 2014, "Estimation and accuracy after model selection" (J. Am. Stat. Assoc. 109), the covariances.

    Attributes:
        function: rows (samples, numbers) -> the metric.
        resamples: how many.
        seed: of the drawing.
    """

    function: Callable[[Floats], float]
    resamples: int = 200
    seed: int = 0

    def value(self, rows: Floats) -> float:
        """The metric over all samples of `rows` (samples, numbers)."""
        return float(self.function(rows))

    def lost(self, before: Floats, after: Floats) -> Floats:
        """One value for each sample; their mean is `value(before) - value(after)`."""
        samples = len(before)
        rng = np.random.default_rng(self.seed)
        # Unmeasurable resamples (one class only) are left out.
        found = []
        for _ in range(self.resamples):
            drawn = rng.integers(0, samples, samples)
            loss = self.function(before[drawn]) - self.function(after[drawn])
            if np.isfinite(loss):
                found.append((loss, np.bincount(drawn, minlength=samples)))
        away = np.zeros(samples)
        if len(found) > 1 and samples > 1:
            losses = np.array([loss for loss, _ in found])
            away = np.stack([count for _, count in found]).T @ (losses - losses.mean())
            away -= away.mean()
            spread = away.std(ddof=1)
            away *= losses.std(ddof=1) * samples**0.5 / spread if spread > 0 else 0.0
        return np.asarray(self.value(before) - self.value(after) + away)
