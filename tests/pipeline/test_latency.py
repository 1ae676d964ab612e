"""Latency as a bound: predicted near what is measured, corrected by it, and honest where it cannot be met."""

from pathlib import Path

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.graph.groups import structure
from secateur.measures import latency as clock
from secateur.measures.latency import Latency, time_models
from secateur.measures.operators import operators
from secateur.pipeline import latency as clocked
from secateur.storage.timing_store import IN_MEMORY, TimingStore
from secateur.surgery.plan import plan_widths


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.conv2, self.head = nn.Conv2d(1, 12, 3), nn.Conv2d(12, 12, 3), nn.Linear(12, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.conv2(torch.relu(self.conv1(x)))).mean((2, 3)))


X, Y = torch.randn(60, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(60) % 2
ARGS = (X[:8],)
NOTHING_ELSE = {
    "calibration": [(X, Y)], "validation": [(X, Y)], "controls": (), "repair": False, "latency_cache": IN_MEMORY,
    "sparsities": (0.25, 0.5, 0.75), "folds": 2,
}  # fmt: skip


def test_predictions_are_near_what_is_measured() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)).eval()
    x = torch.zeros(64, 64)
    program = sc.trace(net, (x,))
    groups = sc.find_groups(program)
    widths = [{"0": 150, "2": 128}, {"0": 77, "2": 230}, {"0": 52, "2": 26}]
    scores = {g.name: torch.arange(g.size) for g in groups}
    models = [net, *(sc.cut(net, plan_widths(groups, scores, kept), program=program) for kept in widths)]
    off = []
    for _ in range(5):  # other programs take of the machine what they like
        table = sc.latency_costs(program, groups, cache=IN_MEMORY).latency
        taken = [timed.least_s for timed in time_models(models, (x,), blocks=25, block_s=2e-3)]
        off.append(max(abs(table(kept) / s - 1) for kept, s in zip([{}, *widths], taken, strict=True)))
        if off[-1] < 0.3:
            return
    pytest.fail(f"predictions were off by {off}")


def test_operators_are_timed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = sc.trace(nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 2)), (torch.zeros(1, 3),))
    groups = sc.find_groups(program)
    cache = tmp_path / "deep" / "t.sqlite"
    first = sc.latency_costs(program, groups, cache=cache).latency
    monkeypatch.setattr(clocked, "time_calls", lambda calls, progress: pytest.fail("timed again"))
    second = sc.latency_costs(program, groups, cache=cache).latency
    for one, other in zip(first.operators, second.operators, strict=True):
        assert (one.seconds == other.seconds).all()
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        with pytest.raises(pytest.fail.Exception):
            sc.latency_costs(program, groups, cache=cache)
    finally:
        torch.set_num_threads(threads)


def test_a_damaged_cache_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "t.sqlite"
    path.write_bytes(b"not a database at all" * 100)
    with TimingStore.open(path) as store:
        store.put("cpu", {"aten.relu(1)": 1.0, "aten.relu(2)": None})
    with TimingStore.open(path) as store:
        assert store.known("cpu") == {"aten.relu(1)": 1.0, "aten.relu(2)": None}
        assert store.known("cpu 2") == {}
    assert (tmp_path / "t.sqlite.damaged-1").exists()
    with pytest.raises(sc.StoreError, match="cache="), TimingStore.open(path / "below" / "a file"):
        pass


def on_a_machine(monkeypatch: pytest.MonkeyPatch, seconds_of) -> list[float]:
    """Whole models take `seconds_of(share of the dense parameters)`, operators what their parameters say."""
    asked: list[float] = []
    dense = sum(p.numel() for p in Net().parameters())

    def models(given, args, kwargs=None, **_) -> list[Latency]:
        taken = [seconds_of(sum(p.numel() for p in m.parameters()) / dense) for m in given]
        asked.append(taken[-1])
        return [Latency(s, s, s, 1, s) for s in taken]

    def calls(given, progress=None):
        weights = [call.args[1].shape if "conv" in call.name else () for call in given]
        return [1e-9 * torch.Size(shape).numel() for shape in weights]

    monkeypatch.setattr(clocked, "time_models", models)
    monkeypatch.setattr(clocked, "time_calls", calls)
    return asked


def test_a_latency_budget_is_met_though_the_table_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    # The square root is far above the line through the dense model and two cuts where much is gone.
    on_a_machine(monkeypatch, lambda share: 1e-3 * share**0.5)
    net = Net().eval()
    result = sc.prune(net, ARGS, budget=sc.Budget(latency=0.6), **NOTHING_ELSE)
    assert result.timed is not None and result.timed.is_met
    assert result.timed.measured_s <= 0.6e-3 and result.timed.dense_s == 1e-3
    absolute = sc.prune(net, ARGS, budget=sc.Budget(latency_s=0.5e-3, macs=0.9), **NOTHING_ELSE)
    assert absolute.timed is not None and absolute.timed.is_met and absolute.timed.measured_s <= 0.5e-3
    row = next(row for row in absolute.report_data.costs if row.predicted is not None)
    assert (row.predicted, row.after) == (absolute.timed.predicted_s, absolute.timed.measured_s)


def test_predictions_are_corrected_until_the_measured_latency_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    # Linear for the models that the fit sees, and twice as slow for those that are made afterwards.
    seen: list[int] = []

    def seconds(share: float) -> float:
        seen.append(1)
        return 1e-3 * share if len(seen) <= 3 or share == 1 else 1.3e-3 * share

    on_a_machine(monkeypatch, seconds)
    result = sc.prune(Net().eval(), ARGS, budget=sc.Budget(latency=0.6), **NOTHING_ELSE)
    assert result.timed is not None and result.timed.corrections > 0 and result.timed.is_met
    assert not result.report_data.warnings or "latency" not in " ".join(result.report_data.warnings)


def test_a_latency_that_cannot_be_met_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def seconds(share: float) -> float:
        seen.append(1)
        return 1e-3 * share if len(seen) <= 3 else 1e-3

    on_a_machine(monkeypatch, seconds)
    result = sc.prune(Net().eval(), ARGS, budget=sc.Budget(latency=0.6), **NOTHING_ELSE)
    assert result.timed is not None and not result.timed.is_met
    assert any("latency is not within the budget" in text for text in result.report_data.warnings)


def test_blocks_of_calls_that_do_not_fit_at_once_are_timed_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    program = sc.trace(nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 2)), (torch.zeros(1, 3),))
    calls = [operator.at({}) for operator in operators(structure(program))]
    monkeypatch.setattr(clock, "AT_ONCE_BYTES", 1)
    assert [len(part) for part in clock._parts(calls)] == [1] * len(calls)
    assert all(s is not None and s > 0 for s in clock.time_calls(calls, blocks=2, block_s=1e-5))
