import pytest

from report.example import bare, certificate, example
from secateur.report.headline import cards, change, headline, times
from secateur.report.schema import CostRow


def latency(verdict, after=0.5):
    return CostRow(
        name="latency", unit="s", before=1.0, after=after, spread_before=0.1, spread_after=0.1, verdict=verdict
    )


def macs(before, after):
    return CostRow(name="MACs", unit="", before=before, after=after)


def told(**changes):
    return headline(example().model_copy(update=changes)).replace("\u00a0", " ")


def test_the_whole_outcome_in_one_sentence():
    assert (
        told() == "3.1× fewer multiply-adds, 1.9× faster; with 95 % confidence accuracy drops by at most 0.81 points."
    )


def test_what_could_not_be_certified_is_said():
    refused = certificate(certified=False, bound=0.012)
    assert told(certificate=refused).endswith("by at most 1.20 points, more than the tolerance of 1.00 points.")
    few = certificate(certified=False, bound=0.012, needed=14000)
    assert told(certificate=few).endswith("of 1.00 points (about 14000 test samples would be needed).")


def test_without_a_bound_none_is_claimed():
    assert told(certificate=certificate(bound=float("inf"), certified=False)).endswith(
        "give no bound on the damage to accuracy."
    )


def test_a_bound_without_a_tolerance_is_stated_alone():
    alone = {"tolerance": None, "p_value": None}
    assert told(certificate=certificate(**alone)).endswith("accuracy drops by at most 0.81 points.")
    none = certificate(**alone, certified=False, bound=1.0)
    assert told(certificate=none).endswith("the test data give no bound on the damage to accuracy.")


def test_an_asymptotic_test_is_marked():
    assert "(asymptotic)" in told(certificate=certificate(guarantee="asymptotic"))
    assert "(asymptotic)" not in told()


def test_a_loss_rises_and_is_not_given_in_points():
    text = told(
        metric="cross_entropy", higher_is_better=False, certificate=certificate(metric="cross_entropy", bound=0.3)
    )
    assert text.endswith("cross_entropy rises by at most 0.3.")


def test_without_test_data_nothing_is_certified():
    assert told(certificate=None).endswith(
        "damage to accuracy on test: +0.36 points, standard error 0.19; nothing is certified."
    )
    assert told(certificate=None, quality=[]) == "3.1× fewer multiply-adds, 1.9× faster."


def test_nothing_removed():
    assert headline(bare()) == "Nothing was removed."
    assert told(costs=[macs(10, 10), latency("no verdict: the spreads overlap")]).startswith("Nothing was removed;")


@pytest.mark.parametrize("verdict", [None, "no verdict: the spreads overlap", "about 2x faster"])
def test_no_speed_is_claimed_without_a_verdict(verdict):
    assert "faster" not in told(costs=[macs(30, 10), latency(verdict)])
    assert change(latency(verdict))[0] == "no verdict"


def test_a_slowdown_is_said():
    assert "1.25× slower" in told(costs=[macs(30, 10), latency("1.25x slower", after=1.25)])


def test_growth_is_said_as_growth():
    assert change(macs(10, 15)) == ("1.5×", "more multiply-adds")
    assert change(CostRow(name="file size", unit="B", before=10, after=40)) == ("4.0×", "larger file")
    assert change(macs(10, 0)) == change(macs(None, 5)) == ("–", "MACs")


def test_digits_of_a_factor():
    assert [times(v) for v in (1.011, 1.5, 3.16, 19.94, 20.4)] == ["1.01×", "1.5×", "3.2×", "19.9×", "20×"]


def test_a_card_for_each_cost_and_for_the_last_quality():
    found = cards(example())
    assert [c.value for c in found] == ["3.1×", "2.8×", "2.7×", "1.9×", "+0.36"]
    assert found[-1].detail == "92.03 % → 91.67 %"
    assert cards(bare()) == []
