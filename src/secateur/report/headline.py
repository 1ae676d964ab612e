"""The outcome in one sentence, and in a few cards."""

import re
from dataclasses import dataclass

from secateur.report.formats import amount_text, damage_text, error_text, metric_text, quantity
from secateur.report.schema import CertificateData, CostRow, QualityRow, ReportData

WORDS = {
    "MACs": ("fewer multiply-adds", "more multiply-adds"),
    "latency": ("faster", "slower"),
    "latency, fastest block": ("faster", "slower"),
    "file size": ("smaller file", "larger file"),
}
VERDICT = re.compile(r"(\d+(?:\.\d+)?)x (faster|slower)")


@dataclass(frozen=True)
class Card:
    """A number to be seen first, what it is, and the numbers behind it."""

    value: str
    label: str
    detail: str


def headline(data: ReportData) -> str:
    """What became smaller, what became faster, and what that cost."""
    gains = [text for row in data.costs if (text := _gain(row))]
    removed = ", ".join(gains) if gains else "Nothing was removed"
    return f"{removed}{_price(data)}."


def cards(data: ReportData) -> list[Card]:
    """A card for every cost, and one for the metric on the most trustworthy data."""
    found = [_cost_card(row) for row in data.costs if row.predicted is None]
    return found + [_quality_card(data, row) for row in data.quality[-1:]]


def times(ratio: float) -> str:
    """How many times as much, with more digits where they matter.

    >>> times(3.14159), times(1.234), times(42.4)
    ('3.1×', '1.23×', '42×')
    """
    digits = 2 if ratio < 1.5 else 1 if ratio < 20 else 0
    return f"{ratio:.{digits}f}×"


def change(row: CostRow) -> tuple[str, str]:
    """Factor and direction of a cost; a timing without a verdict has neither.

    >>> change(CostRow(name="MACs", unit="", before=300, after=100))
    ('3.0×', 'fewer multiply-adds')
    """
    ratio = row.ratio
    less, more = WORDS.get(row.name, (f"fewer {row.name}", f"more {row.name}"))
    if row.name == "latency":
        found = VERDICT.fullmatch(row.verdict or "")
        return (times(float(found[1])), found[2]) if found else ("no verdict", "on latency")
    if ratio is None or ratio <= 0:
        return "–", row.name
    if ratio == 1:
        return "same", row.name
    return (times(ratio), less) if ratio > 1 else (times(1 / ratio), more)


def _gain(row: CostRow) -> str:
    if row.name not in ("MACs", "latency"):
        return ""
    factor, direction = change(row)
    return f"{factor} {direction}" if factor.endswith("×") else ""


def _price(data: ReportData) -> str:
    verb = "drops" if data.higher_is_better else "rises"
    if data.certificate is not None:
        return _certified_price(data.certificate, verb, share=data.shows_points)
    measured = [row for row in data.quality if row.damage is not None]
    if not measured:
        return ""
    row = measured[-1]
    damage = damage_text(row.damage, data.shows_points) + (" points" if data.shows_points else "")
    error = error_text(row.standard_error, data.shows_points)
    return f"; damage to {data.metric} on {row.name}: {damage}, standard error {error}; nothing is certified"


def _certified_price(certificate: CertificateData, verb: str, *, share: bool) -> str:
    name = certificate.metric
    confidence = f"{100 * certificate.confidence:g}\u00a0%"
    doubt = " (asymptotic)" if certificate.guarantee == "asymptotic" else ""
    if certificate.bound is None or (certificate.tolerance is None and not certificate.certified):
        return f"; the test data give no bound on the damage to {name}"
    bound = f"with {confidence} confidence {name} {verb} by at most {amount_text(certificate.bound, share)}{doubt}"
    if certificate.certified or certificate.tolerance is None:
        return f"; {bound}"
    needed = (
        "" if certificate.needed is None else f" (about {certificate.needed} test {certificate.unit} would be needed)"
    )
    return f"; {bound}, more than the tolerance of {amount_text(certificate.tolerance, share)}{needed}"


def _cost_card(row: CostRow) -> Card:
    factor, direction = change(row)
    return Card(factor, direction, f"{quantity(row.before, row.unit)} → {quantity(row.after, row.unit)}")


def _quality_card(data: ReportData, row: QualityRow) -> Card:
    share = data.shows_points
    unit = "points of " if share else ""
    detail = f"{metric_text(row.dense, share)} → {metric_text(row.pruned, share)}"
    return Card(damage_text(row.damage, share), f"{unit}{data.metric} lost, {row.name}", detail)
