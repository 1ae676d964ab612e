"""Measured curves as a picture in a file."""

from pathlib import Path

from secateur.pipeline.reporting import curve_data
from secateur.report.plots import by_sensitivity
from secateur.report.sheet import curve_sheet
from secateur.sensitivity.result import Scan
from secateur.storage.atomic import write_text


def plot(found: Scan, path: str | Path, *, metric: str | None = None, tolerance: float | None = None) -> Path:
    """Draw the curves of a scan, the most sensitive group first, with a band of one standard error: an SVG file.

    Args:
        found: the scan.
        path: of the file; it is replaced.
        metric: one of those that were measured; None: that which decides.
        tolerance: a line at this damage.

    Returns:
        The path.

    Raises:
        ArgumentError: a metric that was not measured.
        StoreError: the file cannot be written.
    """
    name = found.metric if metric is None else metric
    curves = by_sensitivity(curve_data(found.of(name)))
    write_text(
        Path(path), curve_sheet(curves, name, share="accuracy" in name.lower(), tolerance=tolerance, how=found.after)
    )
    return Path(path)
