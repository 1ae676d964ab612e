import math

import pytest
from hypothesis import given, settings, strategies as st
from rich.cells import cell_len

from report.example import bare, example
from secateur.report.formats import damage_text, quantity, shorten
from secateur.report.schema import ControlRow, CostRow, CurveData, QualityRow
from secateur.report.tables import control_table, curves_table, outcome, summary_table, to_text

NAMES = st.one_of(st.text(max_size=200), st.text("layer.0123[/]\x1b\n名前é", max_size=200))
NUMBERS = st.one_of(st.none(), st.floats(), st.floats(-1, 1))


def widest(text):
    return max(cell_len(line) for line in text.splitlines())


@settings(max_examples=60, deadline=None)
@given(
    title=NAMES, name=NAMES, metric=NAMES, unit=st.sampled_from(["", "s", "B"]), numbers=st.lists(NUMBERS, min_size=6)
)
def test_tables_fit_80_columns(title, name, metric, unit, numbers):
    a, b, c, d, e, f = numbers[:6]
    data = example(2).model_copy(
        update={
            "title": title,
            "metric": metric,
            "costs": [CostRow(name=name, unit=unit, before=a, after=b, spread_before=c, verdict=name)],
            "quality": [QualityRow(name=name, dense=a, pruned=b, damage=c, standard_error=d)],
            "controls": [ControlRow(name=name, macs=a, damage=b, standard_error=c, note=name)],
        }
    )
    curves = [
        CurveData(group=name, granularity=name, sparsities=[0.1, 0.5, 0.9], damage=[d, e, f], standard_error=[a] * 3)
    ]
    for table in (summary_table(data), control_table(data), curves_table(curves, metric)):
        text = to_text(table)
        assert widest(text) <= 80
        assert "\x1b" not in text
    assert widest(outcome(data)) <= 80


@given(NAMES, st.integers(1, 60))
def test_shortened_names_fit_and_keep_both_ends(name, width):
    short = shorten(name, width)
    assert cell_len(short) <= width
    if cell_len(short) < cell_len(shorten(name, 10_000)):
        assert "…" in short


def test_a_name_keeps_its_two_ends():
    assert shorten("abcdefghij", 5) == "ab…ij"
    assert shorten("abcdefghij", 4) == "ab…j"
    assert shorten("名前名前", 5) == "名…前"
    assert shorten("abcde", 5) == "abcde"


def test_names_are_not_read_as_markup():
    curves = [example(1).curves[0].model_copy(update={"group": "[red]a[/nothing]"})]
    assert "[red]a[/nothing]" in to_text(curves_table(curves, "accuracy"))
    assert "[/x] :smile:" in to_text("[/x] :smile:")


def test_the_summary_tells_the_outcome_and_every_row():
    text = to_text(summary_table(example()))
    for wanted in (
        "3.1× fewer multiply-adds",
        "ResNet-20",
        "40.8 M",
        "409 kB",
        "2.17 ms",
        "validation",
        "91.67 %",
        "+0.36",
    ):
        assert wanted in text
    assert "Nothing was removed" in to_text(summary_table(bare()))


def test_levels_that_were_not_measured_are_dashes():
    curve = CurveData(
        group="g", granularity="channel", sparsities=[0.0, 0.14, 0.5], damage=[0.0, 0.01, 0.02], standard_error=[0] * 3
    )
    row = next(line for line in to_text(curves_table([curve], "accuracy")).splitlines() if line.split()[:1] == ["g"])
    assert row.split() == ["g", "+1.00", "–", "+2.00", "–", "–"]
    empty = CurveData(group="g", granularity="channel", sparsities=[], damage=[], standard_error=[])
    assert to_text(curves_table([empty], "accuracy")).count("–") == 5


@pytest.mark.parametrize(
    ("value", "unit", "wanted"),
    [
        (999, "", "999"),
        (999.6, "", "1 k"),
        (1e9, "", "1 G"),
        (0.0021, "s", "2.1 ms"),
        (3e-7, "s", "300 ns"),
        (0.9996, "s", "1 s"),
        (1.5, "s", "1.5 s"),
        (0, "s", "0 s"),
        (-2000, "B", "-2 kB"),
        (math.nan, "", "–"),
    ],
)
def test_quantities(value, unit, wanted):
    assert quantity(value, unit) == wanted


def test_no_negative_zero():
    assert damage_text(-0.00001, True) == "0.00"
    assert damage_text(-0.0, False) == "0"


def test_the_outcome_says_what_was_gained_what_holds_and_what_it_assumes():
    data = example(2)
    said = " ".join(outcome(data).split())
    assert data.certificate is not None
    for text in (data.certificate.sentence, data.certificate.assumptions, *data.warnings, "random"):
        assert " ".join(text.split()) in said
    assert "random" not in outcome(data.model_copy(update={"controls": data.controls[:1]}))
