"""The report: escaped, self-contained, and drawn where the numbers say."""

import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings, strategies as st
from pydantic import ValidationError

sys.path.insert(0, str(Path(__file__).parent))
from example import EVIL, example

from secateur.report.html import render_html
from secateur.report.plots import control_plot, curve_plot, interpolate, shared_range, threshold_plot
from secateur.report.schema import CostRow, ReportData
from secateur.report.svg import Frame, line_with_band, ticks
from secateur.report.tables import control_table, curves_table, shorten, summary_table, to_text


def test_the_schema_is_strict_and_round_trips() -> None:
    data = example()
    assert ReportData.model_validate_json(data.model_dump_json()) == data
    with pytest.raises(ValidationError):
        ReportData.model_validate({**data.model_dump(), "surprise": 1})


def test_names_are_escaped_and_nothing_is_loaded() -> None:
    page = render_html(example())
    assert EVIL not in page and "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<script" not in page
    assert "default-src 'none'" in page
    assert not re.findall(r'(?:src|href)\s*=\s*"', page)
    assert not re.findall(r"url\(|@import", page)


@pytest.mark.parametrize(
    ("change", "heading"),
    [
        ({"certificate": None}, "Certified"),
        ({"thresholds": None}, "Budget and damage"),
        ({"rounds": []}, "<h2>Rounds"),
        ({"controls": []}, "<h2>Controls"),
        ({"curves": []}, "<h2>Sensitivity"),
        ({"left_alone": []}, "left alone"),
        ({"rewrites": []}, "Attributes rewritten"),
    ],
)
def test_each_section_appears_when_its_data_does(change: dict, heading: str) -> None:
    assert heading in render_html(example())
    assert heading not in render_html(example(**change))


def test_an_uncertified_result_says_so() -> None:
    certificate = example().certificate.model_copy(update={"certified": False})
    assert "Not certified" in render_html(example(certificate=certificate))


def circles(svg: str) -> list[tuple[float, float]]:
    root = ElementTree.fromstring(svg)
    found = [e for e in root.iter() if e.tag.endswith("circle") and e.get("class") == "dot"]
    return [(float(e.get("cx")), float(e.get("cy"))) for e in found]


def test_points_are_drawn_where_a_linear_scale_puts_them_and_missing_ones_are_not() -> None:
    frame = Frame(200, 100, (0.0, 1.0), (0.0, 2.0), left=20, right=0, top=0, bottom=10)
    drawn = line_with_band(frame, [0.0, 0.5, 0.75, 1.0], [0.0, 1.0, None, float("nan")], [0.1, 0.1, None, 0.1])
    assert circles(f'<svg xmlns="http://www.w3.org/2000/svg">{drawn}</svg>') == [(20.0, 90.0), (110.0, 45.0)]
    polygon = re.search(r'polygon class="band" points="([^"]*)"', drawn).group(1)
    assert polygon.split()[0] == "20.0,85.5"


def test_plots_are_well_formed() -> None:
    data = example()
    for svg in (
        threshold_plot(data.thresholds, "accuracy"),
        curve_plot(data.curves[0], shared_range(data.curves)),
        control_plot(data.controls, "accuracy"),
    ):
        ElementTree.fromstring(svg)


def test_the_budget_axis_runs_downwards() -> None:
    (x1, _), (x2, _) = circles(threshold_plot(example().thresholds, "accuracy"))
    assert x1 < x2


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_round_and_inside(low: float, span: float) -> None:
    if span < 1e-9 * abs(low):
        return
    found = ticks(low, low + span)
    tolerance = 1e-6 * span + 1e-9
    assert len(found) <= 12 and all(low - tolerance <= t <= low + span + tolerance for t in found)


def test_interpolation() -> None:
    curve = example().curves[0]
    assert interpolate(curve, 0.25) == pytest.approx(0.05)
    assert interpolate(curve, 0.95) is None


@settings(max_examples=60, deadline=None)
@given(st.text(min_size=1, max_size=90), st.floats(0, 1e13), st.floats(1e-9, 1e13))
def test_tables_fit_eighty_columns(name: str, before: float, after: float) -> None:
    name = "".join(c for c in name if c.isprintable() and ord(c) < 0x250) or "x"
    row = CostRow(name="MACs", unit="s", before=before, after=after)
    curve = example().curves[0].model_copy(update={"group": name})
    data = example(title=name, costs=[row], metric=name, curves=[curve])
    for table in (summary_table(data), control_table(data), curves_table(data.curves, name)):
        assert max(len(line) for line in to_text(table).splitlines()) <= 80


@given(st.text(max_size=60), st.integers(5, 40))
def test_shortened_names_fit_and_keep_both_ends(text: str, width: int) -> None:
    short = shorten(text, width)
    assert len(short) <= width
    assert short == text or (short[0] == text[0] and short[-1] == text[-1])
