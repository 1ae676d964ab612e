import xml.etree.ElementTree as ET

import pytest

from report.example import example
from secateur.report.plots import (
    by_sensitivity,
    control_plot,
    curve_plot,
    damage_at,
    is_cut_off,
    mean_damage,
    shared_range,
    threshold_plot,
)
from secateur.report.schema import ControlRow, CurveData, ThresholdData


def curve(damage, *, group="a", chosen=None):
    levels = [k / (len(damage) - 1) for k in range(len(damage))]
    return CurveData(
        group=group,
        granularity="channel",
        sparsities=levels,
        damage=damage,
        standard_error=[0.0] * len(damage),
        chosen_sparsity=chosen,
    )


def thresholds(**changes):
    return example().thresholds.model_copy(update=changes)


def circles(markup, kind):
    return [c for c in ET.fromstring(str(markup)).iter("circle") if c.get("class") == kind]


def test_missing_points_are_not_drawn():
    plot = curve_plot(curve([0.0, None, 0.5]), (0.0, 1.0), share=True)
    # 240 wide with margins 38 and 12; 150 high with margins 10 and 26.
    assert [(float(c.get("cx")), float(c.get("cy"))) for c in circles(plot, "dot")] == [(38, 124), (228, 67)]


def test_the_ring_is_at_the_chosen_sparsity_on_the_curve():
    (ring,) = circles(curve_plot(curve([0.0, 0.5, 1.0], chosen=0.25), (0.0, 1.0), share=True), "chosen")
    assert (float(ring.get("cx")), float(ring.get("cy"))) == (38 + 0.25 * 190, 124 - 0.25 * 114)


def test_no_ring_beside_a_missing_point():
    assert not circles(curve_plot(curve([0.0, None, 1.0], chosen=0.25), (0.0, 1.0), share=True), "chosen")


@pytest.mark.parametrize(
    ("place", "wanted"), [(0.0, 0.0), (0.5, 2.0), (0.25, 1.0), (0.75, None), (1.0, None), (1.5, None)]
)
def test_damage_at(place, wanted):
    assert damage_at([0.0, 0.5, 1.0], [0.0, 2.0, None], place) == wanted
    assert damage_at([1.0, 0.5, 0.0], [None, 2.0, 0.0], place) == wanted


def test_a_network_that_broke_down_is_never_ranked_as_robust():
    broken, bad, good = (
        curve([0.0, None, None], group="broken"),
        curve([0, 0.2, 0.8], group="bad"),
        curve([0, 0.1, 0.1]),
    )
    assert [c.group for c in by_sensitivity([good, bad, broken])] == ["broken", "bad", "a"]
    assert mean_damage(broken, 0.8) == pytest.approx(0.5 * (0.0 + 0.8) / 2 + 0.5 * 0.8)


def test_uneven_levels_do_not_change_the_order():
    dense = CurveData(
        group="dense", granularity="channel", sparsities=[0, 0.8, 0.9, 1.0], damage=[0, 0, 1, 1], standard_error=[0] * 4
    )
    assert [c.group for c in by_sensitivity([dense, curve([0, 0.5, 1])])] == ["a", "dense"]


def test_all_curves_share_a_scale_that_holds_their_bands():
    wide = CurveData(group="w", granularity="channel", sparsities=[0, 1], damage=[0, 1], standard_error=[0, 0.5])
    low, high = shared_range([wide, curve([0.0, -0.1])])
    assert low <= -0.1
    assert high >= 1.5


def test_the_threshold_plot_marks_the_choice_and_the_tolerance():
    data = ThresholdData(
        budgets=[1.0, 0.5], damage=[0.0, 0.01], standard_error=[0.0, 0.0], predicted=[0.0, 0.01], chosen=0.5,
        tolerance=0.02, reason="r",
    )  # fmt: skip
    root = ET.fromstring(str(threshold_plot(data, "accuracy", share=True)))
    (ring,) = [c for c in root.iter("circle") if c.get("class") == "chosen"]
    (limit,) = [e for e in root.iter("line") if e.get("class") == "limit"]
    # The picture is 250 high inside and ends at 1.5 times the tolerance: one third and two thirds of the way up.
    assert float(ring.get("cy")) == pytest.approx(284 - 250 / 3, abs=0.01)
    assert float(limit.get("y1")) == pytest.approx(284 - 500 / 3, abs=0.01)
    assert float(ring.get("cx")) == pytest.approx(52 + 536 * 0.51 / 0.52, abs=0.01)


def test_the_threshold_plot_stays_near_the_tolerance_and_says_so():
    assert is_cut_off(example().thresholds)
    assert not is_cut_off(thresholds(tolerance=None))
    root = ET.fromstring(str(threshold_plot(example().thresholds, "accuracy", share=True)))
    ticks = [float(t.text) for t in root.iter("text") if t.get("text-anchor") == "end"]
    assert max(ticks) <= 3.0


def test_a_chosen_point_outside_the_picture_is_a_line_only():
    assert not circles(threshold_plot(thresholds(chosen=0.25), "accuracy", share=True), "chosen")


def test_a_single_budget_and_no_budget_can_be_drawn():
    one = ThresholdData(
        budgets=[0.5], damage=[None], standard_error=[None], predicted=[None], chosen=0.5, tolerance=None, reason=""
    )
    none = one.model_copy(update={"budgets": [], "damage": [], "standard_error": [], "predicted": [], "chosen": None})
    for data in (one, none):
        assert "<circle" not in threshold_plot(data, "accuracy", share=True)


def test_controls_are_ordered_by_damage_and_missing_ones_come_last_without_a_dot():
    rows = [
        ControlRow(name="lost", macs=0.5, damage=None, standard_error=None),
        ControlRow(name="random", macs=0.5, damage=0.2, standard_error=0.1),
        ControlRow(name="secateur", macs=0.5, damage=0.1, standard_error=None),
    ]
    plot = control_plot(rows, "accuracy", share=True)
    root = ET.fromstring(str(plot))
    assert [t.text for t in root.iter("text") if (t.get("class") or "").startswith("name")] == [
        "secateur",
        "random",
        "lost",
    ]
    (ours,), (theirs,) = circles(plot, "ours"), circles(plot, "theirs")
    # 340 inside, from 0 to the end of the longest whisker and 8 % of air.
    assert float(ours.get("cx")) == pytest.approx(156 + 340 * 0.1 / 0.324, abs=0.01)
    assert float(theirs.get("cx")) == pytest.approx(156 + 340 * 0.2 / 0.324, abs=0.01)
    assert len([p for p in root.iter("path")]) == 1
