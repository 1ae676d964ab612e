"""Latency at any widths: every operator timed by itself over a grid of widths, and added up.

A width between two of the grid counts as the wider one, and what is wider never counts as faster, so that the table
gives no time that was not measured. Source: latency tables by layer (HALP, Shen et al. 2021, arXiv:2110.10811), here
of the operators of any program.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import linprog, nnls

from secateur.errors import ArgumentError
from secateur.graph.groups import Structure
from secateur.graph.polynomial import Polynomial, polynomial
from secateur.measures.operators import Call, Operator, operators
from secateur.types import Floats, Separable

Widths = Mapping[str, int]
TimeCalls = Callable[[Sequence[Call]], Sequence[float | None]]
"""Seconds of each call; None for one that does not run."""

MOST_POINTS = 128
MOST_GROUPS = 3


@dataclass(frozen=True, eq=False)
class Table:
    """Seconds of an operator over a grid of widths.

    Attributes:
        groups: one for each dimension of `seconds`.
        grid: the widths of each group that were timed, ascending.
        seconds: rising along every dimension.

    >>> table = Table(("a",), ((2, 4),), np.array([0.1, 0.3]))
    >>> table({"a": 2}), table({"a": 3})
    (0.1, 0.3)
    """

    groups: tuple[str, ...]
    grid: tuple[tuple[int, ...], ...]
    seconds: Floats

    def __call__(self, widths: Widths, /) -> float:
        """Seconds at the next wider point of the grid."""
        place = [self._row(k, [widths.get(name, self.grid[k][-1])]) for k, name in enumerate(self.groups)]
        return float(self.seconds[tuple(int(row[0]) for row in place)])

    def parts(self, levels: Mapping[str, Sequence[int]], /) -> list[tuple[tuple[str, ...], Floats]]:
        """The same over the levels of the groups."""
        rows = [self._row(k, levels.get(name, [self.grid[k][-1]])) for k, name in enumerate(self.groups)]
        asked = self.seconds[np.ix_(*rows)]
        left = tuple(k for k, name in enumerate(self.groups) if name not in levels)
        return [(tuple(name for name in self.groups if name in levels), asked.squeeze(left))]

    def _row(self, k: int, widths: Sequence[int]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        return np.minimum(np.searchsorted(self.grid[k], widths), len(self.grid[k]) - 1)


@dataclass(frozen=True, eq=False)
class LatencyTable:
    """Seconds of a call of a model at any widths.

    Attributes:
        operators: what each takes by itself.
        scale: seconds of the whole model for one of its operators by themselves.
        overhead_s: seconds that do not depend on widths.
        error: largest deviation from whole models that were timed, relative to them; NaN if none were.
        left_out: operators that do not run by themselves; their time is part of the overhead.
    """

    operators: tuple[Separable, ...]
    scale: float = 1.0
    overhead_s: float = 0.0
    error: float = math.nan
    left_out: tuple[str, ...] = ()

    def __call__(self, widths: Widths, /) -> float:
        """Seconds when each named group keeps so many units in a row, and every other group all."""
        return self.overhead_s + self.scale * sum(operator(widths) for operator in self.operators)

    def parts(self, levels: Mapping[str, Sequence[int]], /) -> list[tuple[tuple[str, ...], Floats]]:
        """Tables over the levels of a few groups each, which add up to the seconds."""
        total: dict[tuple[str, ...], Floats] = {(): np.asarray(self.overhead_s)}
        for operator in self.operators:
            for scope, table in operator.parts(levels):
                order = sorted(range(len(scope)), key=lambda k, scope=scope: scope[k])  # type: ignore[misc]
                names = tuple(scope[k] for k in order)
                turned = self.scale * np.asarray(table).transpose(order)
                total[names] = total[names] + turned if names in total else turned
        return list(total.items())

    def __str__(self) -> str:
        """What it predicts of the dense model, and how well it does.

        >>> print(LatencyTable((lambda widths: 0.002,), error=0.03))
        2 ms with all units, from 1 operators; at most 3.0% from whole models that were timed
        """
        held = "" if math.isnan(self.error) else f"; at most {self.error:.1%} from whole models that were timed"
        without = f"; not timed by themselves: {', '.join(self.left_out)}" if self.left_out else ""
        return f"{1e3 * self({}):.4g} ms with all units, from {len(self.operators)} operators{held}{without}"

    def slower(self, factor: float) -> "LatencyTable":
        """The table with all that it predicts times `factor`."""
        return replace(self, scale=self.scale * factor, overhead_s=self.overhead_s * factor)

    def fitted(self, timed: Sequence[tuple[Widths, float]]) -> "LatencyTable":
        """The table whose sum agrees best with whole models, by least relative squares.

        With the widths of one model alone, what its operators lack is overhead.

        Args:
            timed: widths and seconds of whole models, the dense one first.

        Raises:
            ArgumentError: no models, or a time that is not above 0.

        >>> table = LatencyTable((Table(("a",), ((1, 2),), np.array([1.0, 2.0])),))
        >>> fitted = table.fitted([({"a": 2}, 5.0), ({"a": 1}, 3.0)])
        >>> round(fitted.scale, 6), round(fitted.overhead_s, 6), round(fitted.error, 6)
        (2.0, 1.0, 0.0)
        """
        if not timed or not all(seconds > 0 for _, seconds in timed):
            raise ArgumentError(f"{len(timed)} timed models; needed one or more, each with seconds above 0")
        plain = replace(self, scale=1.0, overhead_s=0.0)
        sums = np.array([plain(widths) for widths, _ in timed])
        seconds = np.array([taken for _, taken in timed])
        if len(timed) == 1:
            scale = min(1.0, seconds[0] / sums[0]) if sums[0] > 0 else 1.0
            overhead = seconds[0] - scale * sums[0]
        else:
            (scale, overhead), _ = nnls(np.stack([sums / seconds, 1 / seconds], axis=1), np.ones(len(timed)))
            if scale == 0:
                # No narrower model was faster: then the one timed first has to do.
                return replace(self.fitted(timed[:1]), error=float(np.abs(overhead / seconds - 1).max()))
        error = float(np.abs((overhead + scale * sums) / seconds - 1).max())
        return replace(self, scale=float(scale), overhead_s=float(overhead), error=error)


def build_table(found: Structure, grid: Mapping[str, Sequence[int]], time_calls: TimeCalls) -> LatencyTable:
    """Time every operator of a typed program over a grid of widths.

    Operators that up to three groups share get a table; of what more groups share (dense concatenations) a price
    for their elements and their multiply-adds, so that the sum is at or above all that was timed.

    Args:
        found: from `graph.groups.structure`.
        grid: group -> widths to be timed at, besides its whole width; a group that is not named keeps all.
        time_calls: seconds of calls; equal calls are asked for once.
    """
    full = {group.name: group.width for group in found.units}
    ascending = {name: tuple(sorted({*widths, full[name]})) for name, widths in grid.items()}
    every: list[tuple[Operator, list[dict[str, int]], list[str]]] = []
    calls: dict[str, Call] = {}
    for operator in operators(found):
        points = _points(operator, ascending)
        asked = [operator.at(point) for point in points]
        calls.update({call.key: call for call in asked})
        every.append((operator, points, [call.key for call in asked]))
    seconds = dict(zip(calls, time_calls(list(calls.values())), strict=True))
    done: list[Separable] = []
    left_out = []
    for operator, points, keys in every:
        times = [seconds[key] for key in keys]
        if times[-1] is None:
            left_out.append(operator.node.name)
        else:
            done.append(_cost(operator, points, times, ascending, found))
    return LatencyTable(tuple(done), left_out=tuple(left_out))


def _points(operator: Operator, grid: Mapping[str, tuple[int, ...]]) -> list[dict[str, int]]:
    """Widths at which an operator is timed, the widest last."""
    names = [name for name in operator.scope if name in grid]
    if len(names) <= MOST_GROUPS:
        axes = _axes(names, grid)
        points: list[dict[str, int]] = [{}]
        for name, axis in zip(names, axes, strict=True):
            points = [{**point, name: width} for point in points for width in axis]
        return points
    most = max(len(grid[name]) for name in names)
    return [{n: grid[n][round(k * (len(grid[n]) - 1) / max(most - 1, 1))] for n in names} for k in range(most)]


def _axes(names: Sequence[str], grid: Mapping[str, tuple[int, ...]]) -> list[tuple[int, ...]]:
    """The grid of each group, thinned so that there are not too many points; the widest and the narrowest stay."""
    most = max(2, math.floor(MOST_POINTS ** (1 / max(len(names), 1))))
    return [thinned(grid[name], most) for name in names]


def thinned(values: Sequence[int], most: int) -> tuple[int, ...]:
    """At most so many of the values, evenly spread, the first and the last among them.

    >>> thinned([1, 2, 3, 4, 5], 3)
    (1, 3, 5)
    """
    if len(values) <= most:
        return tuple(values)
    return tuple(values[round(k * (len(values) - 1) / (most - 1))] for k in range(most))


def _cost(
    operator: Operator,
    points: Sequence[Widths],
    times: Sequence[float | None],
    grid: Mapping[str, tuple[int, ...]],
    found: Structure,
) -> Separable:
    names = tuple(name for name in operator.scope if name in grid)
    if len(names) > MOST_GROUPS:
        return _line(operator, points, times, found)
    axes = _axes(names, grid)
    seconds = _rising(np.array([math.nan if t is None else t for t in times]).reshape([len(a) for a in axes]))
    for branch in operator.branches:
        # Without its branch an operator does not run.
        names, axes = (*names, branch), [*axes, (0, 1)]
        seconds = np.stack([np.zeros_like(seconds), seconds], axis=-1)
    return Table(names, tuple(axes), seconds)


def _rising(seconds: Floats) -> Floats:
    """Times made to rise with every width; what did not run takes as long as the fastest wider point."""
    wider = seconds
    for axis in range(seconds.ndim):
        wider = np.flip(np.fmin.accumulate(np.flip(wider, axis), axis), axis)
    found = np.where(np.isnan(seconds), wider, seconds)
    for axis in range(seconds.ndim):
        found = np.maximum.accumulate(found, axis)
    return np.asarray(found)


def _line(operator: Operator, points: Sequence[Widths], times: Sequence[float | None], found: Structure) -> Polynomial:
    """The least sum of a constant, elements of operands and multiply-adds, each at a price, that is below no time."""
    full = {group.name: group.width for group in found.units}
    features = [
        Polynomial({(): 1.0}, full),
        polynomial([(1.0, dims) for dims in operator.tensors], found.axis_groups, full),
        polynomial([(float(often), dims) for often, dims in operator.macs], found.axis_groups, full),
    ]
    ran = [([f(point) for f in features], t) for point, t in zip(points, times, strict=True) if t is not None]
    sizes, seconds = np.array([row for row, _ in ran]), np.array([t for _, t in ran])
    unit = np.maximum(sizes.max(axis=0), 1.0)
    prices = linprog((sizes / unit).sum(axis=0), A_ub=-sizes / unit, b_ub=-seconds / seconds.max()).x / unit
    terms: dict[tuple[str, ...], float] = defaultdict(float)
    for feature, price in zip(features, prices * seconds.max(), strict=True):
        for names, coefficient in feature.terms.items():
            terms[names] += float(price) * coefficient
    branches = {tuple(sorted((*names, *operator.branches))): value for names, value in terms.items()}
    return Polynomial(branches, full)
