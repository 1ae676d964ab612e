"""The report's pictures, each from one part of its data."""

import itertools
from collections.abc import Sequence

from markupsafe import Markup

from secateur.report.schema import ControlRow, CurveData, ThresholdData
from secateur.report.svg import Frame, axes, canvas, is_point, level, line_with_band, mark, range_of, x_axis


def threshold_plot(data: ThresholdData, metric: str) -> Markup:
    """Out-of-fold damage against budget, with the tolerance and the chosen budget."""
    high = 1.5 * data.tolerance if data.tolerance else None
    shown = [d for d in data.damage if d is not None and (high is None or d <= 4 * high)]
    frame = Frame(680, 300, _reversed(data.budgets), range_of(shown, high), top=24, bottom=36)
    parts = [
        axes(frame, "multiply-adds left", f"{metric} lost on held-out folds"),
        line_with_band(frame, data.budgets, data.damage, data.standard_error),
    ]
    if data.tolerance is not None:
        parts.append(level(frame, data.tolerance, "tolerance"))
    if data.chosen in data.budgets:
        parts.append(mark(frame, data.chosen, data.damage[data.budgets.index(data.chosen)]))
    return canvas(frame, f"{metric} lost against budget, cross-validated", *parts)


def curve_plot(data: CurveData, y_range: tuple[float, float]) -> Markup:
    """One group's damage against sparsity."""
    frame = Frame(220, 130, (0.0, 1.0), y_range, left=34, right=16, top=8, bottom=30)
    parts = [
        axes(frame, "removed", "", small=True),
        line_with_band(frame, data.sparsities, data.damage, data.standard_error),
    ]
    if data.chosen_sparsity is not None:
        parts.append(mark(frame, data.chosen_sparsity, interpolate(data, data.chosen_sparsity)))
    return canvas(frame, f"damage against sparsity of {data.group}", *parts)


def control_plot(rows: Sequence[ControlRow], metric: str) -> Markup:
    """Damage of each way of pruning, with one standard error to either side."""
    found = [r for r in rows if is_point(r.damage, r.standard_error)]
    edges = [(r.damage or 0) + s * (r.standard_error or 0) for r in found for s in (-1, 1)]
    low, high = range_of(edges)
    frame = Frame(680, 46 + 30 * len(rows), (low, high if high > low else low + 1), (0, 1), left=150, bottom=34)
    parts = [x_axis(frame, f"{metric} lost on the validation data", percent=False)]
    for number, row in enumerate(rows):
        y = 18 + 30 * number
        parts.append(Markup('<text class="name" x="140" y="{}" text-anchor="end">{}</text>').format(y + 4, row.name))
        if is_point(row.damage, row.standard_error):
            assert row.damage is not None
            assert row.standard_error is not None
            x1, x2 = frame.x(row.damage - row.standard_error), frame.x(row.damage + row.standard_error)
            kind = "ours" if row.name == "secateur" else "theirs"
            parts.append(Markup(f'<line class="whisker" x1="{x1}" x2="{x2}" y1="{y}" y2="{y}"/>'))
            parts.append(Markup(f'<circle class="{kind}" cx="{frame.x(row.damage)}" cy="{y}" r="5"/>'))
    return canvas(frame, "damage of secateur and of the controls at equal multiply-adds", *parts)


def interpolate(data: CurveData, sparsity: float) -> float | None:
    """Damage between the two nearest levels."""
    points = [(s, d) for s, d in zip(data.sparsities, data.damage, strict=True) if d is not None]
    for (s0, d0), (s1, d1) in itertools.pairwise(points):
        if s0 <= sparsity <= s1 and s1 > s0:
            return d0 + (d1 - d0) * (sparsity - s0) / (s1 - s0)
    return None


def shared_range(curves: Sequence[CurveData]) -> tuple[float, float]:
    """One damage scale for all curves."""
    return range_of([d for curve in curves for d in curve.damage])


def _reversed(budgets: Sequence[float]) -> tuple[float, float]:
    low, high = min(budgets), max(budgets)
    return (high, low) if high > low else (high, high - 0.1)
