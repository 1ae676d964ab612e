import json
import math

import pytest
from pydantic import ValidationError

from report.example import EVERY_PART, bare, certificate, example
from secateur.report.schema import ControlRow, CostRow, CurveData, ReportData

PARTS_WITH_ROWS = ("costs", "quality", "curves", "widths", "rounds", "controls", "left_alone", "rewrites")


def test_round_trip_through_json_is_exact():
    data = example()
    assert ReportData.model_validate_json(data.model_dump_json()) == data
    assert ReportData.model_validate(json.loads(json.dumps(data.model_dump(mode="json")))) == data
    assert ReportData.model_validate_json(bare().model_dump_json()) == bare()


def test_json_holds_no_nan_or_infinity():
    text = example().model_copy(update={"certificate": certificate(bound=math.inf, p_value=math.nan)}).model_dump_json()
    assert json.loads(text, parse_constant=pytest.fail)["certificate"]["bound"] is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_become_none(value):
    assert ControlRow(name="random", macs=value, damage=value, standard_error=value).damage is None
    curve = CurveData(group="a", granularity="channel", sparsities=[0.5], damage=[value], standard_error=[value])
    assert curve.damage == [None]
    assert CostRow(name="latency", unit="s", before=1.0, after=value).ratio is None


def test_unknown_keys_are_rejected_everywhere():
    raw = example().model_dump(mode="json")
    for part in (None, "certificate", "thresholds", *PARTS_WITH_ROWS):
        changed = json.loads(json.dumps(raw))
        place = changed if part is None else changed[part][0] if part in PARTS_WITH_ROWS else changed[part]
        place["surprise"] = 1
        with pytest.raises(ValidationError, match="surprise"):
            ReportData.model_validate(changed)


def test_another_schema_version_is_rejected():
    with pytest.raises(ValidationError, match="schema_version"):
        ReportData.model_validate(example().model_dump() | {"schema_version": 2})


@pytest.mark.parametrize(
    ("part", "column"),
    [
        ("curves", "damage"),
        ("curves", "standard_error"),
        ("curves", "loss_damage"),
        ("thresholds", "damage"),
        ("thresholds", "standard_error"),
        ("thresholds", "predicted"),
    ],
)
def test_columns_of_unequal_length_are_rejected(part, column):
    raw = example().model_dump()
    row = raw[part][0] if part == "curves" else raw[part]
    row[column] = row[column][:-1]
    with pytest.raises(ValidationError, match="give one for each"):
        ReportData.model_validate(raw)


def test_parts_are_immutable():
    with pytest.raises(ValidationError, match="frozen"):
        example().title = "other"


def test_points_are_shown_for_accuracies_unless_told_otherwise():
    data = example()
    assert data.shows_points
    assert data.model_copy(update={"metric": "MulticlassAccuracy"}).shows_points
    assert not data.model_copy(update={"metric": "cross_entropy"}).shows_points
    assert not data.model_copy(update={"is_share": False}).shows_points
    assert data.model_copy(update={"metric": "f1", "is_share": True}).shows_points


def test_the_example_has_every_part_and_the_bare_report_none():
    assert all(getattr(example(), part) for part in EVERY_PART)
    assert not any(getattr(bare(), part) for part in EVERY_PART)
