"""What is kept of walks: the values stay the same bit for bit, memory is bounded, and the least work is left."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor, nn

from counting import Counting
from networks import CASES, Case, built
from secateur.allocation.contenders import Contenders
from secateur.data import Batch, as_batches
from secateur.errors import ArgumentError
from secateur.graph.groups import find_groups
from secateur.graph.trace import trace
from secateur.measures.evaluate import evaluate
from secateur.measures.metrics import resolve_loss, resolve_metric
from secateur.sensitivity import executor as executor_module
from secateur.sensitivity.activation_cache import UNITS, ActivationCache, Place, bytes_of, cut_points, profile
from secateur.sensitivity.executor import SerialExecutor, new_cache
from secateur.sensitivity.probe import Probe
from secateur.sensitivity.processes import ProcessExecutor
from secateur.sensitivity.racing import Racing
from secateur.sensitivity.replay import Replay
from secateur.sensitivity.scan import scan
from secateur.sensitivity.worker import Known, Task, work
from secateur.surgery.plan import plan_widths
from secateur.types import Evaluation

GENEROUS = 2**30
SAMPLES = np.arange(5)


def walked_again(places: list[Place], cuts: tuple[int, ...]) -> float:
    """The work of walks to each place by itself, counted one by one."""
    reached = {place.position: place.work_s for place in places}
    return sum(p.work_s - max([reached[c] for c in cuts if c <= p.position], default=0.0) for p in places)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 200)), min_size=1, max_size=7), st.integers(0, 90))
def test_no_other_cut_points_that_fit_leave_less_work(steps: list[tuple[int, int]], bound: int) -> None:
    work = np.cumsum([step for step, _ in steps])
    places = [Place(3 * k + 1, float(work[k]), size * bound / UNITS) for k, (_, size) in enumerate(steps)]
    found = cut_points(places, bound)
    sizes = {place.position: place.size_bytes for place in places}
    assert sum(sizes[cut] for cut in found) <= bound
    fitting = (
        cuts
        for count in range(len(places) + 1)
        for cuts in combinations(sizes, count)
        if sum(sizes[cut] for cut in cuts) <= bound
    )
    assert walked_again(places, tuple(found)) == pytest.approx(min(walked_again(places, cuts) for cuts in fitting))


def test_what_is_too_large_by_a_little_is_not_kept() -> None:
    places = [Place(1, 1.0, 50.1), Place(2, 3.0, 50.0)]
    assert cut_points(places, 100.0) == [2] and cut_points(places, 101.0) == [1, 2] and cut_points(places, 49.0) == []


def prober_of(model: nn.Module, example: Tensor, samples: int = len(SAMPLES)) -> Probe:
    program = trace(model, (example,))
    groups = find_groups(program)
    scores = {g.name: torch.rand(g.size, generator=torch.Generator().manual_seed(0)) for g in groups}
    metric, loss = resolve_metric("accuracy"), resolve_loss("cross_entropy")
    nothing = Evaluation(np.zeros(samples), np.zeros(samples))
    return Probe(model, groups, scores, as_batches([], "d"), metric, loss, nothing, program, Replay.of(program))


class InPlace(nn.Module):
    """Writes to what is alive at all later layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.side, self.last = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(6, 3)
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x += 1
        kept = self.first(x)
        y = kept * 2
        for layer in self.layers:
            y = layer(y)
            half = y[:, :2]
            half.relu_()
            kept += 1
        return self.last(y) + self.side(kept)


def written() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return InPlace().double().eval(), torch.randn(len(SAMPLES), 4).double()


