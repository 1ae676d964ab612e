"""Optimal Brain Compression: the least harmful weight of a row goes, all others make up for it, and again.

One sweep gives the order in which the weights of a layer go, and what each costs, for all sparsities.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.errors import ArgumentError
from secateur.sparsity.curvature import Curvature
from secateur.sparsity.method import AtSparsity, Solved, without_dead
from secateur.sparsity.patterns import NM, Pattern, Unstructured, check_sparsity, removed
from secateur.sparsity.refit import refitted

CHUNK = 2**25
"""Elements of all rows' inverses that are held at once (float64)."""

DELAY = 64
"""Eliminations after which the inverses are brought up to date."""


@dataclass(frozen=True, eq=False)
class Order:
    """In which order the weights of each row go.

    Attributes:
        columns: int64 (groups x rows, steps).
        losses: float64, the same shape: what each step adds to the squared output error of the row, all other
            weights of the row having been fitted anew.
    """

    columns: Tensor
    losses: Tensor

    def curve(self) -> Tensor:
        """Squared output error of the layer after 0, 1, 2, ... removals, the cheapest next one first: float64."""
        losses = self.losses.flatten()[self._ranks()]
        return torch.cat([losses.new_zeros(1), losses.cumsum(0)])

    def keep(self, shape: tuple[int, int, int], pattern: Pattern, sparsity: float) -> Tensor:
        """What is kept at a sparsity: bool of this shape (groups, rows, columns)."""
        check_sparsity(sparsity)
        gone = torch.zeros_like(self.columns, dtype=torch.bool)
        if isinstance(pattern, NM):
            # Checks the sparsity too.
            gone[:] = not bool(pattern.keep(torch.zeros(1, 1, pattern.m), sparsity).all())
        elif isinstance(pattern, Unstructured) and pattern.per_row:
            gone[:, : removed(shape[2], sparsity)] = True
        else:
            gone.view(-1)[self._ranks()[: removed(gone.numel(), sparsity)]] = True
        keep = torch.ones(self.columns.shape[0], shape[2], dtype=torch.bool, device=gone.device)
        return keep.scatter_(1, self.columns, ~gone).reshape(shape)

    def _ranks(self) -> Tensor:
        # A step is open once all earlier ones of its row are made: it waits for the dearest of them.
        return self.losses.cummax(dim=1).values.flatten().sort(stable=True).indices


@dataclass(frozen=True)
class OBC:
    """ExactOBS, row by row greedily, then the exact fit of what is kept.

    Cost: rows d³ / 3 multiply-adds for a sweep over all sparsities; memory is bounded by taking rows in parts.

    Source: Frantar, Singh and Alistarh 2022 (arXiv:2208.11580).

    Args:
        damping: relative to the mean diagonal of the moments; holds to the dense weights.
    """

    damping: float = 1e-4

    def prepared(self, matrix: Tensor, curvature: Curvature, pattern: Pattern) -> AtSparsity:
        """One sweep; every sparsity is read off it.

        Raises:
            ArgumentError: a pattern of blocks: weights go one by one.
        """
        if not isinstance(pattern, Unstructured | NM):
            raise ArgumentError(
                f"OBC removes weights one by one, which does not make {pattern}: use SparseGPT() or "
                'Masked("magnitude", refit=True) for blocks'
            )
        damped = curvature.damped(self.damping)
        dense = without_dead(matrix, curvature)
        found = elimination_order(dense, damped.inverse, pattern if isinstance(pattern, NM) else None)
        groups, rows, columns = matrix.shape

        def at(sparsity: float) -> Solved:
            keep = found.keep((groups, rows, columns), pattern, sparsity)
            return Solved(refitted(dense, damped.matrix, keep), keep, damped.note)

        return at


