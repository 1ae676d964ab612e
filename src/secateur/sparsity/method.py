"""What every method of making a matrix sparse is asked for, and the methods that score weights once."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from secateur.criteria.energy import energy, relative_importance
from secateur.errors import ArgumentError
from secateur.sparsity.curvature import Curvature
from secateur.sparsity.patterns import Pattern
from secateur.sparsity.refit import refitted


@dataclass(frozen=True, eq=False)
class Solved:
    """A sparse matrix in place of a dense one.

    Attributes:
        matrix: float64 (groups, rows, columns), zero where nothing is kept.
        keep: bool, the same shape.
        note: what was unusual; empty if nothing.
    """

    matrix: Tensor
    keep: Tensor
    note: str = ""


AtSparsity = Callable[[float], Solved]


class Method(Protocol):
    """Chooses which weights of one matrix go, and what becomes of the others."""

    def prepared(self, matrix: Tensor, curvature: Curvature, pattern: Pattern) -> AtSparsity:
        """Do what all sparsities have in common.

        Args:
            matrix: float64 (groups, rows, columns).
            curvature: of its inputs.
            pattern: what may be zero.

        Returns:
            A function of the sparsity.
        """


@dataclass(frozen=True)
class Masked:
    """Score every weight once, keep the best.

    Source: magnitude: Han et al. 2015 (arXiv:1506.02626). Wanda: Sun et al. 2023 (arXiv:2306.11695), whose paper
    compares within a row: `Unstructured(per_row=True)`; its square is OBS's score if inputs do not correlate.
    RIA: Zhang et al. 2024 (ICLR, "Plug-and-Play").

    Args:
        by: "magnitude": |w|; "wanda": |w| sqrt(E[x²]); "ria": |w| as a share of its row's sum, plus as one of its
            column's, times the fourth root of E[x²].
        refit: give the kept weights the values that make the least output error.
        damping: of the moments in that fit, relative to their mean diagonal: it holds to the dense weights.
    """

    by: Literal["magnitude", "wanda", "ria"] = "magnitude"
    refit: bool = False
    damping: float = 1e-4

    def prepared(self, matrix: Tensor, curvature: Curvature, pattern: Pattern) -> AtSparsity:
        """Scores are squared, so that those of a block add up."""
        scores = self.scores(matrix, curvature).square()
        damped = curvature.damped(self.damping) if self.refit else None
        alive = matrix if damped is None else without_dead(matrix, curvature)

        def at(sparsity: float) -> Solved:
            keep = pattern.keep(scores, sparsity)
            if damped is None:
                return Solved(torch.where(keep, matrix, torch.zeros_like(matrix)), keep)
            return Solved(refitted(alive, damped.matrix, keep), keep, damped.note)

        return at

    def scores(self, matrix: Tensor, curvature: Curvature) -> Tensor:
        """The higher, the rather kept: (groups, rows, columns).

        Raises:
            ArgumentError: there is no such score.
        """
        squares = curvature.moments.diagonal(dim1=1, dim2=2).clamp(min=0)
        if self.by == "magnitude":
            return matrix.abs()
        if self.by == "wanda":
            return energy(matrix, squares).sqrt()
        if self.by == "ria":
            return relative_importance(matrix, squares, power=0.5)
        raise ArgumentError(f'Masked(by={self.by!r}): there are "magnitude", "wanda" and "ria"')


def without_dead(matrix: Tensor, curvature: Curvature) -> Tensor:
    """The matrix with zero weights for dead inputs."""
    return torch.where(curvature.dead.unsqueeze(1), torch.zeros_like(matrix), matrix)
