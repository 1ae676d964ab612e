"""Small pure functions that make SVG. Values that are not finite are skipped, never drawn at zero."""

import itertools
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from secateur.errors import ArgumentError

Values = Sequence[float | None]
TickText = Callable[[float], str]
NOT_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class Frame:
    """A plotting area: ranges of the data on a canvas, with margins for labels.

    Positions are linear in the values. A range may run backwards.

    Raises:
        ArgumentError: a range is empty or not finite.

    >>> Frame(100, 50, (0, 1), (0, 2), left=10, right=0, top=0, bottom=0).x(0.5)
    55.0
    """

    width: float
    height: float
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    left: float = 52
    right: float = 12
    top: float = 12
    bottom: float = 40

    def __post_init__(self) -> None:
        for name, (low, high) in (("x_range", self.x_range), ("y_range", self.y_range)):
            if low == high or not math.isfinite(high - low):
                raise ArgumentError(f"{name}=({low}, {high}) spans nothing that can be drawn; use range_of")

    @property
    def inner_width(self) -> float:
        """Width without the margins."""
        return self.width - self.left - self.right

    @property
    def inner_height(self) -> float:
        """Height without the margins."""
        return self.height - self.top - self.bottom

    def x(self, value: float) -> float:
        """Horizontal position on the canvas."""
        low, high = self.x_range
        return round(self.left + (value - low) / (high - low) * self.inner_width, 2)

    def y(self, value: float) -> float:
        """Vertical position on the canvas; larger values are higher up."""
        low, high = self.y_range
        return round(self.height - self.bottom - (value - low) / (high - low) * self.inner_height, 2)


def is_number(value: float | None) -> bool:
    """Whether the value is there and finite."""
    return value is not None and math.isfinite(value)


def range_of(values: Iterable[float | None], air: float = 0.08) -> tuple[float, float]:
    """A range that holds 0 and all finite values, with some air on the sides away from 0.

    >>> range_of([0.0, None, 1.0])
    (0.0, 1.08)
    """
    found = [0.0, *(v for v in values if v is not None and math.isfinite(v))]
    low, high = min(found), max(found)
    if high - low < 1e-300:
        return (0.0, 1.0)
    extra = air * (high - low)
    return (low - extra if low < 0 else 0.0, high + extra if high > 0 else 0.0)


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers in a range, about `most` steps of them.

    >>> ticks(0, 1)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{k * step:.12g}") for k in range(first, last + 1)]


def as_percent(value: float) -> str:
    """A share on an axis.

    >>> as_percent(0.25)
    '25%'
    """
    return f"{100 * value:g}%"


def as_points(value: float) -> str:
    """A share's change on an axis, in percentage points.

    >>> as_points(0.025)
    '2.5'
    """
    return f"{100 * value:g}"


def as_number(value: float) -> str:
    """A plain number on an axis.

    >>> as_number(0.5)
    '0.5'
    """
    return f"{value:g}"


