"""The types of dimensions: leaves, and how leaves are laid out in one dimension.

Axis(7, 64)                       64 units that may be removed
Fixed(10)                         10 positions that may not
Product((Axis(1, 12), Axis(2, 64)))   768 positions: 12 heads x 64 head dimensions, row-major
Concat((Axis(3, 32), Axis(4, 32)))    64 positions: one axis beside the other
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Axis:
    """A leaf: `size` units shared by every tensor that must agree on them."""

    id: int
    size: int


@dataclass(frozen=True)
class Fixed:
    """Positions that cannot be removed; the reason is for people and never compared."""

    size: int
    reason: str = field(default="", compare=False)


@dataclass(frozen=True)
class Product:
    """Several types laid out in one dimension, row-major: the last factor varies fastest."""

    factors: tuple["DimType", ...]

    @property
    def size(self) -> int:
        """Number of positions."""
        return math.prod(f.size for f in self.factors)


@dataclass(frozen=True)
class Concat:
    """Types side by side in one dimension."""

    parts: tuple["DimType", ...]

    @property
    def size(self) -> int:
        """Number of positions."""
        return sum(p.size for p in self.parts)


DimType = Axis | Fixed | Product | Concat
Dims = tuple[DimType, ...]


def leaves(dim: DimType) -> Iterator[Axis]:
    """Every removable leaf, from left to right; one that occurs twice is given twice.

    >>> [axis.id for axis in leaves(Concat((Axis(1, 2), Product((Fixed(4), Axis(2, 3))))))]
    [1, 2]
    """
    match dim:
        case Axis():
            yield dim
        case Product(factors):
            for factor in factors:
                yield from leaves(factor)
        case Concat(parts):
            for part in parts:
                yield from leaves(part)
        case Fixed():
            return


def fixed_sizes(dim: DimType) -> Iterator[Fixed]:
    """The parts of a dimension that hold no removable leaf at all."""
    match dim:
        case Fixed():
            yield dim
        case Concat(parts):
            for part in parts:
                yield from fixed_sizes(part)
        case _:
            return


def positions(dim: DimType) -> dict[int, Tensor]:
    """Where the units of each leaf lie: axis id -> int64 (units, span).

    >>> positions(Product((Fixed(2), Axis(7, 3))))[7].tolist()
    [[0, 3], [1, 4], [2, 5]]
    """
    match dim:
        case Axis(id_, size):
            return {id_: torch.arange(size).unsqueeze(1)}
        case Fixed():
            return {}
        case Product(factors):
            return _positions_in_product(factors)
        case Concat(parts):
            return _positions_in_concat(parts)


def _positions_in_product(factors: Dims) -> dict[int, Tensor]:
    found: dict[int, Tensor] = {}
    for number, factor in enumerate(factors):
        outer = math.prod(f.size for f in factors[:number])
        inner = math.prod(f.size for f in factors[number + 1 :])
        block = torch.arange(outer).reshape(1, outer, 1, 1) * (factor.size * inner)
        step = torch.arange(inner).reshape(1, 1, 1, inner)
        for id_, index in positions(factor).items():
            where = block + index.reshape(len(index), 1, -1, 1) * inner + step
            found[id_] = _beside(found.get(id_), where.reshape(len(index), -1))
    return found


def _positions_in_concat(parts: Dims) -> dict[int, Tensor]:
    found: dict[int, Tensor] = {}
    offset = 0
    for part in parts:
        for id_, index in positions(part).items():
            found[id_] = _beside(found.get(id_), index + offset)
        offset += part.size
    return found


def _beside(known: Tensor | None, more: Tensor) -> Tensor:
    return more if known is None else torch.cat([known, more], dim=1)


def positions_within(dim: DimType, inner: Axis, outer: Axis) -> Tensor:
    """Where the units of a leaf lie, for each unit of another leaf of the dimension: int64 (outer x inner, span).

    >>> heads, width = Axis(1, 2), Axis(2, 3)
    >>> positions_within(Product((width, heads)), width, heads).flatten().tolist()
    [0, 2, 4, 1, 3, 5]
    """
    where = positions(dim)
    owner = torch.zeros(outer.size, dim.size, dtype=torch.bool).scatter_(1, where[outer.id], True)
    index = where[inner.id]
    return torch.cat([index[own[index]].reshape(inner.size, -1) for own in owner])


def normal_form(dim: DimType) -> DimType:
    """The same layout with nesting flattened, units of one dropped and fixed neighbours merged.

    A leading concatenation is taken out of a product, so that a split of the dimension can see it:
    `(a | b) x c` is `(a x c) | (b x c)`.

    >>> normal_form(Product((Fixed(1), Product((Fixed(2), Fixed(3))))))
    Fixed(size=6, reason='')
    """
    match dim:
        case Product(factors):
            return _normal_product([normal_form(f) for f in factors])
        case Concat(parts):
            return _normal_concat([normal_form(p) for p in parts])
        case _:
            return dim


def _normal_product(factors: list[DimType]) -> DimType:
    flat: list[DimType] = []
    for factor in factors:
        for piece in factor.factors if isinstance(factor, Product) else (factor,):
            last = flat[-1] if flat else None
            if isinstance(piece, Fixed) and isinstance(last, Fixed):
                flat[-1] = Fixed(last.size * piece.size, last.reason or piece.reason)
            elif piece != Fixed(1):
                flat.append(piece)
    if not flat:
        return Fixed(1, next((f.reason for f in factors if isinstance(f, Fixed)), ""))
    if len(flat) == 1:
        return flat[0]
    if isinstance(flat[0], Concat):
        return _normal_concat([_normal_product([part, *flat[1:]]) for part in flat[0].parts])
    return Product(tuple(flat))


def _normal_concat(parts: list[DimType]) -> DimType:
    flat: list[DimType] = []
    for part in parts:
        for piece in part.parts if isinstance(part, Concat) else (part,):
            last = flat[-1] if flat else None
            if isinstance(piece, Fixed) and isinstance(last, Fixed):
                flat[-1] = Fixed(last.size + piece.size, last.reason or piece.reason)
            elif piece.size > 0:
                flat.append(piece)
    if not flat:
        return Fixed(0)
    return flat[0] if len(flat) == 1 else Concat(tuple(flat))