def elimination_order(matrix: Tensor, inverse: Tensor, pattern: NM | None = None) -> Order:
    """In which order OBS removes the weights of each row, all of them or as many as n:m allows.

    Args:
        matrix: float64 (groups, rows, columns).
        inverse: of the moments: float64 (groups, columns, columns).
        pattern: limits what may go.

    >>> inverse = torch.eye(3).double()[None]
    >>> elimination_order(torch.tensor([[[3.0, 1.0, 2.0]]]).double(), inverse).columns.tolist()
    [[1, 2, 0]]
    """
    groups, rows, columns = matrix.shape
    flat = matrix.reshape(-1, columns)
    group = torch.arange(groups, device=matrix.device).repeat_interleave(rows)
    parts = torch.split(torch.arange(len(flat), device=matrix.device), max(1, CHUNK // max(columns, 1) ** 2))
    found = [_eliminate(flat[part], inverse, group[part], pattern) for part in parts]
    return Order(torch.cat([order for order, _ in found]), torch.cat([losses for _, losses in found]))


def _eliminate(weights: Tensor, inverses: Tensor, group: Tensor, pattern: NM | None) -> tuple[Tensor, Tensor]:
    """Rows at once, each with an inverse of its own from the first step on.

    What an elimination takes off an inverse is a product v v'. It is taken off the diagonal at once, and off the
    rest only every few steps, for what is left then; meanwhile a column is read as what it was, less the products.
    """
    rows, columns = weights.shape
    runs = -(-columns // pattern.m) if pattern else 0
    quota = _quotas(columns, pattern, weights.device).expand(rows, runs).clone() if pattern else None
    steps = int(quota[0].sum()) if quota is not None else columns
    w, inverse = weights.clone(), inverses[group]
    diagonal = inverse.diagonal(dim1=1, dim2=2).clone()
    names = torch.arange(columns, device=weights.device).expand(rows, columns)
    # A last run that is shorter than n may lose nothing.
    open_ = torch.ones_like(w, dtype=torch.bool) if quota is None or pattern is None else _open(quota, names, pattern)
    order = torch.empty(rows, steps, dtype=torch.int64, device=weights.device)
    losses = w.new_empty(rows, steps)
    each = torch.arange(rows, device=weights.device)
    products = w.new_zeros(rows, min(DELAY, max(steps, 1)), columns)
    pending = 0
    for step in range(steps):
        scores = (w.square() / diagonal).masked_fill(~open_, torch.inf)
        cost, q = scores.min(dim=1)
        order[:, step], losses[:, step] = names[each, q], cost
        column = inverse[each, q]
        if pending:
            before = products[:, :pending]
            column = column - (before[each, :, q].unsqueeze(1) @ before).squeeze(1)
        pivot = diagonal[each, q]
        w -= (w[each, q] / pivot).unsqueeze(1) * column
        v = column / pivot.sqrt().unsqueeze(1)
        diagonal -= v.square()
        w[each, q], open_[each, q] = 0.0, False
        # Whatever rounding makes of it: what is gone must stay positive to divide by.
        diagonal[each, q] = 1.0
        if quota is not None and pattern is not None:
            run = names[each, q] // pattern.m
            quota[each, run] -= 1
            open_ &= _open(quota, names, pattern)
        products[:, pending] = v
        pending += 1
        if pending == products.shape[1] and step + 1 < steps:
            # Rows have lost equally many, unless n:m closes some: those are still there, but take no part.
            left = columns - step - 1
            at = _left(order[:, : step + 1], names, columns, left)
            take = at.unsqueeze(1).expand(-1, products.shape[1], -1)
            products = products.gather(2, take)
            inverse = inverse[each[:, None, None], at.unsqueeze(2), at.unsqueeze(1)]
            inverse.baddbmm_(products.transpose(1, 2), products, alpha=-1)
            w, diagonal, open_, names = (t.gather(1, at) for t in (w, diagonal, open_, names))
            pending = 0
    return order, losses


def _quotas(columns: int, pattern: NM, device: torch.device) -> Tensor:
    """How many may go of each run of m; the last run may be shorter."""
    lengths = [min(pattern.m, columns - start) for start in range(0, columns, pattern.m)]
    return torch.tensor([max(0, length - pattern.n) for length in lengths], device=device)


def _open(quota: Tensor, names: Tensor, pattern: NM) -> Tensor:
    """Which columns lie in a run that may lose more: bool, in the shape of `names`."""
    return quota.gather(1, names // pattern.m) > 0


def _left(gone: Tensor, names: Tensor, columns: int, count: int) -> Tensor:
    """Positions in `names` of the columns that are not gone, ascending: (rows, count)."""
    is_gone = torch.zeros(len(names), columns, dtype=torch.bool, device=names.device)
    is_gone.scatter_(1, gone, value=True)
    return is_gone.gather(1, names).int().argsort(dim=1, stable=True)[:, :count]
