"""Unification of dimension types, as in a type checker."""

import itertools
import math
from collections.abc import Callable, Iterable

from secateur.graph.axes import Axis, Concat, DimType, Fixed, Product, leaves, normal_form

ONE_UNIT = "holds one position only"


class Unifier:
    """What is known so far about every axis: unbound, or bound to another type.

    Axes only ever become more structured, more tied or fixed, so the order of calls does not change
    what can be removed in the end, and every call terminates.

    >>> u = Unifier()
    >>> a, b = u.fresh(6), u.fresh(6)
    >>> u.unify(a, Product((u.fresh(2), u.fresh(3))))
    >>> u.unify(a, b)
    >>> [axis.size for axis in leaves(u.resolve(b))]
    [2, 3]
    """

    def __init__(self) -> None:
        self._bound: dict[int, DimType] = {}
        self._resolved: dict[int, DimType] = {}
        self._ids = itertools.count()

    def fresh(self, size: int) -> Axis:
        """A new axis that nothing is known about."""
        return Axis(next(self._ids), size)

    def resolve(self, dim: DimType) -> DimType:
        """`dim` in normal form, with everything that is known filled in."""
        match dim:
            case Fixed():
                return dim
            case Axis(id_) if id_ not in self._bound:
                return dim
            case Axis(id_):
                if id_ not in self._resolved:
                    self._resolved[id_] = normal_form(self._fill(dim))
                return self._resolved[id_]
            case _:
                return normal_form(self._fill(dim))

    def fix(self, dim: DimType, reason: str) -> None:
        """Make every leaf of `dim` unremovable."""
        for axis in list(leaves(self.resolve(dim))):
            self._set(axis, Fixed(axis.size, reason))

    def unify(self, a: DimType, b: DimType) -> None:
        """Tie two types; where they cannot agree, fix both there."""
        a, b = self.resolve(a), self.resolve(b)
        if a.size != b.size:
            raise AssertionError(f"unify needs equal sizes, got {a} and {b}")
        if a == b:
            return
        match a, b:
            case Axis(), _:
                self._bind(a, b)
            case _, Axis():
                self._bind(b, a)
            case Fixed(reason=reason), _:
                self.fix(b, reason)
            case _, Fixed(reason=reason):
                self.fix(a, reason)
            case (Concat(), _) | (_, Concat()):
                self._align(_parts(a), _parts(b), sum, self._split_segment)
            case Product(), Product():
                self._align(list(a.factors), list(b.factors), math.prod, self._split_factor)

    def _fill(self, dim: DimType) -> DimType:
        match dim:
            case Axis(id_) if id_ in self._bound:
                self._bound[id_] = filled = self._fill(self._bound[id_])
                return filled
            case Product(factors):
                return Product(tuple(self._fill(f) for f in factors))
            case Concat(parts):
                return Concat(tuple(self._fill(p) for p in parts))
            case _:
                return dim

    def _bind(self, axis: Axis, to: DimType) -> None:
        if axis in leaves(to):
            self.fix(to, "an axis would have to contain itself")
        else:
            self._set(axis, to)

    def _set(self, axis: Axis, to: DimType) -> None:
        self._bound[axis.id] = to
        self._resolved.clear()

    def _align(
        self,
        left: list[DimType],
        right: list[DimType],
        total: Callable[[Iterable[int]], int],
        split: Callable[[DimType, int], list[DimType] | None],
    ) -> None:
        """Unify two sequences piece by piece, splitting the larger head where it can be split."""
        while left and right:
            left, right = self._refresh(left, total), self._refresh(right, total)
            a, b = left[0], right[0]
            if a.size == b.size:
                self.unify(a, b)
                left, right = left[1:], right[1:]
                continue
            longer, shorter = (left, right) if a.size > b.size else (right, left)
            pieces = split(longer[0], shorter[0].size)
            if pieces:
                longer[:1] = pieces
            else:
                left, right = self._fix_run(left, right, total)

    def _refresh(self, dims: list[DimType], total: Callable[[Iterable[int]], int]) -> list[DimType]:
        """An earlier step may have refined the head: flatten it into the sequence."""
        head = self.resolve(dims[0])
        if total is sum:
            return _parts(head) + dims[1:]
        return (list(head.factors) if isinstance(head, Product) else [head]) + dims[1:]

    def _fix_run(
        self, left: list[DimType], right: list[DimType], total: Callable[[Iterable[int]], int]
    ) -> tuple[list[DimType], list[DimType]]:
        """Fix the shortest runs of both sides that cover the same positions; give the rest."""
        i = j = 1
        while (sizes := (total(d.size for d in left[:i]), total(d.size for d in right[:j])))[0] != sizes[1]:
            i, j = (i + 1, j) if sizes[0] < sizes[1] else (i, j + 1)
        for dim in left[:i] + right[:j]:
            self.fix(dim, "two layouts of the same dimension do not align")
        return left[i:], right[j:]

    def _split_segment(self, dim: DimType, first: int) -> list[DimType] | None:
        """`dim` as two segments, the first of size `first`; None if it has no such boundary."""
        match dim:
            case Axis():
                sizes = (first, dim.size - first)
                pieces: list[DimType] = [self.fresh(n) if n > 1 else Fixed(n, ONE_UNIT) for n in sizes]
                self._bind(dim, Concat(tuple(pieces)))
                return list(pieces)
            case Fixed(size, reason):
                return [Fixed(first, reason), Fixed(size - first, reason)]
            case Product((head, *rest)):
                inner = math.prod(f.size for f in rest)
                halves = self._split_segment(head, first // inner) if first % inner == 0 else None
                return halves and [Product((half, *rest)) for half in halves]
            case _:
                return None

    def _split_factor(self, dim: DimType, outer: int) -> list[DimType] | None:
        """`dim` as two factors, the outer of size `outer`; None if it does not divide."""
        if dim.size % outer:
            return None
        match dim:
            case Axis():
                pieces = [self.fresh(outer), self.fresh(dim.size // outer)]
                self._bind(dim, Product(tuple(pieces)))
                return list(pieces)
            case Fixed(size, reason):
                return [Fixed(outer, reason), Fixed(size // outer, reason)]
            case _:
                return None


def _parts(dim: DimType) -> list[DimType]:
    return list(dim.parts) if isinstance(dim, Concat) else [dim]
