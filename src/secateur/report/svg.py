"""Plots as small SVG strings. Points that are not finite are left out, never drawn at zero."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

Values = Sequence[float | None]


@dataclass(frozen=True)
class Frame:
    """A plotting area: data ranges on a canvas, with margins for labels.

    >>> Frame(100, 50, (0, 1), (0, 2), left=10, right=0, top=0, bottom=0).x(0.5)
    55.0
    """

    width: float
    height: float
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    left: float = 46
    right: float = 10
    top: float = 10
    bottom: float = 30

    def x(self, value: float) -> float:
        """Horizontal position on the canvas."""
        low, high = self.x_range
        return round(self.left + (value - low) / (high - low) * (self.width - self.left - self.right), 2)

    def y(self, value: float) -> float:
        """Vertical position on the canvas; larger values are higher up."""
        low, high = self.y_range
        share = (value - low) / (high - low)
        return round(self.height - self.bottom - share * (self.height - self.top - self.bottom), 2)


def is_point(*values: float | None) -> bool:
    """Whether all values are there and finite."""
    return all(v is not None and math.isfinite(v) for v in values)


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers that cover a range.

    >>> ticks(0, 1)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    raw = (high - low) / most
    power = 10 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 10) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def line_with_band(frame: Frame, x: Values, y: Values, error: Values) -> Markup:
    """A line through the points, a band of one `error` up and down, and a dot a point.

    What lies outside the frame is clipped: a line that leaves it is seen to leave.
    """
    points = [(a, b, e or 0.0) for a, b, e in zip(x, y, error, strict=True) if a is not None and b is not None]
    points = [p for p in points if is_point(*p)]
    if not points:
        return Markup("")
    upper = [f"{frame.x(a)},{frame.y(b + e)}" for a, b, e in points]
    lower = [f"{frame.x(a)},{frame.y(b - e)}" for a, b, e in reversed(points)]
    middle = [f"{frame.x(a)},{frame.y(b)}" for a, b, _ in points]
    dots = "".join(f'<circle class="dot" cx="{frame.x(a)}" cy="{frame.y(b)}" r="2"/>' for a, b, _ in points)
    return clipped(
        frame,
        Markup(
            f'<polygon class="band" points="{" ".join(upper + lower)}"/>'
            f'<polyline class="line" points="{" ".join(middle)}"/>{dots}'
        ),
    )


def clipped(frame: Frame, content: Markup) -> Markup:
    """`content`, seen through the plotting area only (with room for a dot on its edge)."""
    x, y = frame.left - 3, frame.top - 3
    width, height = frame.width - frame.left - frame.right + 6, frame.height - frame.top - frame.bottom + 6
    box = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" viewBox="{x:g} {y:g} {width:g} {height:g}"'
    return Markup(f'<svg class="clip" {box}>') + content + Markup("</svg>")


def axes(frame: Frame, x_label: str, y_label: str, *, small: bool = False) -> Markup:
    """Grid lines, tick labels and the names of the axes; x is a share."""
    parts = []
    for value in ticks(*frame.y_range, most=3 if small else 5):
        y = frame.y(value)
        parts.append(f'<line class="grid" x1="{frame.left}" x2="{frame.width - frame.right}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text class="tick" x="{frame.left - 5}" y="{y + 3}" text-anchor="end">{value:g}</text>')
    if y_label:
        parts.append(f'<text class="label" x="{frame.left}" y="{frame.top - 10}">{escape(y_label)}</text>')
    return Markup("".join(parts)) + x_axis(frame, x_label, small=small)


def x_axis(frame: Frame, label: str, *, percent: bool = True, small: bool = False) -> Markup:
    """Tick labels along the bottom, and the name of the axis."""
    parts = []
    for value in ticks(min(frame.x_range), max(frame.x_range), 2 if small else 6):
        text = f"{value:.0%}" if percent else f"{value:g}"
        place = f'x="{frame.x(value)}" y="{frame.height - frame.bottom + 14}"'
        parts.append(f'<text class="tick" {place} text-anchor="middle">{text}</text>')
    middle = (frame.left + frame.width - frame.right) / 2
    parts.append(f'<text class="label" x="{middle}" y="{frame.height - 2}" text-anchor="middle">{escape(label)}</text>')
    return Markup("".join(parts))


def canvas(frame: Frame, title: str, *content: Markup) -> Markup:
    """An SVG element that screen readers can name."""
    body = Markup("").join(content)
    head = f'<svg viewBox="0 0 {frame.width:g} {frame.height:g}" role="img" xmlns="http://www.w3.org/2000/svg">'
    return Markup(head) + Markup("<title>{}</title>").format(title) + body + Markup("</svg>")


def level(frame: Frame, value: float, text: str) -> Markup:
    """A horizontal line with a name: the tolerance, say."""
    y = frame.y(value)
    right = frame.width - frame.right
    return Markup(
        f'<line class="limit" x1="{frame.left}" x2="{right}" y1="{y}" y2="{y}"/>'
        f'<text class="limit-text" x="{right - 2}" y="{y - 4}" text-anchor="end">{escape(text)}</text>'
    )


def mark(frame: Frame, x: float, y: float | None) -> Markup:
    """A ring around the chosen point; a line where the point has no height."""
    if y is None or not math.isfinite(y):
        return Markup(f'<line class="chosen" x1="{frame.x(x)}" x2="{frame.x(x)}" y1="{frame.top}" y2="{frame.y(0)}"/>')
    return Markup(f'<circle class="chosen" cx="{frame.x(x)}" cy="{frame.y(y)}" r="5"/>')


def range_of(values: Values, *more: float | None) -> tuple[float, float]:
    """A range that holds 0 and all finite values, with some air above.

    >>> range_of([0.0, None, 1.0])
    (0.0, 1.08)
    """
    found = [v for v in [*values, *more] if v is not None and math.isfinite(v)]
    low, high = min([0.0, *found]), max([0.0, *found])
    return (low, high + 0.08 * (high - low)) if high > low else (0.0, 1.0)
