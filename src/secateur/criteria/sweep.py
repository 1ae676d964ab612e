"""Units of linear maps removed one by one, the cheapest first, while the other columns make up for them.

With H⁻¹ the inverse of the inputs' moments and M = WᵀW, a unit with the columns q costs tr([H⁻¹]_qq⁻¹ M_qq). Its
removal takes CᵀC off the inverse, with C = [H⁻¹]_qq^(-1/2) [H⁻¹]_q·, and BᵀC + CᵀB off M, with B from M_q·. Both
matrices are n x n, so applying that at once costs time by moving memory rather than by arithmetic. It is collected
instead, and applied as one matrix product to what is then left; meanwhile a column is read as what it was,
less the products.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.capture.calls import NONE

DELAY = 64
"""Columns removed after which the matrices are brought up to date."""


def sweep(maps: Sequence["Map"], fixed: Tensor) -> tuple[Tensor, Tensor]:
    """Remove the cheapest unit until none is left.

    Args:
        maps: all that read units; used up.
        fixed: what the removal of each unit costs besides, float64 (units,).

    Returns:
        Order, and error before each removal and after the last.
    """
    size = len(fixed)
    order, errors = [], [0.0]
    alive = torch.ones(size, dtype=torch.bool)
    costs = torch.stack([torch.zeros(size, dtype=torch.float64), *(found.costs(size) for found in maps)])
    for _ in range(size):
        total = fixed + costs.sum(0)
        unit = int(torch.where(alive, total, torch.inf).argmin())
        order.append(unit)
        errors.append(errors[-1] + float(total[unit]))
        alive[unit] = False
        for k, found in enumerate(maps, start=1):
            if found.remove(unit):
                costs[k] = found.costs(size)
    return torch.tensor(order), torch.tensor(errors, dtype=torch.float64)


def map_of(matrix: Tensor, inverse: Tensor, units: Tensor) -> "Map":
    """A linear map, its columns sorted by units, those of no unit left out: they cost nothing, and change alike.

    Args:
        matrix: float64 (rows, columns).
        inverse: of the moments of its inputs, float64 (columns, columns).
        units: int64 (columns,): of each column; `NONE` where of none.
    """
    here = torch.unique(units[units != NONE])
    columns = [(units == unit).nonzero().flatten() for unit in here]
    span = max((len(c) for c in columns), default=1)
    # Number -1 is an empty column: nothing is multiplied with it, and it goes with no other.
    places = torch.full((len(here), span), -1)
    for slot, own in enumerate(columns):
        places[slot, : len(own)] = own
    flat = places.flatten()
    is_empty = flat < 0
    inside = flat.clamp(min=0)
    own = matrix[:, inside].masked_fill(is_empty, 0.0)
    near = inverse[inside][:, inside].masked_fill_(is_empty | is_empty.unsqueeze(1), 0.0)
    near += torch.diag_embed(is_empty.double())
    return Map(here, span, near, own.T @ own)


@dataclass(eq=False)
class Map:
    """One map during a sweep.

    Attributes:
        units: that are left, int64 (slots,); each has `span` columns.
        span: columns of a unit.
        inverse: float64 (slots x span, slots x span), as it was when `taken` was empty.
        outer: likewise, WᵀW.
    """

    units: Tensor
    span: int
    inverse: Tensor
    outer: Tensor

    def __post_init__(self) -> None:
        slots = len(self.units)
        self.taken = self.inverse.new_zeros(0, slots * self.span)
        self.mixed = self.taken.clone()
        self.alive = torch.ones(slots, dtype=torch.bool)
        shape = (slots, self.span, slots, self.span)
        self.own_inverse = self.inverse.reshape(shape).diagonal(dim1=0, dim2=2).permute(2, 0, 1).contiguous()
        self.own_outer = self.outer.reshape(shape).diagonal(dim1=0, dim2=2).permute(2, 0, 1).contiguous()

    def costs(self, size: int) -> Tensor:
        """What the removal of each of `size` units alone costs: float64 (units,)."""
        if self.span == 1:
            found = (self.own_outer / self.own_inverse).flatten()
        else:
            found = torch.linalg.solve(self.own_inverse, self.own_outer).diagonal(dim1=1, dim2=2).sum(1)
        total = torch.zeros(size, dtype=torch.float64)
        return total.index_add_(0, self.units[self.alive], found[self.alive].clamp(min=0))

    def remove(self, unit: int) -> bool:
        """Take a unit out; False where it is none of this map's."""
        slot = (self.units == unit).nonzero().flatten().tolist()
        if not slot:
            return False
        own = slice(slot[0] * self.span, (slot[0] + 1) * self.span)
        inverse = self.inverse[own] - self.taken[:, own].T @ self.taken
        outer = self.outer[own] - self.mixed[:, own].T @ self.taken - self.taken[:, own].T @ self.mixed
        values, vectors = torch.linalg.eigh(inverse[:, own])
        root = (vectors / values.clamp(min=values[-1] * torch.finfo(torch.float64).eps).sqrt()).T
        taken, seen = root @ inverse, root @ outer
        mixed = seen - (seen[:, own] @ root.T) @ taken / 2
        self._update_own(taken, mixed)
        self.alive[slot[0]] = False
        self.own_inverse[slot[0]] = torch.eye(self.span, dtype=torch.float64)
        self.own_outer[slot[0]] = 0.0
        self.taken, self.mixed = torch.cat([self.taken, taken]), torch.cat([self.mixed, mixed])
        if len(self.taken) >= DELAY:
            self._settle()
        return True

    def _update_own(self, taken: Tensor, mixed: Tensor) -> None:
        c, b = (t.reshape(self.span, -1, self.span).permute(1, 2, 0) for t in (taken, mixed))
        self.own_inverse -= c @ c.mT
        products = b @ c.mT
        self.own_outer -= products + products.mT

    def _settle(self) -> None:
        """Bring the matrices of what is left up to date."""
        at = (self.alive.nonzero() * self.span + torch.arange(self.span)).flatten()
        taken, mixed = self.taken[:, at], self.mixed[:, at]
        self.inverse = self.inverse[at][:, at].addmm_(taken.T, taken, alpha=-1)
        outer = self.outer[at][:, at].addmm_(mixed.T, taken, alpha=-1)
        self.outer = outer.addmm_(taken.T, mixed, alpha=-1)
        self.units = self.units[self.alive]
        self.own_inverse, self.own_outer = self.own_inverse[self.alive], self.own_outer[self.alive]
        self.taken, self.mixed = taken[:0], mixed[:0]
        self.alive = self.alive[self.alive]
