import math
import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest
from hypothesis import given, strategies as st

from secateur.errors import ArgumentError
from secateur.report.svg import (
    Frame,
    band,
    bar,
    canvas,
    dots,
    inside,
    level,
    line,
    mark,
    range_of,
    ticks,
    whisker,
    x_axis,
    y_axis,
)

FRAME = Frame(400, 300, (0.0, 2.0), (-1.0, 3.0), left=50, right=30, top=20, bottom=40)
FINITE = st.floats(-1e6, 1e6)
MAYBE = st.one_of(st.none(), st.just(math.nan), st.just(math.inf), st.floats(-1.0, 3.0))


def parse(*parts):
    return ET.fromstring(str(canvas(FRAME, "t", "d", *parts)))


def pairs(element):
    return [tuple(float(v) for v in pair.split(",")) for pair in element.attrib["points"].split()]


def by_hand(x, y):
    """400 wide with margins 50 and 30 leaves 320 for a range of 2; 300 high leaves 240 for a range of 4."""
    return 50 + 160 * x, 260 - 60 * (y + 1)


@given(st.lists(st.tuples(st.floats(0, 2), st.floats(-1, 3)), min_size=2, max_size=8))
def test_points_lie_on_the_linear_scale(points):
    xs, ys = zip(*points, strict=True)
    root = parse(line(FRAME, xs, ys), dots(FRAME, xs, ys))
    wanted = [by_hand(x, y) for x, y in points]
    for found in (
        pairs(root.find("polyline")),
        [(float(c.get("cx")), float(c.get("cy"))) for c in root.iter("circle")],
    ):
        assert [v for p in found for v in p] == pytest.approx([v for p in wanted for v in p], abs=0.01)


def test_a_reversed_range_runs_the_other_way():
    frame = Frame(100, 100, (1.0, 0.0), (0.0, 1.0), left=0, right=0, top=0, bottom=0)
    assert (frame.x(1.0), frame.x(0.25), frame.x(0.0)) == (0.0, 75.0, 100.0)


def test_the_band_lies_one_error_above_and_below():
    root = parse(band(FRAME, [0.0, 1.0], [1.0, 2.0], [0.5, 0.25]))
    wanted = [by_hand(0, 1.5), by_hand(1, 2.25), by_hand(1, 1.75), by_hand(0, 0.5)]
    assert pairs(root.find("polygon")) == wanted


@given(st.lists(MAYBE, max_size=8))
def test_points_that_are_not_finite_are_skipped_and_break_the_line(ys):
    xs = [2 * k / 8 for k in range(len(ys))]
    root = parse(line(FRAME, xs, ys), dots(FRAME, xs, ys))
    whole = [y is not None and math.isfinite(y) for y in ys]
    assert len(root.findall("circle")) == sum(whole)
    drawn = [p for polyline in root.findall("polyline") for p in pairwise(pairs(polyline))]
    assert len(drawn) == sum(a and b for a, b in pairwise(whole))
    wanted = [by_hand(x, y) for x, y, ok in zip(xs, ys, whole, strict=True) if ok]
    found = [(float(c.get("cx")), float(c.get("cy"))) for c in root.findall("circle")]
    assert [v for p in found for v in p] == pytest.approx([v for p in wanted for v in p], abs=0.01)


def test_a_missing_error_leaves_a_gap_in_the_band_but_not_in_the_line():
    xs, ys, errors = [0.0, 0.5, 1.0, 1.5, 2.0], [1.0] * 5, [0.1, 0.1, None, math.nan, 0.1]
    root = parse(band(FRAME, xs, ys, errors), line(FRAME, xs, ys))
    assert [len(pairs(p)) for p in root.findall("polygon")] == [4, 2]
    assert [len(pairs(p)) for p in root.findall("polyline")] == [5]


def test_the_mark_is_a_ring_at_its_point_and_a_line_alone_without_a_height():
    ring = parse(mark(FRAME, 1.0, 2.0)).find("circle")
    assert (float(ring.get("cx")), float(ring.get("cy"))) == by_hand(1, 2)
    for missing in (None, math.nan, math.inf):
        root = parse(mark(FRAME, 1.0, missing))
        assert root.find("circle") is None
        assert float(root.find("line").get("x1")) == by_hand(1, 0)[0]


