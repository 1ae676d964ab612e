"""Tables for the terminal that fit 80 columns."""

import io
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from secateur.report.formats import damage_text, error_text, metric_text, percent, quantity, shorten
from secateur.report.headline import change, headline
from secateur.report.schema import CurveData, ReportData

__all__ = ["control_table", "curves_table", "outcome", "shorten", "summary_table", "to_text"]

WIDTH = 80
LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)
NEAR = 0.05


def outcome(data: ReportData) -> str:
    """All that a run says in the end: tables, the certificate with what it assumes, and warnings."""
    parts = [to_text(summary_table(data))]
    if len(data.controls) > 1:
        parts.append(to_text(control_table(data)))
    if data.certificate is not None:
        parts.append(to_text(Text(data.certificate.sentence)).rstrip())
        parts.append(to_text(Text(f"Assumed: {data.certificate.assumptions}")).rstrip())
    return "\n".join([*parts, *(to_text(Text(f"note: {warning}")).rstrip() for warning in data.warnings)])


def summary_table(data: ReportData) -> RenderableType:
    """The outcome in a sentence, costs and quality before and after."""
    return Group(Text(shorten(headline(data), 400)), _cost_table(data), _quality_table(data))


def control_table(data: ReportData) -> Table:
    """Secateur beside its controls."""
    table = _table("at equal MACs", ("rule", "MACs left", _lost(data.metric, data.shows_points), "s.e."))
    for row in data.controls:
        damage = damage_text(row.damage, data.shows_points)
        _add(table, row.name, percent(row.macs, 1), damage, error_text(row.standard_error, data.shows_points))
    return table


def curves_table(curves: Sequence[CurveData], metric: str = "metric", *, share: bool | None = None) -> Table:
    """Damage of each group at a few sparsities, each at the nearest measured level at most 5 % away.

    Args:
        curves: one row each, in this order.
        metric: its name.
        share: show percentage points; None = if the name says accuracy.
    """
    in_points = "accuracy" in metric.lower() if share is None else share
    title = f"{_lost(metric, in_points)} when units of one group go"
    table = _table(title, ("group", *(f"{level:.0%}" for level in LEVELS)))
    for curve in curves:
        _add(table, curve.group, *(damage_text(_near(curve, level), in_points) for level in LEVELS))
    return table


def to_text(renderable: RenderableType, width: int = WIDTH) -> str:
    """What a terminal of `width` columns would show, without colours; no text is read as markup."""
    file = io.StringIO()
    console = Console(
        width=width, file=file, color_system=None, legacy_windows=False, markup=False, emoji=False, highlight=False
    )
    console.print(renderable)
    return file.getvalue()


def _cost_table(data: ReportData) -> Table:
    table = _table(data.title, ("cost", "before", "after", "change"))
    for row in data.costs:
        before, after = quantity(row.before, row.unit), quantity(row.after, row.unit)
        _add(table, row.name, before, after, " ".join(change(row)))
    return table


def _quality_table(data: ReportData) -> Table:
    share = data.shows_points
    table = _table("", (data.metric, "dense", "pruned", "lost (points)" if share else "lost", "s.e."))
    for row in data.quality:
        dense, pruned = metric_text(row.dense, share), metric_text(row.pruned, share)
        _add(table, row.name, dense, pruned, damage_text(row.damage, share), error_text(row.standard_error, share))
    return table


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=Text(shorten(title, WIDTH)) if title else None, title_justify="left", box=SIMPLE_HEAD)
    for number, name in enumerate(columns):
        table.add_column(Text(shorten(name, 30)), justify="right" if number else "left", overflow="fold")
    return table


def _add(table: Table, *cells: str) -> None:
    table.add_row(*(Text(shorten(cell, 30)) for cell in cells))


def _lost(metric: str, share: bool) -> str:
    return shorten(metric, 16) + (" lost (points)" if share else " lost")


def _near(curve: CurveData, sparsity: float) -> float | None:
    found = [(abs(s - sparsity), d) for s, d in zip(curve.sparsities, curve.damage, strict=True)]
    distance, damage = min(found, key=lambda pair: pair[0], default=(1.0, None))
    return damage if distance <= NEAR + 1e-9 else None
