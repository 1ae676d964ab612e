"""Costs as sums of products of widths: what a solver can take apart."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from secateur.graph.axes import Axis, Concat, Dims, DimType, Fixed, Product
from secateur.types import Floats

Monomial = tuple[str, ...]
"""Names of groups in ascending order, one for each time that its width is a factor."""


@dataclass(frozen=True, eq=False)
class Polynomial:
    """A sum of products of widths.

    Attributes:
        terms: names of the factors -> coefficient.
        full: width of every group that is not mentioned in a call.

    >>> cost = Polynomial({("a", "b"): 2.0, ("b",): 1.0, (): 5.0}, {"a": 3, "b": 4})
    >>> cost({"a": 1})
    17.0
    """

    terms: Mapping[Monomial, float]
    full: Mapping[str, int]

    def __call__(self, widths: Mapping[str, int]) -> float:
        """The cost at `widths`."""
        now = {**self.full, **widths}
        total = 0.0
        for names, coefficient in self.terms.items():
            product = coefficient
            for name in names:
                product *= now[name]
            total += product
        return total

    def parts(self, levels: Mapping[str, Sequence[int]]) -> list[tuple[tuple[str, ...], Floats]]:
        """The same cost as tables over the levels of a few groups each, which add up to it.

        Args:
            levels: group -> the widths to choose from; groups that are not mentioned keep all.

        >>> cost = Polynomial({("a", "b"): 2.0, ("b",): 1.0}, {"a": 3, "b": 4})
        >>> [(scope, table.tolist()) for scope, table in cost.parts({"b": [4, 2]})]
        [(('b',), [28.0, 14.0])]
        """
        tables: dict[tuple[str, ...], Floats] = {}
        arrays = {name: np.asarray(widths, dtype=np.float64) for name, widths in levels.items()}
        for names, coefficient in self.terms.items():
            powers = Counter(names)
            scope = tuple(name for name in powers if name in levels)
            fixed = np.prod([float(self.full[n]) ** p for n, p in powers.items() if n not in levels])
            table = np.asarray(coefficient * fixed)
            for name in scope:
                table = table[..., None] * arrays[name] ** powers[name]
            tables[scope] = tables[scope] + table if scope in tables else table
        return list(tables.items())


def polynomial(terms: Iterable[tuple[float, Dims]], group_of: Mapping[int, str], full: Mapping[str, int]) -> Polynomial:
    """The sum of coefficient x product of the sizes of dimensions, as a polynomial in the widths of groups.

    Args:
        terms: coefficients and resolved dimensions.
        group_of: axis id -> its group; other axes do not change.
        full: width of every group.
    """
    total: dict[Monomial, float] = defaultdict(float)
    for coefficient, dims in terms:
        for names, value in _expanded(Product(dims), group_of).items():
            total[names] += coefficient * value
    return Polynomial(dict(total), full)


def _expanded(dim: DimType, group_of: Mapping[int, str]) -> dict[Monomial, int]:
    match dim:
        case Axis(id_, size):
            return {(group_of[id_],): 1} if id_ in group_of else {(): size}
        case Fixed(size):
            return {(): size}
        case Concat(parts):
            added: Counter[Monomial] = Counter()
            for part in parts:
                added.update(_expanded(part, group_of))
            return dict(added)
        case Product(factors):
            product: dict[Monomial, int] = {(): 1}
            for factor in factors:
                product = _times(product, _expanded(factor, group_of))
            return product


def _times(a: Mapping[Monomial, int], b: Mapping[Monomial, int]) -> dict[Monomial, int]:
    found: Counter[Monomial] = Counter()
    for first, x in a.items():
        for second, y in b.items():
            found[tuple(sorted(first + second))] += x * y
    return dict(found)
