"""Which zeros a runtime can make something of: anywhere, n of m, or whole blocks.

Every pattern looks at a weight as (groups, rows, columns), and chooses from scores: the higher, the rather kept.
Counts are exact; of equal scores the later position is kept.
"""

import math
import re
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from secateur.errors import ArgumentError, NumericalError


class Pattern(Protocol):
    """One rule of what may be zero."""

    def keep(self, scores: Tensor, sparsity: float) -> Tensor:
        """What is kept: bool, in the shape of the scores (groups, rows, columns).

        Raises:
            ArgumentError: a sparsity that the pattern does not have.
            NumericalError: a score that is NaN.
        """

    def nearest(self, sparsity: float) -> float:
        """The sparsity that the pattern has instead of this one."""


@dataclass(frozen=True)
class Unstructured:
    """Any weights.

    Args:
        per_row: every row loses equally many; else they compete across the whole matrix.

    >>> Unstructured().keep(torch.tensor([[[3.0, 1.0], [1.0, 1.0]]]), 0.5).tolist()
    [[[True, False], [False, True]]]
    """

    per_row: bool = False

    def keep(self, scores: Tensor, sparsity: float) -> Tensor:
        """All but the lowest `removed(entries, sparsity)`, of the matrix or of each row."""
        check_sparsity(sparsity)
        flat = scores.flatten(0, 1) if self.per_row else scores.reshape(1, -1)
        return ~lowest(flat, removed(flat.shape[1], sparsity)).reshape(scores.shape)

    def nearest(self, sparsity: float) -> float:
        """Any."""
        return sparsity

    def __str__(self) -> str:
        return "unstructured per row" if self.per_row else "unstructured"


@dataclass(frozen=True)
class NM:
    """At most `n` weights of every `m` neighbours along the columns are kept.

    At the end of a row that `m` does not divide, `n` of the rest are kept, or all if there are no more.

    Source: Mishra et al. 2021 (arXiv:2104.08378) for 2:4; Zhou et al. 2021 (arXiv:2102.04010) for N:M.

    Args:
        n: kept.
        m: out of.

    >>> NM(1, 2).keep(torch.tensor([[[3.0, 1.0, 2.0, 4.0, 5.0]]]), 0.5).tolist()
    [[[True, False, False, True, True]]]
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        if not 0 < self.n <= self.m:
            raise ArgumentError(f"the pattern {self.n}:{self.m} keeps {self.n} of {self.m}; needed 0 < n <= m")

    def keep(self, scores: Tensor, sparsity: float) -> Tensor:
        """The best `n` of every `m`; everything at a sparsity of 0."""
        check_sparsity(sparsity)
        if sparsity == 0:
            return torch.ones_like(scores, dtype=torch.bool)
        if not math.isclose(sparsity, 1 - self.n / self.m):
            raise ArgumentError(f"{self} has a sparsity of {1 - self.n / self.m:g}, or 0; given {sparsity:g}")
        columns = scores.shape[-1]
        # The rest of a row is filled up with the lowest scores, at positions that are dropped afterwards.
        filled = functional.pad(_checked(scores).double(), (0, -columns % self.m), value=-math.inf)
        runs = filled.reshape(-1, self.m)
        gone = lowest(runs, self.m - self.n)
        return ~gone.reshape(filled.shape)[..., :columns]

    def nearest(self, sparsity: float) -> float:
        """Its own, or 0."""
        return 1 - self.n / self.m if sparsity > 0 else 0.0

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"


@dataclass(frozen=True)
class Blocks:
    """Blocks of rows by columns are kept or removed whole; vectors are blocks of one row or one column.

    A block scores the mean of its weights, so that cut-off blocks at the edges compare with whole ones.

    Args:
        rows: of a block.
        columns: of a block.

    >>> Blocks(1, 2).keep(torch.tensor([[[3.0, 0.0, 1.0, 1.0, 9.0]]]), 1 / 3).tolist()
    [[[True, True, False, False, True]]]
    """

    rows: int
    columns: int

    def __post_init__(self) -> None:
        if self.rows < 1 or self.columns < 1:
            raise ArgumentError(f"blocks of {self.rows} x {self.columns}: needed at least 1 x 1")

    def keep(self, scores: Tensor, sparsity: float) -> Tensor:
        """All but the lowest `removed(blocks, sparsity)` blocks of the matrix."""
        check_sparsity(sparsity)
        means = self._sums(_checked(scores).double()) / self._sums(torch.ones_like(scores, dtype=torch.float64))
        flat = means.reshape(1, -1)
        kept = ~lowest(flat, removed(flat.shape[1], sparsity)).reshape(means.shape)
        spread = kept.repeat_interleave(self.rows, 1).repeat_interleave(self.columns, 2)
        return spread[:, : scores.shape[1], : scores.shape[2]]

    def nearest(self, sparsity: float) -> float:
        """Any."""
        return sparsity

    def _sums(self, values: Tensor) -> Tensor:
        groups, rows, columns = values.shape
        filled = functional.pad(values, (0, -columns % self.columns, 0, -rows % self.rows))
        tiles = filled.reshape(groups, filled.shape[1] // self.rows, self.rows, -1, self.columns)
        return tiles.sum(dim=(2, 4))

    def __str__(self) -> str:
        return f"blocks {self.rows}x{self.columns}"


def pattern_named(text: str) -> Pattern:
    """The pattern whose `str` this is.

    Raises:
        ArgumentError: there is none.

    >>> pattern_named("2:4"), pattern_named("blocks 4x1")
    (NM(n=2, m=4), Blocks(rows=4, columns=1))
    """
    if text in {"unstructured", "unstructured per row"}:
        return Unstructured(per_row=text != "unstructured")
    if found := re.fullmatch(r"(\d+):(\d+)", text):
        return NM(int(found[1]), int(found[2]))
    if found := re.fullmatch(r"blocks (\d+)x(\d+)", text):
        return Blocks(int(found[1]), int(found[2]))
    raise ArgumentError(
        f'there is no pattern {text!r}; there are "unstructured", "unstructured per row", "2:4", "blocks 4x1" and alike'
    )


def removed(count: int, sparsity: float) -> int:
    """How many of `count` go at this sparsity: the nearest whole number, halves up.

    >>> removed(5, 0.5), removed(10, 0.7), removed(3, 1.0)
    (3, 7, 3)
    """
    return math.floor(round(count * sparsity, 6) + 0.5)


def lowest(scores: Tensor, count: int) -> Tensor:
    """The `count` lowest of each row, ties by position, the first first: bool (rows, entries)."""
    order = _checked(scores).sort(dim=1, stable=True).indices[:, :count]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, order, value=True)


def check_sparsity(sparsity: float) -> None:
    """Raise ArgumentError unless it lies in [0, 1]."""
    if not 0 <= sparsity <= 1:
        raise ArgumentError(f"sparsity is {sparsity}; it must lie in [0, 1]: the fraction of weights that become zero")


def _checked(scores: Tensor) -> Tensor:
    if bool(scores.isnan().any()):
        raise NumericalError("a score is NaN, so nothing can be ranked: check the weights and the calibration data")
    return scores