@pytest.mark.parametrize("case", [*CASES, None], ids=repr)
@pytest.mark.parametrize("memory_bytes", [GENEROUS, 2000])
def test_later_walks_give_the_same_bit_for_bit(case: Case | None, memory_bytes: int) -> None:
    model, x = (built(case), case.inputs(5)) if case is not None else written()
    prober = prober_of(model, x[:2].clone())
    plans = [plan_widths(prober.groups, prober.scores, {g.name: max(1, g.width // 2)}) for g in prober.groups]
    changes = [prober.change(plan) for plan in plans]
    assert prober.replay is not None
    expected = dict(prober.replay.outputs(Batch((x.clone(),), {}, SAMPLES), changes))
    cache = ActivationCache(prober, memory_bytes)
    # The last one first, so that it is walked to in one go; then all, then each by itself.
    for chosen in ([len(plans) - 1], range(len(plans)), *([number] for number in range(len(plans)))):
        batch = Batch((x.clone(),), {}, SAMPLES)
        kept = cache.of(batch, SAMPLES)
        for at, found in prober.replay.outputs(batch, [changes[number] for number in chosen], kept):
            torch.testing.assert_close(found, expected[chosen[at]], rtol=0, atol=0)
    assert cache.left_bytes >= 0 and memory_bytes - cache.left_bytes == sum(map(bytes_of, kept.alive.values()))


def test_what_is_kept_is_not_computed_again_and_nothing_beyond_the_memory_is_kept() -> None:
    torch.manual_seed(0)
    layers = [layer for _ in range(5) for layer in (nn.Linear(4, 4), nn.Tanh())]
    prober = prober_of(nn.Sequential(*layers).double().eval(), torch.randn(2, 4).double())
    assert prober.replay is not None
    batch = Batch((torch.randn(5, 4).double(),), {}, SAMPLES)
    places = profile(prober, batch)
    assert [(place.position, place.size_bytes) for place in places] == [(2, 32), (4, 32), (6, 32), (8, 32)]
    changes = [prober.change(plan_widths(prober.groups, prober.scores, {g.name: 2})) for g in prober.groups]

    def calls(cache: ActivationCache, samples: np.ndarray) -> tuple[int, bool]:
        kept = cache.of(batch, samples)
        with Counting() as counter:
            list(prober.replay.outputs(batch, changes[3:], kept))
        return counter.calls, kept.walked

    # Each batch has its share, so that two of the four places are kept of all.
    assert len(ActivationCache(prober, 2 * 5 * 32).of(batch, SAMPLES).cuts) == 2
    for cut, second in ((6, (2, True)), (8, (1, False))):
        room_for_one = ActivationCache(prober, 5 * 32)
        room_for_one._cuts = frozenset({cut})
        assert [calls(room_for_one, SAMPLES) for _ in range(2)] == [(5, True), second]
    # Other samples find no room left.
    assert [calls(room_for_one, SAMPLES + 5) for _ in range(2)] == [(5, True), (5, True)]
    assert room_for_one.left_bytes == 0
    assert [calls(ActivationCache(prober, 0), SAMPLES) for _ in range(2)] == [(5, True), (5, True)]


@pytest.fixture(scope="module")
def setting():
    torch.manual_seed(1)
    layers = [layer for _ in range(4) for layer in (nn.Linear(8, 8), nn.Tanh())]
    model = nn.Sequential(*layers, nn.Linear(8, 3)).double().eval()
    x = torch.randn(600, 8).double()
    targets = model(x).argmax(1)
    program = trace(model, (x[:2],))
    groups = find_groups(program)
    data = [(x[k : k + 64], targets[k : k + 64]) for k in range(0, 600, 64)]
    return program, groups, {g.name: torch.arange(float(g.size)) for g in groups}, data


def test_scans_that_come_back_to_samples_compute_less_and_find_the_same(setting) -> None:
    rule = Racing((0.05, 0.2), error=0, stage=100, bisect=True)
    found, calls = [], []
    # What two of the four places need; a place has 8 doubles.
    for cache_bytes in (None, 2 * 8 * 8 * 600, 0):
        with Counting() as counter:
            found.append(scan(*setting, racing=rule, executor=SerialExecutor(cache_bytes=cache_bytes)))
        calls.append(counter.calls)
    assert calls[0] < calls[1] < calls[2]
    for other in found[1:]:
        assert other.keys() == found[0].keys() and other.tally.measured == found[0].tally.measured
        for name, curve in other.items():
            np.testing.assert_array_equal(curve.loss_damage, found[0][name].loss_damage)


def test_deepened_scans_walk_no_sample_twice(setting) -> None:
    rule = Racing((0.05,), stage=100)
    deepen = Contenders(lambda widths: float(sum(widths.values())), [16.0], share=1.0)
    found = [
        scan(*setting, racing=rule, deepen=deepen, executor=SerialExecutor(cache_bytes=cache)) for cache in (None, 0)
    ]
    assert found[0].tally.measured == found[1].tally.measured
    assert found[0].tally.walked == 600 < found[1].tally.walked


def test_no_room_is_taken_where_samples_are_seen_once(setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor_module, "new_cache", lambda prober, cache_bytes: pytest.fail("not needed"))
    scan(*setting, sparsities=(0.5,))
    scan(*setting, sparsities=(0.5,), racing=Racing((0.05,)))


@pytest.mark.parametrize("executor", [SerialExecutor, ProcessExecutor])
def test_a_cache_of_less_than_nothing_is_refused(executor) -> None:
    with pytest.raises(ArgumentError, match="cache_bytes=-1 must be at least 0"):
        executor(cache_bytes=-1)


def test_workers_share_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor_module, "quarter_of_free_memory", lambda device: 400)
    prober = prober_of(*written())
    assert new_cache(prober, None).left_bytes == 400 and new_cache(prober, None, 4).left_bytes == 100
    assert new_cache(prober, 7, 4).left_bytes == 7


def test_a_worker_starts_its_next_task_from_what_the_last_one_left(setting) -> None:
    program, groups, scores, data = setting
    found, metric, loss = as_batches(data, "d"), resolve_metric("accuracy"), resolve_loss("cross_entropy")
    baseline = evaluate(program.model, found, metric=metric, loss=loss)
    prober = Probe(program.model, groups, scores, found, metric, loss, baseline, program, Replay.of(program))
    cache = ActivationCache(prober, GENEROUS)
    walked = [
        work(prober, cache, Task([Known(group.name, 4, None)], None, ()), lambda message: None).walked
        for group in (groups[-1], *groups)
    ]
    assert walked == [600, 0, 0, 0, 0]
