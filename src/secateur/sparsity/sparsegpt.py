"""SparseGPT: columns from left to right, each row's later weights make up for what goes."""

from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.sparsity.curvature import Curvature
from secateur.sparsity.method import AtSparsity, Solved, without_dead
from secateur.sparsity.patterns import NM, Pattern, Unstructured, lowest, removed


@dataclass(frozen=True)
class SparseGPT:
    """One factorisation for all rows; the cost is that of inverting the moments, d³ + rows d².

    Only weights to the right of a removed one are changed, which is weak at high sparsity.

    Source: Frantar and Alistarh 2023 (arXiv:2301.00774).

    Args:
        damping: relative to the mean diagonal of the moments.
        block: columns in which unstructured masks are chosen, and updates of the rest are delayed.
    """

    damping: float = 0.01
    block: int = 128

    def prepared(self, matrix: Tensor, curvature: Curvature, pattern: Pattern) -> AtSparsity:
        """Scores w² / U_jj², U the upper Cholesky factor of the inverse moments."""
        damped = curvature.damped(self.damping)
        upper = torch.linalg.cholesky(damped.inverse, upper=True)
        dense = without_dead(matrix, curvature)

        def at(sparsity: float) -> Solved:
            given = None
            if not isinstance(pattern, Unstructured | NM):
                scores = dense.square() / damped.inverse.diagonal(dim1=1, dim2=2).unsqueeze(1)
                given = pattern.keep(scores, sparsity)
            found, keep = self.swept(dense, upper, pattern, sparsity, given)
            return Solved(found, keep, damped.note)

        return at

    def swept(
        self, matrix: Tensor, upper: Tensor, pattern: Pattern, sparsity: float, given: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The sweep alone.

        Args:
            matrix: float64 (groups, rows, columns).
            upper: U with U'U the inverse moments: (groups, columns, columns).
            pattern: chooses, unless `given` says what is kept.
            sparsity: wanted.
            given: bool (groups, rows, columns), or None.

        Returns:
            The sparse matrix, and what is kept.
        """
        left = matrix.clone()
        keep = torch.ones_like(matrix, dtype=torch.bool) if given is None else given.clone()
        columns = matrix.shape[2]
        squares = upper.diagonal(dim1=1, dim2=2).square().unsqueeze(1)
        # Blocks of n:m must not cut a run of m.
        width = self.block - self.block % pattern.m if isinstance(pattern, NM) else self.block
        width = max(width, pattern.m if isinstance(pattern, NM) else 1)
        for start in range(0, columns, width):
            stop = min(start + width, columns)
            if given is None and isinstance(pattern, Unstructured):
                scores = left[..., start:stop].square() / squares[..., start:stop]
                keep[..., start:stop] = _chosen(scores, start, stop, pattern, sparsity)
            errors = torch.zeros_like(left[..., start:stop])
            for j in range(start, stop):
                if given is None and isinstance(pattern, NM) and j % pattern.m == 0:
                    run = slice(j, min(j + pattern.m, columns))
                    keep[..., run] = pattern.keep(left[..., run].square() / squares[..., run], sparsity)
                gone = torch.where(keep[..., j], torch.zeros_like(left[..., j]), left[..., j])
                errors[..., j - start] = gone / upper[:, j, j].unsqueeze(1)
                left[..., j:stop] -= errors[..., j - start, None] * upper[:, None, j, j:stop]
            left[..., stop:] -= errors @ upper[:, start:stop, stop:]
        return torch.where(keep, left, torch.zeros_like(left)), keep


def _chosen(scores: Tensor, start: int, stop: int, pattern: Unstructured, sparsity: float) -> Tensor:
    """A mask for these columns, such that those of all blocks together remove exactly what they should."""
    flat = scores.flatten(0, 1) if pattern.per_row else scores.reshape(1, -1)
    rows = 1 if pattern.per_row else scores.shape[0] * scores.shape[1]
    count = removed(rows * stop, sparsity) - removed(rows * start, sparsity)
    return ~lowest(flat, count).reshape(scores.shape)
