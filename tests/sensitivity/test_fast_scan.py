"""Scans that stop early or halve, against scans that measure everything."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from secateur.data import as_batches
from secateur.errors import ArgumentError
from secateur.graph.groups import find_groups
from secateur.graph.trace import trace
from secateur.sensitivity.bisection import bisect
from secateur.sensitivity.racing import Racing
from secateur.sensitivity.result import Scan, changes_nothing, rising_damage
from secateur.sensitivity.scan import scan
from secateur.sensitivity.stages import as_it_comes, drawn
from secateur.storage.curve_store import CurveStore
from secateur.types import Curve

LEVELS = (0.25, 0.5, 0.75)


class Mix(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.unread = nn.Linear(6, 4)
        self.dead = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.last(torch.relu(self.second(torch.relu(self.first(x)))))
        return y + 0 * self.dead(self.unread(x))


@pytest.fixture(scope="module")
def setting():
    torch.manual_seed(3)
    model = Mix().double().eval()
    x = torch.randn(1100, 6).double()
    targets = model(x).argmax(1)
    data = [(x[k : k + 64], targets[k : k + 64]) for k in range(0, 1100, 64)]
    program = trace(model, (x[:2],))
    groups = find_groups(program)
    scores = {g.name: torch.rand(g.size, generator=torch.Generator().manual_seed(0)) for g in groups}
    return program, groups, scores, data


@pytest.fixture(scope="module")
def exhaustive(setting) -> Scan:
    return scan(*setting, sparsities=LEVELS)


@pytest.mark.parametrize("memory", [0, None])
def test_raced_points_hold_part_of_what_all_samples_give(setting, exhaustive: Scan, memory: int | None) -> None:
    racing = Racing((0.05,), stage=100, memory_bytes=memory)
    found = scan(*setting, sparsities=LEVELS, racing=racing)
    seen = np.concatenate([curve.seen()[1:] for curve in found.values()])
    assert seen.min() < 400 and found.tally.measured == seen.sum()
    assert found.tally.stopped == seen.size * 1100 - seen.sum() > 0
    order = racing.order(1100)
    for name, curve in found.items():
        known = ~np.isnan(curve.loss_damage)
        np.testing.assert_allclose(curve.loss_damage[known], exhaustive[name].loss_damage[known], atol=1e-12)
        for level, count in enumerate(curve.seen()):
            assert known[level, order[:count]].all()
        values = curve.damage[1][known[1]]
        assert curve.mean()[1] == pytest.approx(values.mean())
        assert curve.standard_error()[1] == pytest.approx(values.std(ddof=1) / len(values) ** 0.5)
    assert found.thresholds(0.05) == exhaustive.thresholds(0.05)


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (Racing((0.05,)), "wrong side of 0.05 with probability at most 0.05"),
        (Racing((0.05, 0.2), error=0.1), "wrong side of 0.05, and of 0.2, with probability at most 0.1 each"),
        (Racing((0.5,), on="loss"), "wrong side of 0.5 with probability 0.05 as samples become many"),
        (Racing((0.5,), on="loss", clip=1.0), "wrong side of 0.5 with probability at most 0.05"),
    ],
)
def test_the_error_of_a_race_is_stated_as_it_holds(setting, rule: Racing, said: str) -> None:
    (stated,) = [remark for remark in scan(*setting, sparsities=(0.75,), racing=rule).remarks() if "saved" in remark]
    assert said in stated and ("become many" in said) == ("clip=" in stated)


@pytest.mark.parametrize("error", [0.0, 0.05])
def test_bisection_finds_the_thresholds_of_the_exhaustive_scan(setting, exhaustive: Scan, error: float) -> None:
    found = scan(*setting, sparsities=LEVELS, racing=Racing((0.03, 0.1), error=error, bisect=True))
    for tolerance in (0.03, 0.1):
        assert found.thresholds(tolerance) == exhaustive.thresholds(tolerance)
    one = scan(*setting, sparsities=LEVELS, racing=Racing((0.03,), error=error, bisect=True))
    assert sum(len(c.widths) - 1 for c in one.values()) <= 2 * len(exhaustive)


def test_halving_is_a_linear_search_in_fewer_rounds() -> None:
    rng = np.random.default_rng(0)
    levels = {str(k): int(rng.integers(0, 20)) for k in range(50)}
    truth = {name: int(rng.integers(0, last + 1)) for name, last in levels.items()}
    asked: list[list[tuple[str, int]]] = []
    assert bisect(levels, lambda a: asked.append(list(a)) or [level <= truth[name] for name, level in a]) == truth
    assert len(asked) <= 5 and all(len({name for name, _ in a}) == len(a) for a in asked)


def test_scans_share_samples_and_a_killed_one_goes_on(setting, exhaustive: Scan, tmp_path: Path) -> None:
    with CurveStore.open(tmp_path / "points") as store:
        raced = scan(*setting, sparsities=LEVELS, racing=Racing((0.05,)), store=store)
        whole = scan(*setting, sparsities=LEVELS, store=store)
        assert whole.tally.stored == raced.tally.measured
        again = scan(*setting, sparsities=LEVELS, store=store)
        assert again.tally.measured == 0
    for name, curve in whole.items():
        np.testing.assert_allclose(curve.loss_damage, exhaustive[name].loss_damage, atol=1e-12)
        np.testing.assert_array_equal(curve.loss_damage, again[name].loss_damage)

    class Killed(Exception):
        pass

    class Dies:
        def __init__(self, store: CurveStore) -> None:
            self.store, self.left = store, 5  # the whole model, then points
            self.get = store.get

        def put(self, key, arrays, label) -> None:
            self.left -= 1
            if self.left < 0:
                raise Killed
            self.store.put(key, arrays, label)

    with CurveStore.open(tmp_path / "killed") as store:
        with pytest.raises(Killed):
            scan(*setting, sparsities=LEVELS, store=Dies(store))
        resumed = scan(*setting, sparsities=LEVELS, store=store)
        assert resumed.tally.stored == 4 * 1100
        for name, curve in resumed.items():
            np.testing.assert_array_equal(curve.loss_damage, exhaustive[name].loss_damage)


def test_what_changes_nothing_is_suspicious_and_the_table_says_so(exhaustive: Scan) -> None:
    assert exhaustive.suspicious == ("unread",)
    text = str(exhaustive)
    assert "suspicious: removing units of unread" in text
    first = exhaustive["first"]
    row = next(line for line in text.splitlines() if line.startswith("first")).split()
    assert row[2] == f"{first.mean()[2]:.4f}" and row[-1] == f"{first.standard_error().max():.4f}"
    assert exhaustive.tally.replayed == exhaustive.tally.measured == 9 * 1100


@pytest.mark.parametrize("racing", [None, Racing((0.05,)), Racing((0.05,), bisect=True)])
def test_a_mask_that_does_nothing_makes_every_group_suspicious(setting, monkeypatch, racing: Racing | None) -> None:
    program, groups, scores, data = setting
    assert len(scan(*setting, sparsities=LEVELS, racing=racing).suspicious) == 1
    monkeypatch.setattr("secateur.sensitivity.probe.masked_tensors", lambda model, groups, plan: {})
    found = scan(program, groups, scores, data, sparsities=LEVELS, racing=racing)
    assert set(found.suspicious) == {group.name for group in groups} == set(found)


def test_what_was_not_measured_or_moves_the_metric_alone_is_not_suspicious() -> None:
    nothing, gone = np.zeros((2, 3)), np.array([[0.0] * 3, [np.nan] * 3])
    moved, infinite = np.array([[0.0] * 3, [0.0, 1.0, 0.0]]), np.array([[0.0] * 3, [np.inf] * 3])
    assert not changes_nothing(Curve("a", (4,), (0,), nothing[:1], nothing[:1]))
    assert not changes_nothing(Curve("a", (4, 2), (0, 0.5), gone, gone))
    assert not changes_nothing(Curve("a", (4, 2), (0, 0.5), moved, nothing))
    assert not changes_nothing(Curve("a", (4, 2), (0, 0.5), nothing, infinite))
    assert changes_nothing(Curve("a", (4, 2), (0, 0.5), nothing, nothing))


def test_damage_made_to_rise_weighs_levels_by_their_samples() -> None:
    damage = np.array([[0.0] * 4, [1.0, np.nan, np.nan, np.nan], [0.0] * 3 + [0.4], [np.inf] + [0.0] * 3])
    curve = Curve("a", (4, 3, 2, 1), (0, 0.25, 0.5, 0.75), damage, damage)
    np.testing.assert_allclose(rising_damage(curve), [0, 0.28, 0.28, np.inf])  # (1 x 1 + 4 x 0.1) / 5
    assert Scan({"a": curve}).thresholds(0.3) == {"a": 0.5}
    assert Scan({"a": curve}).thresholds(0.2) == {"a": 0}


def test_stages_hold_the_samples_they_name_however_little_memory_there_is() -> None:
    x = torch.arange(23.0)
    data = as_batches([(x[:10, None], x[:10]), (x[10:, None], x[10:])], "d")
    order = np.random.default_rng(0).permutation(23)
    for memory in (0, 10**6):
        stages = list(drawn(data, order, 5, memory))
        assert [len(s.samples) for s in stages] == [5, 5, 5, 5, 3]
        for number, stage in enumerate(stages):
            assert set(stage.samples) == set(order[5 * number : 5 * number + 5])
            (batch,) = stage.batches
            assert batch.args[0].flatten().tolist() == batch.targets.tolist() == stage.samples.tolist()
    ragged = as_batches([(x[:10].reshape(5, 2), x[:5]), (x[:12].reshape(4, 3), x[:4])], "d")
    assert [b.size for b in next(drawn(ragged, np.arange(9), 9, 0)).batches] == [5, 4]
    assert [s.samples.tolist() for s in as_it_comes(ragged)] == [[0, 1, 2, 3, 4], [5, 6, 7, 8]]


def test_predictions_save_points_where_they_are_right_and_cost_two_more_where_not() -> None:
    rng = np.random.default_rng(0)
    levels = dict.fromkeys(map(str, range(40)), 15)
    damage = {
        name: np.cumsum(rng.exponential(scale=scale, size=15))
        for name, scale in zip(levels, rng.gamma(1, 1, 40), strict=True)
    }
    robust = max(levels, key=lambda name: (damage[name] <= 2.0).sum())
    counts = {}
    for how, predicted in {
        "none": None,
        "right": {name: (3 * values**2).tolist() for name, values in damage.items()},
        # That of the most robust group by far too high: its next level would always be the one that is asked for.
        "wrong": {name: (values * (1e9 if name == robust else 1)).tolist() for name, values in damage.items()},
    }.items():
        asked: list[str] = []

        def within(pairs, asked=asked):
            asked += [name for name, _ in pairs]
            return [damage[name][level - 1] <= 2.0 for name, level in pairs]

        found = bisect(levels, within, predicted)
        assert found == {name: int((values <= 2.0).sum()) for name, values in damage.items()}
        counts[how] = [asked.count(name) for name in levels]
    assert max(counts["none"]) == 4 and max(counts["wrong"]) <= 6
    assert sum(counts["right"]) <= 0.8 * sum(counts["none"])


def test_a_surrogate_begins_the_halving_and_its_agreement_is_reported(setting, exhaustive: Scan) -> None:
    right = {name: dict(zip(c.widths[1:], c.mean()[1:], strict=True)) for name, c in exhaustive.items()}
    options = {"sparsities": LEVELS, "racing": Racing((0.03,), bisect=True)}
    plain, helped = scan(*setting, **options), scan(*setting, **options, surrogate=right)
    assert helped.thresholds(0.03) == plain.thresholds(0.03) == exhaustive.thresholds(0.03)
    whole = scan(*setting, sparsities=LEVELS, surrogate=right)
    points = [(n, w, m) for n, c in exhaustive.items() for w, m in zip(c.widths[1:], c.mean_loss()[1:], strict=True)]
    expected = spearmanr([right[n][w] for n, w, _ in points], [m for _, _, m in points]).statistic
    assert whole.agreement() == pytest.approx(expected)
    assert f"rank correlation of {expected:.2f} (Spearman, 9 points)" in str(whole)
    assert "rank correlation" not in str(exhaustive)


def test_points_are_deepened_until_none_is_asked_for(setting, exhaustive: Scan) -> None:
    """Two points are asked for beyond what the race left, one of them in two steps; all others stay as they were."""
    racing = Racing((0.05,), stage=100)
    raced = scan(*setting, sparsities=LEVELS, racing=racing)
    rough = [(name, level) for name, curve in raced.items() for level in (1, 2, 3) if curve.seen()[level] <= 400][:2]
    assert len(rough) == 2
    steps = [{0: 500, 1: 730}, {0: 450, 1: 730}, {1: 1100}, {1: 1100}]
    rounds = []

    def deepen(curves):
        rounds.append({place: curves[place[0]].seen()[place[1]] for place in rough})
        asked = steps[min(len(rounds), len(steps)) - 1]
        return {(rough[k][0], curves[rough[k][0]].widths[rough[k][1]]): n for k, n in asked.items()}

    found = scan(*setting, sparsities=LEVELS, racing=racing, deepen=deepen)
    # Whole stages of a hundred, up to the least that is asked for; what has enough already is not run again.
    assert [list(seen.values()) for seen in rounds[1:]] == [[500, 500], [500, 800], [500, 1100]]
    for name, curve in found.items():
        known = ~np.isnan(curve.loss_damage)
        np.testing.assert_allclose(curve.loss_damage[known], exhaustive[name].loss_damage[known], atol=1e-12)
        for level, before in enumerate(raced[name].seen()):
            assert curve.seen()[level] == {rough[0]: 500, rough[1]: 1100}.get((name, level), before)
    extra = 1600 - sum(rounds[0].values())
    assert found.tally.measured - raced.tally.measured == extra == raced.tally.stopped - found.tally.stopped
    # Samples that no point wanted were not walked again: at most the new ones of each round.
    assert 0 < found.tally.walked - raced.tally.walked <= extra


def test_each_point_has_at_least_so_many_samples(setting) -> None:
    raced = scan(*setting, sparsities=LEVELS, racing=Racing((0.05,), stage=100))
    found = scan(*setting, sparsities=LEVELS, racing=Racing((0.05,), stage=100, least=450))
    for name, curve in found.items():
        assert curve.seen().tolist() == np.maximum(raced[name].seen(), 500).tolist()


@pytest.mark.parametrize("racing", [None, Racing((0.05,), bisect=True)])
def test_only_what_a_race_of_all_levels_left_can_be_deepened(setting, racing: Racing | None) -> None:
    with pytest.raises(ArgumentError, match="without bisect"):
        scan(*setting, racing=racing, deepen=lambda curves: {})


def test_a_point_that_there_is_not_cannot_be_deepened(setting) -> None:
    with pytest.raises(ArgumentError, match="'none', 3"):
        scan(*setting, sparsities=(0.5,), racing=Racing((0.05,)), deepen=lambda curves: {("none", 3): 10})
