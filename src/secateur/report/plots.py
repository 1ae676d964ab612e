"""The report's pictures, each from one part of its data."""

import itertools
from collections.abc import Iterable, Sequence

from markupsafe import Markup

from secateur.report.formats import damage_text, error_text, percent, shorten
from secateur.report.schema import OURS, ControlRow, CurveData, FrontData, FrontPoint, ThresholdData
from secateur.report.svg import (
    Frame,
    as_number,
    as_points,
    band,
    canvas,
    dots,
    inside,
    is_number,
    level,
    line,
    mark,
    range_of,
    whisker,
    x_axis,
    y_axis,
)

ABOVE_TOLERANCE = 3.0
ROW = 34


def threshold_plot(data: ThresholdData, metric: str, *, share: bool) -> Markup:
    """Out-of-fold damage against budget, with the tolerance, the prediction and the chosen budget.

    Where there is a tolerance, the picture ends a little above it: curves leave it through the top.
    """
    frame = Frame(600, 330, _budget_range(data.budgets), _damage_range(data), top=34, bottom=46)
    parts = [
        y_axis(frame, lost_label(metric, share=share), text=as_points if share else as_number),
        x_axis(frame, f"{data.of} left", most=6),
        inside(
            frame,
            band(frame, data.budgets, data.damage, data.standard_error),
            line(frame, data.budgets, data.predicted, "predicted"),
            line(frame, data.budgets, data.damage),
            dots(frame, data.budgets, data.damage, radius=3),
        ),
    ]
    if data.tolerance is not None:
        parts.append(level(frame, data.tolerance, "tolerance"))
    if data.chosen is not None:
        parts.append(_chosen(frame, data.chosen, damage_at(data.budgets, data.damage, data.chosen)))
    words = describe(data.budgets, data.damage, share=share)
    return canvas(frame, f"{metric} lost against {data.of} left, cross-validated", words, *parts)


def front_plot(
    data: FrontData, metric: str, *, share: bool, tolerance: float | None = None, linked: bool = True
) -> Markup:
    """Measured points of cost against damage, each a link to its own numbers, with a line through the best."""
    points = [p for p in data.points if p.damage is not None]
    values = [v for p in points if p.damage is not None for v in (p.damage, p.damage + (p.standard_error or 0.0))]
    frame = Frame(
        600,
        330,
        _budget_range([p.share for p in points]),
        range_of([*values, 1.2 * (tolerance or 0.0)]),
        top=34,
        bottom=46,
    )
    best = sorted((p for p in points if not p.is_dominated), key=lambda p: -p.share)
    shares, damages, errors = [p.share for p in best], [p.damage for p in best], [p.standard_error for p in best]
    parts = [
        y_axis(frame, lost_label(metric, share=share), text=as_points if share else as_number),
        x_axis(frame, f"{data.of} left", most=6),
        inside(frame, band(frame, shares, damages, errors), line(frame, shares, damages)),
    ]
    if tolerance is not None:
        parts.append(level(frame, tolerance, "tolerance"))
    parts += [_link(frame, k, p, share=share) if linked else _point(frame, p) for k, p in enumerate(data.points)]
    words = describe(shares, damages, share=share)
    return canvas(frame, f"{metric} lost against {data.of} left, measured", words, *parts)


def _link(frame: Frame, number: int, point: FrontPoint, *, share: bool) -> Markup:
    if point.damage is None:
        return Markup("")
    return Markup('<a href="#point-{}" aria-label="{}"><circle class="reach" cx="{}" cy="{}" r="12"/>{}</a>').format(
        number,
        f"{percent(point.share)} left, {damage_text(point.damage, share)} lost",
        *(frame.x(point.share), frame.y(point.damage)),
        _point(frame, point),
    )


def _point(frame: Frame, point: FrontPoint) -> Markup:
    kind = "chosen" if point.is_chosen else "beaten" if point.is_dominated else "dot"
    return dots(frame, [point.share], [point.damage], kind=kind, radius=5)


def curve_plot(data: CurveData, y_range: tuple[float, float], *, share: bool) -> Markup:
    """One group's damage against sparsity."""
    frame = Frame(240, 150, (0.0, 1.0), y_range, left=38, right=12, top=10, bottom=26)
    parts = [
        y_axis(frame, text=as_points if share else as_number, most=4),
        x_axis(frame, most=2),
        inside(
            frame,
            band(frame, data.sparsities, data.damage, data.standard_error),
            line(frame, data.sparsities, data.damage),
        ),
        dots(frame, data.sparsities, data.damage, radius=2.2),
    ]
    if data.chosen_sparsity is not None:
        parts.append(
            _chosen(frame, data.chosen_sparsity, damage_at(data.sparsities, data.damage, data.chosen_sparsity))
        )
    words = describe(data.sparsities, data.damage, share=share)
    return canvas(frame, f"damage against sparsity of {data.group}", words, *parts)


