"""One self-contained HTML file: no scripts, no network, every name escaped."""

from collections import Counter

from jinja2 import Environment, PackageLoader, StrictUndefined

from secateur.report.headline import headline
from secateur.report.plots import control_plot, curve_plot, shared_range, threshold_plot
from secateur.report.schema import CurveData, ReportData

MOST_CURVES = 60


def render_html(data: ReportData) -> str:
    """The report as one HTML document.

    >>> "Content-Security-Policy" in Environment(loader=PackageLoader("secateur.report", ".")).loader.get_source(
    ...     Environment(), "report.html.jinja")[0]
    True
    """
    environment = Environment(
        loader=PackageLoader("secateur.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, quantity=quantity, points=points, percent=percent)
    curves = sorted(data.curves, key=_sensitivity, reverse=True)
    y_range = shared_range(curves)
    return environment.get_template("report.html.jinja").render(
        data=data,
        headline=headline(data),
        threshold_plot=threshold_plot(data.thresholds, data.metric) if data.thresholds else None,
        curve_plots=[(curve, curve_plot(curve, y_range)) for curve in curves[:MOST_CURVES]],
        curves_left_out=max(0, len(curves) - MOST_CURVES),
        control_plot=control_plot(data.controls, data.metric) if len(data.controls) > 1 else None,
        reasons=Counter(row.reason for row in data.left_alone).most_common(),
    )


def number(value: float | None) -> str:
    """A number for people: thousands with a unit letter, small ones with few digits.

    >>> number(1234567), number(0.00042), number(None)
    ('1.23 M', '0.00042', '–')
    """
    if value is None:
        return "–"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g} {letter}"
    return f"{value:.3g}"


def quantity(value: float | None, unit: str) -> str:
    """A number with its unit; seconds as milli- or microseconds where they are short.

    >>> quantity(0.00302, "s"), quantity(4.2e-05, "s"), quantity(1500, "B"), quantity(12, "")
    ('3.02 ms', '42 µs', '1.5 kB', '12')
    """
    if value is not None and unit == "s" and value < 1:
        return f"{1e3 * value:.3g} ms" if value >= 1e-3 else f"{1e6 * value:.3g} µs"
    text = number(value)
    return f"{text}{unit}" if text[-1].isalpha() else f"{text} {unit}".rstrip()


def points(value: float | None) -> str:
    """A damage with its sign.

    >>> points(0.0123), points(None)
    ('+0.0123', '–')
    """
    return "–" if value is None else f"{value:+.4f}"


def percent(value: float | None) -> str:
    """A share.

    >>> percent(0.5)
    '50 %'
    """
    return "–" if value is None else f"{100 * value:.0f} %"


def _sensitivity(curve: CurveData) -> float:
    known = [d for d in curve.damage if d is not None]
    return sum(known) / len(known) if known else 0.0
