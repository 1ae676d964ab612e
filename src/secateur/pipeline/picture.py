"""What was measured as a picture in a file: curves of a scan, damage against budget, a front."""

import math
from pathlib import Path

from secateur.allocation.front import Front
from secateur.allocation.selection import Selection
from secateur.allocation.thresholds import BudgetCurve
from secateur.errors import ArgumentError, as_number
from secateur.pipeline.reporting import curve_data, front_point, threshold_data
from secateur.report.plots import by_sensitivity, front_plot, lost_label, threshold_plot
from secateur.report.schema import FrontData, ThresholdData
from secateur.report.sheet import curve_sheet, plot_sheet
from secateur.sensitivity.result import Scan
from secateur.storage.atomic import write_text

Drawn = Scan | Selection | BudgetCurve | Front


def plot(found: Drawn, path: str | Path, *, metric: str | None = None, tolerance: float | None = None) -> Path:
    """Draw what was measured, with bands of one standard error: an SVG file.

    A scan is drawn group by group, the most sensitive first. A selection is drawn as damage against budget, out of
    fold, for each candidate, the chosen one first, with its budget and the tolerance marked. A front is drawn as its
    points, with a line through those that no other beats.

    Args:
        found: a scan, what `select` chose, one of its pictures, or a front.
        path: of the file; it is replaced.
        metric: of a scan, one of those that were measured; None: that which decides. Else the name of what is lost.
        tolerance: a line at this damage; on a front, the cheapest point within it is marked. None: that of the
            selection, or no line.

    Returns:
        The path.

    Raises:
        ArgumentError: a metric that was not measured, a tolerance that is no finite number, or nothing of these.
        StoreError: the file cannot be written.
    """
    if tolerance is not None and not math.isfinite(as_number("tolerance", tolerance)):
        raise ArgumentError(f"tolerance={tolerance} must be a finite number: a line is drawn there")
    write_text(Path(path), _drawn(found, metric, tolerance))
    return Path(path)


def _drawn(found: Drawn, metric: str | None, tolerance: float | None) -> str:
    if isinstance(found, Scan):
        name = found.metric if metric is None else metric
        curves = by_sensitivity(curve_data(found.of(name)))
        return curve_sheet(curves, name, share=_is_share(name), tolerance=tolerance, how=found.after)
    name = metric or "metric"
    if isinstance(found, Selection):
        return _selection(found, name, tolerance)
    if isinstance(found, BudgetCurve):
        return _budgets(name, [("", _threshold_data(found, None, tolerance))])
    if isinstance(found, Front):
        return _front(found, name, tolerance)
    raise ArgumentError(
        f"{type(found).__name__} cannot be drawn: pass what sc.scan, sc.select or sc.front gave, or a picture "
        "of a selection"
    )


def _selection(found: Selection, metric: str, tolerance: float | None) -> str:
    tolerance = found.tolerance if tolerance is None else tolerance
    names = sorted(found.pictures, key=lambda name: name != found.name)
    chosen = {name: found.choices[name].budget for name in names if found.choices[name].index is not None}
    data = [(name, _threshold_data(found.pictures[name], chosen.get(name), tolerance)) for name in names]
    return _budgets(metric, [(f"{name}, chosen" if name == found.name else name, picture) for name, picture in data])


def _threshold_data(picture: BudgetCurve, chosen: float | None, tolerance: float | None) -> ThresholdData:
    return threshold_data(picture, chosen=chosen, of="cost", tolerance=tolerance, reason="")


def _budgets(metric: str, pictures: list[tuple[str, ThresholdData]]) -> str:
    share = _is_share(metric)
    return plot_sheet(
        f"{lost_label(metric, share=share)} against cost left, out of fold",
        "band: one standard error; dotted: sum of single damages; ring: the smallest budget within the tolerance",
        [(name, threshold_plot(data, metric, share=share)) for name, data in pictures],
    )


def _front(found: Front, metric: str, tolerance: float | None) -> str:
    share, within = _is_share(metric), None if tolerance is None else found.within(tolerance)
    data = FrontData(of="cost", points=[front_point(point, is_chosen=point is within) for point in found.points])
    return plot_sheet(
        f"{lost_label(metric, share=share)} against cost left, measured",
        "filled: not beaten in cost and damage; hollow: beaten; band: one standard error"
        + ("; ring: cheapest within the tolerance" if within is not None else ""),
        [("", front_plot(data, metric, share=share, tolerance=tolerance, linked=False))],
    )


def _is_share(metric: str) -> bool:
    return "accuracy" in metric.lower()
