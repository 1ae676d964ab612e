"""ALPS: which weights stay, and what they are, found together by a splitting method."""

from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.errors import ArgumentError
from secateur.sparsity.curvature import Curvature
from secateur.sparsity.method import AtSparsity, Solved, without_dead
from secateur.sparsity.patterns import Pattern
from secateur.sparsity.refit import refitted

EVERY = 3
"""Steps between two looks at how many weights have come or gone."""

PENALTY = 0.1
"""At first, of inputs of mean square 1."""


@dataclass(frozen=True)
class ALPS:
    """Two matrices, one that is free and one that has the zeros, are drawn together until they are one.

    It looks at all weights of a matrix at once, where OBC never takes back a removal, and makes every pattern. What is
    kept is then fitted exactly (the paper iterates here), and is never worse than the largest weights, fitted likewise.

    Cost: one eigendecomposition, then 4 rows d² multiply-adds a step.

    Source: Meng, Behdin, Wang and Mazumder 2024 (arXiv:2406.07831).

    Args:
        damping: relative to the mean diagonal of the moments; holds to the dense weights.
        steps: at most.
    """

    damping: float = 1e-4
    steps: int = 300

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ArgumentError(f"ALPS(steps={self.steps}): needed at least 1")

    def prepared(self, matrix: Tensor, curvature: Curvature, pattern: Pattern) -> AtSparsity:
        """Inputs are scaled to a mean square of 1, and their moments diagonalised."""
        damped = curvature.damped(self.damping)
        dense = without_dead(matrix, curvature)
        scale = damped.matrix.diagonal(dim1=1, dim2=2).sqrt().unsqueeze(1)
        moments = damped.matrix / (scale * scale.transpose(1, 2))
        values, vectors = torch.linalg.eigh(moments)

        def at(sparsity: float) -> Solved:
            largest = pattern.keep(dense.square(), sparsity)
            drawn = self._drawn(dense * scale, values.clamp(min=0), vectors, pattern, sparsity)
            found = [(keep, refitted(dense, damped.matrix, keep)) for keep in (drawn, largest)]
            keep, fitted = min(found, key=lambda each: _error(each[1] - dense, damped.matrix))
            return Solved(fitted, keep, damped.note)

        return at

    def _drawn(self, dense: Tensor, values: Tensor, vectors: Tensor, pattern: Pattern, sparsity: float) -> Tensor:
        """What is kept: the alternating direction method of multipliers, its penalty rising."""
        wanted = dense @ vectors * values.unsqueeze(1) @ vectors.mT
        sparse, dual, penalty = dense, torch.zeros_like(dense), PENALTY
        keep = seen = torch.ones_like(dense, dtype=torch.bool)
        for step in range(1, self.steps + 1):
            free = (wanted - dual + penalty * sparse) @ vectors / (values + penalty).unsqueeze(1) @ vectors.mT
            aim = free + dual / penalty
            keep = pattern.keep(aim.square(), sparsity)
            sparse = aim * keep
            dual = dual + penalty * (free - sparse)
            if step % EVERY == 0:
                changed = int((keep ^ seen).sum())
                if not changed:
                    break
                penalty *= _rise(changed / max(int(keep.sum()), 1))
                seen = keep
        return keep


def _rise(changed: float) -> float:
    """By what the penalty rises if this share of what is kept has changed; the paper's."""
    return 1.3 if changed >= 0.1 else 1.2 if changed >= 0.005 else 1.1


def _error(change: Tensor, moments: Tensor) -> float:
    return float((change @ moments * change).sum())