def control_plot(rows: Sequence[ControlRow], metric: str, *, share: bool) -> Markup:
    """Damage of each way of pruning, with one standard error to either side; the least damage first."""
    ordered = sorted(rows, key=lambda r: float("inf") if r.damage is None else r.damage)
    edges = [(r.damage or 0.0) + s * (r.standard_error or 0.0) for r in rows for s in (-1, 1)]
    frame = Frame(600, 58 + ROW * len(rows), range_of(edges), (0, 1), left=156, right=104, top=6, bottom=48)
    parts = [x_axis(frame, lost_label(metric, share=share), text=as_points if share else as_number, grid=True)]
    parts += [_control(frame, row, 6 + ROW * (k + 0.5), share=share) for k, row in enumerate(ordered)]
    words = "; ".join(f"{r.name}: {damage_text(r.damage, share)}" for r in ordered)
    return canvas(frame, "damage of secateur and of the controls at equal MACs", words, *parts)


def damage_at(x: Sequence[float], damage: Sequence[float | None], place: float) -> float | None:
    """Damage at `place`, on the straight line between its two neighbours; None beside a missing point.

    >>> damage_at([0.0, 0.5, 1.0], [0.0, 2.0, None], 0.25)
    1.0
    """
    for a, d in zip(x, damage, strict=True):
        if abs(a - place) < 1e-9:
            return d
    pairs = sorted(zip(x, damage, strict=True), key=lambda p: p[0])
    for (a, d), (b, e) in itertools.pairwise(pairs):
        if a < place < b:
            return None if d is None or e is None else d + (e - d) * (place - a) / (b - a)
    return None


def shared_range(curves: Sequence[CurveData]) -> tuple[float, float]:
    """One damage scale for all curves, their bands included."""
    return range_of(v for c in curves for v in _edges(c.damage, c.standard_error))


def by_sensitivity(curves: Sequence[CurveData]) -> list[CurveData]:
    """The curves in order of their mean damage, the largest first.

    Where a network broke down it counts as the worst damage of any curve: missing is never better.
    """
    worst = max((d for c in curves for d in c.damage if d is not None), default=0.0)
    return sorted(curves, key=lambda curve: mean_damage(curve, worst), reverse=True)


def mean_damage(curve: CurveData, worst: float) -> float:
    """Mean height of the curve over its sparsities, `worst` standing in for missing points.

    >>> mean_damage(CurveData(group="a", granularity="channel", sparsities=[0, 0.5, 1], damage=[0, 1, None],
    ...     standard_error=[0, 0, 0]), worst=1.0)
    0.75
    """
    points = [(s, worst if d is None else d) for s, d in zip(curve.sparsities, curve.damage, strict=True)]
    if not points:
        return 0.0
    span = points[-1][0] - points[0][0]
    area = sum((b - a) * (d + e) / 2 for (a, d), (b, e) in itertools.pairwise(points))
    return area / span if span else points[0][1]


def lost_label(metric: str, *, share: bool) -> str:
    """Name of an axis of damage.

    >>> lost_label("accuracy", share=True)
    'accuracy lost (points)'
    """
    return shorten(metric, 32) + (" lost (points)" if share else " lost")


def describe(x: Sequence[float], damage: Sequence[float | None], *, share: bool) -> str:
    """All points in words, for those who cannot see the picture."""
    return "; ".join(f"{percent(a)}: {damage_text(d, share)}" for a, d in zip(x, damage, strict=True))


def is_cut_off(data: ThresholdData) -> bool:
    """Whether some of the damage lies outside the picture."""
    low, high = _damage_range(data)
    return any(v is not None and not low <= v <= high for v in [*data.damage, *data.predicted])


def _control(frame: Frame, row: ControlRow, y: float, *, share: bool) -> Markup:
    kind = "ours" if row.name == OURS else "theirs"
    place = Markup('<text class="{}" x="{}" y="{}" text-anchor="{}">{}</text>')
    name = place.format(f"name {kind}-name", frame.left - 14, y + 4.5, "end", shorten(row.name, 20))
    if row.damage is None or not is_number(row.damage):
        return name + place.format("tick", frame.left + 8, y + 4.5, "start", "not measured")
    error = row.standard_error
    bars = Markup("") if error is None else whisker(frame, row.damage - error, row.damage + error, y=y)
    disc = Markup('<circle class="{}" cx="{}" cy="{}" r="6"/>').format(kind, frame.x(row.damage), y)
    value = f"{damage_text(row.damage, share)} ± {error_text(error, share)}"
    return name + bars + disc + place.format("value", frame.width, y + 4.5, "end", value)


def _chosen(frame: Frame, x: float, y: float | None) -> Markup:
    low, high = frame.y_range
    return mark(frame, x, y if y is not None and low <= y <= high else None)


def _damage_range(data: ThresholdData) -> tuple[float, float]:
    edges = list(_edges(data.damage, data.standard_error))
    if not data.tolerance:
        return range_of(edges)
    top = ABOVE_TOLERANCE * data.tolerance
    return range_of([*(min(max(v, -data.tolerance), top) for v in edges), 1.5 * data.tolerance], air=0.0)


def _edges(damage: Sequence[float | None], errors: Sequence[float | None]) -> Iterable[float]:
    for value, error in zip(damage, errors, strict=True):
        if value is not None:
            yield from (value - (error or 0.0), value + (error or 0.0))


def _budget_range(budgets: Sequence[float]) -> tuple[float, float]:
    """From the whole network on the left to the smallest budget on the right."""
    low, high = min(budgets, default=0.0), max(budgets, default=1.0)
    air = 0.02 * (high - low)
    return (high + air, low - air) if high > low else (high + 0.05, high - 0.05)