def y_axis(frame: Frame, label: str = "", *, text: TickText = as_number, most: int = 5) -> Markup:
    """Horizontal grid lines with their values, and the axis' name above them."""
    parts = [Markup("")]
    for value in ticks(min(frame.y_range), max(frame.y_range), most):
        y, right = frame.y(value), frame.width - frame.right
        kind = "zero" if value == 0 else "grid"
        parts.append(Markup('<line class="{}" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(kind, frame.left, right, y, y))
        parts.append(
            Markup('<text class="tick" x="{}" y="{}" text-anchor="end">{}</text>').format(
                frame.left - 7, y + 4, text(value)
            )
        )
    if label:
        parts.append(Markup('<text class="label" x="0" y="{}">{}</text>').format(frame.top - 14, clean(label)))
    return Markup("").join(parts)


def x_axis(frame: Frame, label: str = "", *, text: TickText = as_percent, most: int = 5, grid: bool = False) -> Markup:
    """Values along the bottom, and the axis' name below them."""
    parts = [Markup("")]
    base = frame.height - frame.bottom
    for value in ticks(min(frame.x_range), max(frame.x_range), most):
        x = frame.x(value)
        if grid:
            kind = "zero" if value == 0 else "grid"
            parts.append(
                Markup('<line class="{}" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(kind, x, x, frame.top, base)
            )
        parts.append(
            Markup('<text class="tick" x="{}" y="{}" text-anchor="middle">{}</text>').format(x, base + 17, text(value))
        )
    if label:
        parts.append(
            Markup('<text class="label" x="{}" y="{}" text-anchor="middle">{}</text>').format(
                frame.left + frame.inner_width / 2, frame.height - 5, clean(label)
            )
        )
    return Markup("").join(parts)


def line(frame: Frame, x: Values, y: Values, kind: str = "line") -> Markup:
    """A line through the points, broken where one is missing."""
    return Markup("").join(
        Markup('<polyline class="{}" points="{}"/>').format(kind, _points((frame.x(a), frame.y(b)) for a, b in run))
        for run in _runs(x, y)
        if len(run) > 1
    )


def dots(frame: Frame, x: Values, y: Values, *, kind: str = "dot", radius: float = 2.5) -> Markup:
    """A disc for each point."""
    return Markup("").join(
        Markup('<circle class="{}" cx="{}" cy="{}" r="{}"/>').format(kind, frame.x(a), frame.y(b), radius)
        for run in _runs(x, y)
        for a, b in run
    )


def band(frame: Frame, x: Values, y: Values, error: Values) -> Markup:
    """The area one `error` above and below the points, broken where one is missing."""
    parts = []
    for run in _runs(x, y, error):
        upper = [(frame.x(a), frame.y(b + e)) for a, b, e in run]
        lower = [(frame.x(a), frame.y(b - e)) for a, b, e in reversed(run)]
        parts.append(Markup('<polygon class="band" points="{}"/>').format(_points(upper + lower)))
    return Markup("").join(parts)


def level(frame: Frame, value: float, text: str) -> Markup:
    """A dashed horizontal line with a name: the tolerance, say."""
    y, right = frame.y(value), frame.width - frame.right
    return Markup(
        '<line class="limit" x1="{}" x2="{}" y1="{}" y2="{}"/><text class="limit-text" x="{}" y="{}">{}</text>'
    ).format(frame.left, right, y, y, frame.left + 6, y - 6, clean(text))


def mark(frame: Frame, x: float, y: float | None) -> Markup:
    """A ring around the chosen point, on a line down to the axis; the line alone where the height is not known."""
    base, place = frame.height - frame.bottom, frame.x(x)
    if y is None or not math.isfinite(y):
        return Markup('<line class="chosen-stem" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(
            place, place, frame.top, base
        )
    return Markup(
        '<line class="chosen-stem" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/>'
        '<circle class="chosen" cx="{0}" cy="{1}" r="5"/>'
    ).format(place, frame.y(y), base)


def whisker(frame: Frame, low: float, high: float, *, y: float) -> Markup:
    """A horizontal error bar with caps, at height `y` of the canvas."""
    x1, x2 = frame.x(low), frame.x(high)
    return Markup('<path class="whisker" d="M{0} {2}H{1}M{0} {3}v8M{1} {3}v8"/>').format(x1, x2, y, y - 4)


def bar(before: float, after: float, most: float) -> Markup:
    """A bar of two lengths, `after` on top of `before`, where `most` fills the width; hidden from screen readers.

    >>> "56.25" in bar(32, 18, 32)
    True
    """
    scale = 100 / most if most > 0 else 0.0
    return Markup(
        '<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="bar-before" width="{}" height="10"/><rect class="bar-after" width="{}" height="10"/></svg>'
    ).format(round(before * scale, 2), round(after * scale, 2))


def inside(frame: Frame, *content: Markup) -> Markup:
    """The content, clipped to the plotting area."""
    box = (frame.left, frame.top, frame.inner_width, frame.inner_height)
    return Markup('<svg x="{0}" y="{1}" width="{2}" height="{3}" viewBox="{0} {1} {2} {3}">{4}</svg>').format(
        *(f"{v:g}" for v in box), Markup("").join(content)
    )


def canvas(frame: Frame, title: str, description: str, *content: Markup) -> Markup:
    """An SVG element that screen readers can name and describe."""
    return Markup('<svg class="plot" viewBox="0 0 {} {}" role="img"><title>{}</title><desc>{}</desc>{}</svg>').format(
        f"{frame.width:g}", f"{frame.height:g}", clean(title), clean(description), Markup("").join(content)
    )


def clean(text: str) -> str:
    r"""The text without characters that XML cannot hold; escaping is left to `Markup`.

    >>> clean("a\x00b")
    'a\ufffdb'
    """
    return NOT_XML.sub("\ufffd", text)


def _runs(*columns: Values) -> list[list[tuple[float, ...]]]:
    """Rows in which every column is a number, split where one is not."""
    rows = zip(*columns, strict=True)
    grouped = itertools.groupby(rows, key=lambda row: all(is_number(v) for v in row))
    return [[tuple(float(v) for v in row if v is not None) for row in run] for whole, run in grouped if whole]


def _points(pairs: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{x},{y}" for x, y in pairs)