def test_the_level_lies_at_its_value():
    root = parse(level(FRAME, 2.5, "tolerance"))
    assert {float(root.find("line").get(k)) for k in ("y1", "y2")} == {by_hand(0, 2.5)[1]}
    assert root.find("text").text == "tolerance"


def test_the_whisker_spans_its_error():
    assert whisker(FRAME, 0.5, 1.5, y=33).count("130.0") == 2
    assert whisker(FRAME, 0.5, 1.5, y=33).count("290.0") == 2


def test_axes_label_their_ticks_where_the_scale_puts_them():
    root = parse(y_axis(FRAME, "damage", text=str), x_axis(FRAME, "share", text=str, most=4))
    texts = {t.text: t for t in root.iter("text") if t.get("class") == "tick" and t.get("text-anchor") == "end"}
    assert list(texts) == ["-1.0", "0.0", "1.0", "2.0", "3.0"]
    for text, element in texts.items():
        assert float(element.get("y")) == by_hand(0, float(text))[1] + 4
    below = {t.text: float(t.get("x")) for t in root.iter("text") if t.get("text-anchor") == "middle"}
    assert below["0.5"] == by_hand(0.5, 0)[0]
    assert {"damage", "share"} <= {t.text for t in root.iter("text")}


def test_clipping_keeps_the_coordinates():
    box = parse(inside(FRAME, dots(FRAME, [1.0], [1.0]))).find("svg")
    assert box.get("viewBox") == "50 20 320 240"
    assert [box.get(k) for k in ("x", "y", "width", "height")] == ["50", "20", "320", "240"]


@given(st.text(max_size=40))
def test_any_name_gives_well_formed_xml(name):
    root = ET.fromstring(
        str(canvas(FRAME, name, name, y_axis(FRAME, name), x_axis(FRAME, name), level(FRAME, 1.0, name)))
    )
    assert root.get("role") == "img"
    assert [child.tag for child in root[:2]] == ["title", "desc"]


def test_names_are_escaped_not_dropped():
    evil = "<script>alert(1)</script>\"'&"
    text = str(canvas(FRAME, evil, evil))
    assert "<script>" not in text
    assert ET.fromstring(text).find("title").text == evil


def test_bars_share_one_scale():
    before, after = ET.fromstring(str(bar(32, 8, 64))).findall("rect")
    assert (float(before.get("width")), float(after.get("width"))) == (50.0, 12.5)
    assert "nan" not in bar(0, 0, 0)


@given(st.floats(-1e3, 1e3), st.floats(1e-6, 1e6), st.integers(1, 10))
def test_ticks_are_even_and_inside(offset, span, most):
    low = offset * span
    high = low + span
    found = ticks(low, high, most)
    assert len(found) <= most + 2
    assert all(low - 1e-6 * span - 1e-9 * abs(low) <= t <= high + 1e-6 * span + 1e-9 * abs(high) for t in found)
    steps = [b - a for a, b in pairwise(found)]
    assert steps == pytest.approx(steps[:1] * len(steps), rel=1e-3)


@given(st.lists(st.one_of(st.none(), st.just(math.nan), st.just(math.inf), FINITE)), st.sampled_from([0.0, 0.08]))
def test_the_range_holds_zero_and_all_points(values, air):
    low, high = range_of(values, air)
    assert low <= 0 <= high
    assert low < high
    assert all(low - 1e-300 <= v <= high for v in values if v is not None and math.isfinite(v))
    assert math.isfinite(high - low)


def test_the_range_without_air_ends_at_the_largest_point():
    assert range_of([0.02, -0.01], air=0.0) == (-0.01, 0.02)
    assert range_of([]) == range_of([None, 0.0]) == (0.0, 1.0)


@pytest.mark.parametrize("bad", [(1.0, 1.0), (0.0, math.nan), (0.0, math.inf)])
def test_an_empty_range_is_refused(bad):
    with pytest.raises(ArgumentError, match="x_range"):
        Frame(10, 10, bad, (0, 1))
    with pytest.raises(ArgumentError, match="y_range"):
        Frame(10, 10, (0, 1), bad)
