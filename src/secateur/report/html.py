"""One self-contained HTML file: no scripts, no network, every name escaped."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from secateur.report import formats
from secateur.report.formats import number, quantity
from secateur.report.headline import cards, change, headline
from secateur.report.plots import (
    by_sensitivity,
    control_plot,
    curve_plot,
    front_plot,
    is_cut_off,
    shared_range,
    threshold_plot,
)
from secateur.report.schema import OURS, CurveData, LeftRow, ReportData
from secateur.report.svg import bar

__all__ = ["number", "quantity", "render_html"]

MOST_CURVES = 60
MOST_WIDTHS = 60


@dataclass(frozen=True)
class Reason:
    """Why things were left alone: in how many places, and how many positions where that is known."""

    text: str
    places: int
    positions: int


def render_html(data: ReportData) -> str:
    """The report as one HTML document that loads nothing and runs nothing.

    Args:
        data: the content of `report.json`.
    """
    share = data.shows_points
    return (
        _environment(share)
        .get_template("report.html.jinja")
        .render(
            data=data,
            headline=headline(data),
            cards=cards(data),
            change=change,
            bar=bar,
            lost_unit=" (points)" if share else "",
            threshold_plot=threshold_plot(data.thresholds, data.metric, share=share) if data.thresholds else None,
            is_cut_off=data.thresholds is not None and is_cut_off(data.thresholds),
            front_plot=_front_plot(data, share=share),
            curve_plots=curve_plots(data.curves, share=share),
            most_curves=MOST_CURVES,
            most_widths=MOST_WIDTHS,
            widest=max((row.before for row in data.widths), default=0),
            control_plot=control_plot(data.controls, data.metric, share=share) if has_controls(data) else None,
            reasons=reasons(data.left_alone),
            slowest=max((seconds for _, seconds in data.timings), default=0.0),
        )
    )


def curve_plots(curves: Sequence[CurveData], *, share: bool) -> list[tuple[CurveData, Markup]]:
    """All curves with their pictures, the most sensitive group first, on one scale."""
    ordered = by_sensitivity(curves)
    y_range = shared_range(ordered)
    return [(curve, curve_plot(curve, y_range, share=share)) for curve in ordered]


def reasons(rows: Iterable[LeftRow]) -> list[Reason]:
    """What was left alone, by cause; the cause with most places first.

    >>> reasons([LeftRow(where="a", reason="r", size=3), LeftRow(where="b", reason="r")])
    [Reason(text='r', places=2, positions=3)]
    """
    found: dict[str, list[LeftRow]] = {}
    for row in rows:
        found.setdefault(row.reason, []).append(row)
    counted = [Reason(text, len(same), sum(row.size or 0 for row in same)) for text, same in found.items()]
    return sorted(counted, key=lambda reason: (-reason.places, reason.text))


def missing(curve: CurveData) -> str:
    """The sparsities at which the curve has no value.

    >>> missing(CurveData(group="a", granularity="channel", sparsities=[0, 0.5], damage=[0, None],
    ...     standard_error=[0, None]))
    '50 %'
    """
    found = (s for s, d in zip(curve.sparsities, curve.damage, strict=True) if d is None)
    return ", ".join(formats.percent(s) for s in found)


def _front_plot(data: ReportData, *, share: bool) -> Markup | None:
    """The picture of the points to choose from; None where there are none."""
    if data.front is None or not any(p.damage is not None and not p.is_dominated for p in data.front.points):
        return None
    return front_plot(data.front, data.metric, share=share)


def has_controls(data: ReportData) -> bool:
    """Whether there is anything to compare with."""
    return any(row.name != OURS for row in data.controls)


def _environment(share: bool) -> Environment:
    environment = Environment(
        loader=PackageLoader("secateur.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=number,
        quantity=quantity,
        percent=formats.percent,
        p_value=formats.p_text,
        metric=lambda value: formats.metric_text(value, share),
        bound=lambda value: formats.bound_text(value, share).replace("-", "−"),
        damage=lambda value: formats.damage_text(value, share).replace("-", "−"),
        missing=missing,
        error=lambda value: formats.error_text(value, share),
    )
    return environment
