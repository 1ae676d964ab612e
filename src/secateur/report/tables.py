"""Tables for the terminal that fit 80 columns."""

import io
from collections.abc import Sequence

from rich.console import Console, RenderableType
from rich.table import Table

from secateur.report.html import number, percent, points, quantity
from secateur.report.schema import CurveData, ReportData

WIDTH = 80


def summary_table(data: ReportData) -> Table:
    """Costs and quality, before and after."""
    table = Table(title=shorten(data.title, 70), title_justify="left")
    for name in ("", "before", "after", "change"):
        table.add_column(name, justify="left" if not name else "right", overflow="fold")
    for row in data.costs:
        change = row.verdict or f"{row.ratio:.2f}x smaller"
        table.add_row(row.name, quantity(row.before, row.unit), quantity(row.after, row.unit), change)
    for quality in data.quality:
        change = f"{points(quality.damage)} lost, s.e. {number(quality.standard_error)}"
        table.add_row(shorten(quality.name, 26), f"{quality.dense:.4f}", f"{quality.pruned:.4f}", change)
    return table


def control_table(data: ReportData) -> Table:
    """Secateur beside its controls."""
    table = Table(title="at equal multiply-adds", title_justify="left")
    for name in ("rule", "MACs left", f"{shorten(data.metric, 20)} lost", "s.e."):
        table.add_column(name, justify="left" if name == "rule" else "right")
    for row in data.controls:
        table.add_row(row.name, percent(row.macs), points(row.damage), number(row.standard_error))
    return table


def curves_table(curves: Sequence[CurveData], metric: str) -> Table:
    """Damage of each group at a few sparsities."""
    table = Table(title=f"{shorten(metric, 20)} lost when units of one group go", title_justify="left")
    table.add_column("group")
    wanted = (0.1, 0.3, 0.5, 0.7, 0.9)
    for sparsity in wanted:
        table.add_column(f"{sparsity:.0%}", justify="right")
    for curve in curves:
        table.add_row(shorten(curve.group, 28), *(points(_at(curve, s)) for s in wanted))
    return table


def to_text(renderable: RenderableType, width: int = WIDTH) -> str:
    """What a terminal of `width` columns would show, without colours."""
    console = Console(width=width, file=io.StringIO(), color_system=None, legacy_windows=False)
    console.print(renderable)
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def shorten(text: str, width: int) -> str:
    """`text` with its middle left out where it is too long.

    >>> shorten("encoder.layers.11.attention.output", 16)
    'encoder.…output'
    """
    if len(text) <= width:
        return text
    half = (width - 1) // 2
    return f"{text[: width - 1 - half]}…{text[len(text) - half + (width % 2 == 0) :]}"


def _at(curve: CurveData, sparsity: float) -> float | None:
    nearest = min(range(len(curve.sparsities)), key=lambda k: abs(curve.sparsities[k] - sparsity))
    return curve.damage[nearest]
