"""Curves out of measured points."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from secateur.measures.metrics import Metric
from secateur.sensitivity.measure import Point, loss_damage, metric_damage, pair
from secateur.sensitivity.probe import Probe
from secateur.sensitivity.slices import ON_WORST, Labels, Sliced, sliced, stacked
from secateur.sensitivity.values import unseen
from secateur.types import Curve, Curves, Floats, Group

Levels = Mapping[str, Sequence[Point]]
"""Group name -> its points, from the widest to the narrowest; those that are not measured are passed over."""


def curves_of(prober: Probe, levels: Levels, damage: Callable[[Point], Floats]) -> Curves:
    """The curve of each group, where `damage` is what is lost at a point."""
    groups = {group.name: group for group in prober.groups}
    return {name: _curve(prober, groups[name], _measured(own), damage) for name, own in levels.items()}


def metric_curves(prober: Probe, levels: Levels, metric: Metric) -> Curves:
    """The curves of one metric."""
    return curves_of(prober, levels, lambda point: metric_damage(prober, point, metric))


def slice_curves(prober: Probe, levels: Levels, metric: Metric, labels: Labels) -> tuple[Curves, dict[str, Sliced]]:
    """The curves of one metric on the slice that is worst at each point, and a table of all slices for each group."""
    found = {id(point): _by_slice(prober, point, metric, labels) for own in levels.values() for point in _measured(own)}
    names = np.unique(labels)
    tables = {name: stacked(names, [found[id(point)][0] for point in _measured(own)]) for name, own in levels.items()}
    return curves_of(prober, levels, lambda point: found[id(point)][1]), tables


def others_of(
    prober: Probe, levels: Levels, labels: Labels | None
) -> tuple[dict[str, Curves], dict[str, dict[str, Sliced]]]:
    """Curves of all that is measured beside the metric, by name; and tables of slices by metric and group."""
    curves = {metric.name: metric_curves(prober, levels, metric) for metric in prober.others}
    tables = {}
    if labels is not None:
        for metric in (prober.metric, *prober.others):
            curves[metric.name + ON_WORST], tables[metric.name] = slice_curves(prober, levels, metric, labels)
    return curves, tables


def _by_slice(prober: Probe, point: Point, metric: Metric, labels: Labels) -> tuple[Sliced, Floats]:
    """Damage by slices, and the shares of the worst; NaN where a sample is not measured."""
    seen = ~unseen(point.values)
    before, after = pair(prober, point, metric)
    table, shares = sliced(metric, before[seen], after[seen], labels[seen])
    found = np.full(len(seen), np.nan)
    found[seen] = shares
    return table, found


def _measured(points: Sequence[Point]) -> list[Point]:
    return [point for point in points if point.seen]


def _curve(prober: Probe, group: Group, points: Sequence[Point], damage: Callable[[Point], Floats]) -> Curve:
    widths = (group.width, *(point.width for point in points))

    def rows(values: Iterable[Floats]) -> Floats:
        return np.stack([np.zeros(len(prober.baseline.loss)), *values])

    return Curve(
        group=group.name,
        widths=widths,
        sparsities=tuple(1 - kept / group.width for kept in widths),
        damage=rows(map(damage, points)),
        loss_damage=rows(loss_damage(prober, point) for point in points),
    )
