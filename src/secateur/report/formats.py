"""Numbers and names as people read them."""

import math
import re

from rich.cells import cell_len

BIG = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
SMALL = ((1e-3, "m"), (1e-6, "µ"), (1e-9, "n"))
NOT_MEASURED = "–"
UNPRINTABLE = re.compile(r"[^\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def quantity(value: float | None, unit: str) -> str:
    """A number with its unit and a decimal prefix, three digits.

    >>> quantity(1234567, ""), quantity(60396, "B"), quantity(0.00213, "s"), quantity(None, "s")
    ('1.23 M', '60.4 kB', '2.13 ms', '–')
    """
    if value is None or not math.isfinite(value):
        return NOT_MEASURED
    rounded = abs(float(f"{value:.3g}"))
    prefixes = BIG + ((1.0, ""),) + (SMALL if unit == "s" else ())
    size, letter = next((p for p in prefixes if rounded >= p[0]), (1.0, ""))
    return f"{value / size:.3g} {letter}{unit}".rstrip()


def number(value: float | None) -> str:
    """A count or a small number, three digits.

    >>> number(1234567), number(999.6e3), number(0.00042)
    ('1.23 M', '1 M', '0.00042')
    """
    return quantity(value, "")


def percent(value: float | None, digits: int = 0) -> str:
    """A share.

    >>> percent(0.5), percent(0.98754, 2)
    ('50 %', '98.75 %')
    """
    return NOT_MEASURED if value is None else f"{100 * value:.{digits}f} %"


def metric_text(value: float | None, share: bool) -> str:
    """A metric: per cent if it is a `share`, else four digits.

    >>> metric_text(0.9875, True), metric_text(1.23456, False)
    ('98.75 %', '1.235')
    """
    if value is None:
        return NOT_MEASURED
    return percent(value, 2) if share else f"{value:.4g}"


def damage_text(value: float | None, share: bool) -> str:
    """A damage with its sign, in percentage points for a `share`; positive = worse.

    >>> damage_text(0.0123, True), damage_text(-0.0000001, True), damage_text(0.5, False)
    ('+1.23', '0.00', '+0.5')
    """
    if value is None:
        return NOT_MEASURED
    text = f"{100 * value:+.2f}" if share else f"{value:+.3g}"
    return text[1:] if float(text) == 0 else text


def bound_text(value: float | None, share: bool) -> str:
    """An upper bound on a damage, as `damage_text`, but rounded up: it must not claim more than was tested.

    >>> bound_text(0.01012, True), bound_text(-0.01018, True), bound_text(0.0061, True)
    ('+1.02', '-1.01', '+0.61')
    """
    return damage_text(None if value is None else _rounded_up(value), share)


def error_text(value: float | None, share: bool) -> str:
    """A standard error, in the unit of `damage_text`.

    >>> error_text(0.0025, True), error_text(0.0025, False)
    ('0.25', '0.0025')
    """
    if value is None:
        return NOT_MEASURED
    return f"{100 * value:.2f}" if share else f"{value:.3g}"


def amount_text(value: float, share: bool) -> str:
    """A damage in a sentence, rounded up: a bound must not claim more than was tested.

    >>> amount_text(0.0081, True), amount_text(0.00612, True), amount_text(0.00812, False)
    ('0.81 points', '0.62 points', '0.0082')
    """
    rounded = _rounded_up(value)
    return f"{100 * rounded:.2f} points" if share else f"{rounded:g}"


def _rounded_up(value: float) -> float:
    """To the next ten-thousandth, with a guard against rounding noise: 100 * 0.0081 is 0.8099999999999999."""
    return math.ceil(round(1e4 * value, 6)) / 1e4


def p_text(value: float | None) -> str:
    """A p-value.

    >>> p_text(0.0312), p_text(1e-9)
    ('= 0.031', '< 0.0001')
    """
    if value is None:
        return "not known"
    return f"= {value:.2g}" if value >= 1e-4 else "< 0.0001"


def shorten(text: str, width: int) -> str:
    """`text` in at most `width` terminal columns, its middle left out where it is too long.

    Characters that are not printable become "?": a name must not steer a terminal.

    >>> shorten("encoder.layers.11.attention.output", 16)
    'encoder.….output'
    """
    text = UNPRINTABLE.sub("?", text)
    if cell_len(text) <= width:
        return text
    tail = (width - 1) // 2
    return _first(text, width - 1 - tail) + "…" + _first(text[::-1], tail)[::-1]


def _first(text: str, width: int) -> str:
    while cell_len(text) > width:
        text = text[: min(width, len(text) - 1)]
    return text
