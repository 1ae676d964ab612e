"""Pictures that need nothing else: all curves of a scan in one, and the plots of the report."""

from collections.abc import Sequence

from markupsafe import Markup

from secateur.report.formats import shorten
from secateur.report.plots import lost_label, shared_range
from secateur.report.schema import CurveData
from secateur.report.svg import Frame, as_number, as_points, band, clean, dots, inside, level, line, x_axis, y_axis

COLUMNS = 4
WIDTH, HEIGHT, HEAD = 250, 190, 46
PLOT_WIDTH, PLOT_HEIGHT, PLOT_NAME = 628, 380, 26
STYLE = (
    "text{font:11px sans-serif;fill:#5a6878}.head{font-size:15px;fill:#16202b}.name{font-size:12px;fill:#16202b}"
    ".zero{stroke:#5a6878}.grid{stroke:#e6eaef}.line{fill:none;stroke:#0b7561;stroke-width:2}.band{fill:#0b756126}"
    ".dot{fill:#0b7561}.limit{stroke:#a8480f;stroke-dasharray:6 4}.limit-text{fill:#a8480f}.note{fill:#a8480f}"
    ".predicted{fill:none;stroke:#5a6878;stroke-width:1.5;stroke-dasharray:2 4}.beaten{fill:none;stroke:#5a6878}"
    ".chosen{fill:#fff;stroke:#a8480f;stroke-width:2.5}.chosen-stem{stroke:#a8480f}"
)


def curve_sheet(
    curves: Sequence[CurveData], metric: str, *, share: bool, tolerance: float | None = None, how: str = ""
) -> str:
    """An SVG file of one panel for each group, all on one scale: mean damage, and a standard error to either side.

    Args:
        curves: in the order in which they are shown.
        metric: what is lost.
        share: it is a share, shown in points.
        tolerance: a line at this damage.
        how: what was done before it was measured, in words.
    """
    low, high = shared_range(curves)
    y_range = (low, max(high, 1.2 * (tolerance or 0.0)))
    panels = [_panel(curve, y_range, share=share, tolerance=tolerance) for curve in curves]
    title = f"{lost_label(metric, share=share)}{f' after {how}' if how else ''}, by share of units removed"
    return _sheet(title, panels, columns=COLUMNS, width=WIDTH, height=HEIGHT, head=HEAD)


def plot_sheet(title: str, key: str, plots: Sequence[tuple[str, Markup]]) -> str:
    """An SVG file of plots of the report, one below the other.

    Args:
        title: above all of them.
        key: what their lines and marks stand for.
        plots: name and picture of each.
    """
    width, height, name = PLOT_WIDTH, PLOT_HEIGHT, PLOT_NAME
    panels = [
        Markup('<text class="name" x="14" y="14">{}</text><svg x="14" y="{}" width="{}" height="{}">{}</svg>').format(
            clean(shorten(text, 90)), name, width - 28, height - name - 14, plot
        )
        for text, plot in plots
    ]
    return _sheet(title, panels, columns=1, width=width, height=height, head=HEAD + 22, key=key)


def _sheet(
    title: str, panels: Sequence[Markup], *, columns: int, width: int, height: int, head: int, key: str = ""
) -> str:
    columns = max(1, min(columns, len(panels)))
    rows = -(-len(panels) // columns)
    placed = [
        Markup('<g transform="translate({},{})">{}</g>').format(
            k % columns * width, head + k // columns * height, panel
        )
        for k, panel in enumerate(panels)
    ]
    return str(
        Markup(
            '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {w} {h}" width="{w}" height="{h}" role="img">'
            "<title>{t}</title><style>{s}</style>"
            '<rect width="{w}" height="{h}" fill="#ffffff"/><text class="head" x="14" y="26">{t}</text>{k}{p}</svg>\n'
        ).format(
            w=columns * width,
            h=head + rows * height,
            t=clean(title),
            s=Markup(STYLE),
            k=Markup('<text x="14" y="46">{}</text>').format(clean(key)) if key else "",
            p=Markup("").join(placed),
        )
    )


def _panel(curve: CurveData, y_range: tuple[float, float], *, share: bool, tolerance: float | None) -> Markup:
    frame = Frame(WIDTH, HEIGHT, (0.0, 1.0), y_range, left=52, right=14, top=24, bottom=32)
    parts = [
        Markup('<text class="name" x="{}" y="14">{}</text>').format(frame.left, clean(shorten(curve.group, 30))),
        y_axis(frame, text=as_points if share else as_number, most=4),
        x_axis(frame, most=3),
        inside(
            frame,
            band(frame, curve.sparsities, curve.damage, curve.standard_error),
            line(frame, curve.sparsities, curve.damage),
        ),
        dots(frame, curve.sparsities, curve.damage, radius=2.2),
    ]
    if tolerance is not None:
        parts.append(level(frame, tolerance, ""))
    broken = sum(value is None for value in curve.damage)
    if broken:
        parts.append(
            Markup('<text class="note" x="{}" y="{}" text-anchor="end">{}</text>').format(
                WIDTH - frame.right, 14, f"{broken} infinite"
            )
        )
    return Markup("").join(parts)
