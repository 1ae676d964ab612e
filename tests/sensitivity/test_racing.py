"""Early decisions: rarely wrong, whatever the looks; exact where they are certain."""

import math

import numpy as np
import pytest

from secateur.errors import ArgumentError
from secateur.sensitivity.racing import Racing, side

STAGE = 50


def raced(values, boundary: float, *, bounds, error: float, indifference: float = 0.0) -> tuple[str | None, int]:
    """The first answer over looks at every 50 values, and how many were drawn."""
    for drawn in range(STAGE, len(values) + 1, STAGE):
        found = side(values[:drawn], boundary, len(values), bounds=bounds, error=error, indifference=indifference)
        if found is not None:
            return found, drawn
    return None, len(values)


def population(rng: np.random.Generator, total: int, mean: float, discordance: float) -> np.ndarray:
    """Differences in {-1, 0, 1} whose mean is `mean` as nearly as can be, in random order."""
    worse = round(total * (discordance + mean) / 2)
    better = round(total * (discordance - mean) / 2)
    values = np.zeros(total)
    values[:worse], values[worse : worse + better] = 1, -1
    return rng.permutation(values)


@pytest.mark.parametrize("discordance", [0.04, 0.2, 1.0])
@pytest.mark.parametrize("gap", [-0.002, 0.002])
def test_the_error_rate_holds_next_to_the_boundary(discordance: float, gap: float) -> None:
    """The hardest case: the mean lies just beside the boundary, so that nearly every early answer is a guess."""
    rng, error, runs, boundary = np.random.default_rng(0), 0.1, 300, 0.02
    wrong = 0
    for _ in range(runs):
        values = population(rng, 1000, boundary + gap, discordance)
        truth = "above" if values.mean() > boundary else "below"
        wrong += raced(values, boundary, bounds=(-1, 1), error=error)[0] != truth
    assert wrong / runs <= error + 2.5 * math.sqrt(error * (1 - error) / runs)


def test_the_same_check_fails_for_looking_again_and_again_at_a_test_for_one_look() -> None:
    rng, error, runs, boundary = np.random.default_rng(0), 0.1, 300, 0.02
    wrong = 0
    for _ in range(runs):
        values = population(rng, 1000, boundary - 0.002, 0.2)
        for drawn in range(STAGE, 1000, STAGE):
            seen = values[:drawn]
            if abs(seen.mean() - boundary) > 1.282 * seen.std() / math.sqrt(drawn):
                wrong += bool(seen.mean() > boundary)
                break
    assert wrong / runs > error + 2.5 * math.sqrt(error * (1 - error) / runs)


def test_clear_points_stop_early_and_error_goes_with_asymptotic_sequences_too() -> None:
    rng = np.random.default_rng(0)
    destroyed = raced(population(rng, 5000, 0.5, 0.6), 0.02, bounds=(-1, 1), error=0.05)
    assert destroyed == ("above", 50)
    assert raced(np.zeros(5000), 0.02, bounds=(-1, 1), error=0.05) == ("below", 250)
    wrong = 0
    for _ in range(300):
        losses = rng.exponential(size=2000) - 1
        losses -= losses.mean() - 0.01
        wrong += raced(losses, 0.02, bounds=None, error=0.05)[0] == "above"
    assert wrong / 300 <= 0.05 + 2.5 * math.sqrt(0.05 * 0.95 / 300)
    assert raced(rng.normal(1, 1, 5000), 0.02, bounds=None, error=0.05) == ("above", 100)
    assert side(np.zeros(200), 0.02, 1000, bounds=None, error=0.05) is None


@pytest.mark.parametrize("gap", [-0.012, 0.012])
def test_indifference_saves_samples_and_keeps_the_error_rate_of_points_farther_away(gap: float) -> None:
    rng, error, runs, boundary = np.random.default_rng(0), 0.1, 200, 0.02
    wrong, saved = 0, []
    for _ in range(runs):
        values = population(rng, 1000, boundary + gap, 0.2)
        answers = [raced(values, boundary, bounds=(-1, 1), error=error, indifference=zone) for zone in (0.0, 0.01)]
        wrong += answers[1][0] != ("above" if gap > 0 else "below")
        saved.append(answers[0][1] - answers[1][1])
        # A boundary moved by the indifference is what is decided on.
        assert answers[1][1] <= answers[0][1]
    assert wrong / runs <= error + 2.5 * math.sqrt(error * (1 - error) / runs)
    assert np.mean(saved) > 150
    # Values all near the boundary are decided by their mean.
    assert side(np.tile([0.0, 0.04], 200), 0.021, 1000, bounds=(-1, 1), error=0.05, indifference=0.5) == "below"


def test_without_error_only_what_no_sample_left_can_change() -> None:
    values = np.array([1.0, 1.0, 0.0, 0.0])
    assert side(values[:2], 0.25, 4, bounds=(-1, 1), error=0) is None  # the others may be -1
    assert side(values[:3], 0.2, 4, bounds=(-1, 1), error=0) == "above"  # at least (2 - 1) / 4
    assert side(values[:3], 0.8, 4, bounds=(-1, 1), error=0) == "below"  # at most 3 / 4
    assert side(values, 0.5, 4, bounds=(-1, 1), error=0) == "below"  # at the boundary is within
    assert side(np.array([np.inf]), 1e9, 4, bounds=(-1, 1), error=0) == "above"


def test_settings_out_of_range() -> None:
    for bad, word in (
        ({"boundaries": ()}, "boundaries"),
        ({"boundaries": (math.nan,)}, "boundaries"),
        ({"boundaries": (0.1,), "error": 1.0}, "error"),
        ({"boundaries": (0.1,), "clip": 0.0}, "clip"),
        ({"boundaries": (0.1,), "stage": 0}, "stage"),
        ({"boundaries": (0.1,), "least": -1}, "least"),
        ({"boundaries": (0.1,), "indifference": -0.1}, "indifference"),
    ):
        with pytest.raises(ArgumentError, match=word):
            Racing(**bad)
