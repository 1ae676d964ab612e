"""The whole job on a small problem: goals held, killed and resumed, bad input named."""

import copy
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from sklearn.metrics import f1_score
from torch import Tensor, nn

import secateur as sc
from secateur.pipeline import rounds, scene, stages
from secateur.repairs.changes import REPEATED_NORM
from secateur.sensitivity.executor import Measure
from secateur.sensitivity.probe import Probe
from secateur.storage.curve_store import CurveStore
from secateur.surgery.plan import plan_widths


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.conv2, self.bn2 = nn.Conv2d(12, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.head = nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        return self.head(torch.relu(self.bn2(self.conv2(x))).mean((2, 3)))


def stripes(samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """Horizontal or vertical stripes under noise."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(2, (samples,), generator=generator)
    wave = torch.sin(torch.arange(8.0) * 2).reshape(1, 8, 1).expand(samples, 8, 8)
    x = torch.where(y.reshape(-1, 1, 1) == 1, wave, wave.transpose(1, 2))
    return (x + 0.7 * torch.randn(samples, 8, 8, generator=generator)).unsqueeze(1), y


def batches(samples: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    x, y = stripes(samples, seed)
    return list(zip(x.split(50), y.split(50), strict=True))


def trained() -> Net:
    torch.manual_seed(0)
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters(), 1e-2)
    for _ in range(3):
        for x, y in batches(400, 1):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
    return net.eval()


DATA = {"train": batches(400, 1), "validation": batches(300, 2), "test": batches(400, 3)}
ARGS = (stripes(16, 4)[0],)
QUICK = {"sparsities": (0.3, 0.6, 0.8), "folds": 3, "rounds": 2, "calibration_samples": 100}
TRAINING = sc.Retraining(epochs=1, learning_rate=3e-3)


@pytest.fixture(scope="module")
def net() -> Net:
    return trained()


@pytest.fixture(scope="module")
def within_tolerance(net: Net) -> sc.Result:
    return sc.prune(net, ARGS, **DATA, tolerance=0.03, retrain=TRAINING, **QUICK)


@pytest.mark.parametrize("part", ["validation", "train", "calibration"])
def test_data_that_were_chosen_by_certify_nothing(net: Net, part: str) -> None:
    x, y = (torch.cat(rows) for rows in zip(*DATA["test"], strict=True))
    own = [(torch.cat([a, x[:20]]), torch.cat([b, y[:20]])) for a, b in DATA["train"][:1]]
    data = {**DATA, part: own}
    with pytest.raises(sc.DataError, match="have samples in common"):
        sc.prune(net, ARGS, **data, tolerance=0.05, **QUICK)


def test_a_tolerance_gives_a_smaller_model_within_it(net: Net, within_tolerance: sc.Result) -> None:
    result = within_tolerance
    assert type(result.model) is Net
    before, after = sc.measure(net, ARGS, latency=False), sc.measure(result.model, ARGS, latency=False)
    assert after.macs < 0.7 * before.macs
    x, y = stripes(400, 3)
    drop = ((net(x).argmax(1) == y).double() - (result.model(x).argmax(1) == y).double()).mean()
    assert result.certificate is not None
    assert result.certificate.drop == pytest.approx(float(drop))
    assert result.damage.mean + result.damage.standard_error <= 0.03


def test_the_model_is_untouched_and_the_plan_says_what_was_kept(net: Net, within_tolerance: sc.Result) -> None:
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in trained().state_dict().items())
    program = sc.trace(net, ARGS)
    small = sc.cut(net, within_tolerance.plan, program=program)
    shapes = {k: v.shape for k, v in small.state_dict().items()}
    assert shapes == {k: v.shape for k, v in within_tolerance.model.state_dict().items()}


def test_report_save_and_load(within_tolerance: sc.Result, tmp_path: Path) -> None:
    page = within_tolerance.report(tmp_path / "report.html")
    assert "fewer multiply-adds" in page.read_text() and (tmp_path / "report.json").exists()
    within_tolerance.save(tmp_path / "pruned")
    loaded = sc.load(Net, tmp_path / "pruned").eval()
    assert torch.equal(loaded(ARGS[0]), within_tolerance.model(ARGS[0]))
    assert within_tolerance.certificate.sentence() in " ".join(str(within_tolerance).split())


def test_controls_have_the_same_cost(within_tolerance: sc.Result) -> None:
    rows = {row.name: row.macs for row in within_tolerance.report_data.controls}
    assert set(rows) == {"secateur", "random", "uniform-magnitude"}
    for name in ("random", "uniform-magnitude"):
        assert 0.7 * rows["secateur"] <= rows[name] <= rows["secateur"] + 1e-9


def test_a_budget_is_met_exactly_or_below(net: Net) -> None:
    result = sc.prune(net, ARGS, **DATA, budget=sc.Budget(macs=0.4), controls=(), **QUICK)
    before, after = sc.measure(net, ARGS, latency=False), sc.measure(result.model, ARGS, latency=False)
    assert 0.2 * before.macs < after.macs <= 0.4 * before.macs
    assert len(result.report_data.rounds) == 1
    assert result.certificate is not None
    assert result.certificate.certified and result.certificate.tolerance is None
    assert result.certificate.drop < result.certificate.bound < 0.5


@pytest.mark.parametrize("budget", [sc.Budget(params=0.4), sc.Budget(macs=0.7, params=0.35)], ids=repr)
def test_budgets_on_parameters_and_on_several_costs(net: Net, budget: sc.Budget) -> None:
    result = sc.prune(net, ARGS, **DATA, budget=budget, controls=(), **QUICK)
    before, after = sc.measure(net, ARGS, latency=False), sc.measure(result.model, ARGS, latency=False)
    assert after.params <= budget.params * before.params
    assert after.macs <= (budget.macs or 1.0) * before.macs
    assert after.params > 0.5 * budget.params * before.params, "no more is removed than the budget asks"


class MacroF1:
    """An object as torchmetrics has them."""

    higher_is_better = True

    def reset(self) -> None:
        self.said: list[torch.Tensor] = []
        self.true: list[torch.Tensor] = []

    def update(self, scores: torch.Tensor, targets: torch.Tensor) -> None:
        self.said.append(scores.argmax(1))
        self.true.append(targets)

    def compute(self) -> float:
        said, true = torch.cat(self.said), torch.cat(self.true)
        right = [int(((said == k) & (true == k)).sum()) for k in (0, 1)]
        named = [int((said == k).sum() + (true == k).sum()) for k in (0, 1)]
        return sum(2 * r / max(1, n) for r, n in zip(right, named, strict=True)) / 2


@pytest.mark.parametrize("metric", ["f1", MacroF1()], ids=["name", "object"])
def test_a_metric_that_is_no_mean_over_samples_decides(net: Net, metric) -> None:
    result = sc.prune(
        net, ARGS, **DATA, budget=sc.Budget(macs=0.08), metric=metric, repair=False, retrain=None, **QUICK
    )
    x, y = stripes(300, 2)
    before, after = (f1_score(y, m(x).argmax(1), average="macro") for m in (net, result.model))
    assert 0 < result.damage.mean == pytest.approx(before - after, abs=1e-6)
    row = next(row for row in result.report_data.quality if row.name.startswith("validation"))
    assert (row.dense, row.pruned) == (pytest.approx(before), pytest.approx(after, abs=1e-6))


def test_models_that_take_and_give_mappings() -> None:
    class Mapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.up, self.down = nn.Embedding(9, 12), nn.Linear(12, 24), nn.Linear(24, 2)

        def forward(self, tokens: Tensor, weights: Tensor) -> dict[str, Tensor]:
            mixed = (self.table(tokens) * weights.unsqueeze(-1)).sum(1)
            return {"logits": self.down(torch.relu(self.up(mixed)))}

    torch.manual_seed(0)
    model = Mapped()
    tokens, weights = torch.randint(9, (60, 5)), torch.rand(60, 5)
    labels = model(tokens=tokens, weights=weights)["logits"].argmax(1).detach()
    data = [{"tokens": tokens, "weights": weights, "labels": labels}]
    inputs = {"tokens": tokens[:4], "weights": weights[:4]}
    result = sc.prune(
        model, (), kwargs=inputs, train=data, validation=data, budget=sc.Budget(macs=0.6), controls=(), **QUICK
    )
    assert result.model(**inputs)["logits"].shape == (4, 2)
    assert result.model.up.out_features < 24


def test_without_test_data_nothing_is_certified(net: Net) -> None:
    data = {k: v for k, v in DATA.items() if k != "test"}
    result = sc.prune(net, ARGS, **data, budget=sc.Budget(macs=0.6), controls=(), **QUICK)
    assert result.certificate is None
    assert any("nothing is certified" in w for w in result.report_data.warnings)


@dataclass(frozen=True)
class _Elsewhere:
    """An executor that counts the scans that it is given."""

    scans: list[int]

    @contextmanager
    def start(self, prober: Probe, *, again: bool = False) -> Iterator[Measure]:
        self.scans.append(len(prober.groups))
        with sc.SerialExecutor().start(prober, again=again) as measure:
            yield measure


def test_scans_are_measured_where_and_as_far_as_is_asked(net: Net) -> None:
    scans: list[int] = []
    found = sc.prune(
        net, ARGS, **DATA, **QUICK, tolerance=0.05, controls=(), executor=_Elsewhere(scans),
        racing=sc.Racing((0.05,), stage=50),
    )  # fmt: skip
    assert scans == [len(found.curves)]
    seen = [count for curve in found.curves.values() for count in curve.seen()[1:]]
    assert 50 <= min(seen) < max(seen) <= 300
    assert found.damage.is_within(0.05)


def test_what_a_budget_turns_on_is_measured_further_than_the_race_asks(net: Net) -> None:
    budget = sc.Budget(macs=0.6)
    how = {"controls": (), "rounds": 1, "racing": sc.Racing((0.4,), stage=25)}
    found = sc.prune(net, ARGS, **DATA, **{**QUICK, **how}, budget=budget)
    program = sc.trace(net, ARGS)
    chosen = sc.allocate(found.curves, sc.costs(program, sc.find_groups(program)), budget)
    seen = {name: curve.seen() for name, curve in found.curves.items()}
    assert all(seen[name][level] >= 150 for name, level in chosen.levels.items() if level)
    assert min(min(counts[1:]) for counts in seen.values()) < 150


def test_a_certificate_spends_what_it_is_given_and_leaves_the_rest(net: Net, tmp_path: Path) -> None:
    how = {**DATA, **QUICK, "budget": sc.Budget(macs=0.6), "controls": ()}
    with pytest.raises(sc.ArgumentError, match="spend needs run_dir"):
        sc.prune(net, ARGS, **how, spend=0.01)
    with pytest.raises(sc.ArgumentError, match=r"spend=0\.2"):
        sc.prune(net, ARGS, **how, spend=0.2, run_dir=tmp_path)
    found = sc.prune(net, ARGS, **how, spend=0.01, run_dir=tmp_path)
    assert found.certificate is not None and found.certificate.confidence == pytest.approx(0.99)
    with pytest.raises(sc.StoreError):
        sc.certify(net, net, DATA["test"], run_dir=tmp_path)
    assert sc.certify(net, net, DATA["test"], run_dir=tmp_path, spend=0.04).level == pytest.approx(0.04)
    for part in ("validation", "train"):
        with pytest.raises(sc.StoreError, match=r"for choices of this run, as its .* data.*use fresh test data"):
            sc.certify(net, net, DATA[part], run_dir=tmp_path)


def test_an_impossible_tolerance_leaves_the_model(net: Net) -> None:
    result = sc.prune(net, ARGS, **DATA, tolerance=1e-9, controls=(), **QUICK)
    assert sc.measure(result.model, ARGS, latency=False) == sc.measure(net, ARGS, latency=False)
    assert any("the model is as it was" in w for w in result.report_data.warnings)


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import test_prune as t
from secateur.training import loop
from secateur.repairs.changes import REPEATED_NORM
from secateur.storage.curve_store import CurveStore
calls = []
def die_at(limit, honest):
    def counted(*args, **kwargs):
        result = honest(*args, **kwargs)
        calls.append(1)
        if len(calls) == limit: os.kill(os.getpid(), signal.SIGKILL)
        return result
    return counted
if sys.argv[3] == 'scan':
    CurveStore.put = die_at(3, CurveStore.put)
else:
    loop.save_checkpoint = die_at(3, loop.save_checkpoint)
t.resumable(Path(sys.argv[1]))
"""


def resumable(run_dir: Path) -> sc.Result:
    how = sc.Retraining(epochs=2, learning_rate=3e-3)
    return sc.prune(
        trained(), ARGS, **DATA, budget=sc.Budget(macs=0.3), retrain=how, controls=("random",), run_dir=run_dir, **QUICK
    )


@pytest.mark.parametrize("moment", ["scan", "retraining"])
def test_killed_and_resumed_is_identical(tmp_path: Path, moment: str) -> None:
    here = str(Path(__file__).parent)
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-c", KILLED, str(tmp_path / "killed"), here, moment]
    assert subprocess.run(command, check=False, env=environment).returncode == -signal.SIGKILL
    resumed, whole = resumable(tmp_path / "killed"), resumable(tmp_path / "whole")
    assert all(torch.equal(v, whole.model.state_dict()[k]) for k, v in resumed.model.state_dict().items())
    assert resumed.plan == whole.plan and resumed.certificate == whole.certificate
    assert resumed.report_data.rounds == whole.report_data.rounds
    assert resumed.report_data.controls == whole.report_data.controls


def test_under_a_tolerance_the_rounds_aim_at_the_narrowest_widths_scanned(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    aimed: list[float] = []
    honest = stages.descend_guarded
    monkeypatch.setattr(stages, "descend_guarded", lambda t, targets, **k: aimed.extend(targets) or honest(t, [], **k))
    curves = sc.prune(net, ARGS, **DATA, tolerance=0.03, retrain=TRAINING, controls=(), **QUICK).curves
    program = sc.trace(net, ARGS)
    groups = sc.find_groups(program)
    scores = {g.name: torch.rand(g.size) for g in groups}
    narrowest = plan_widths(groups, scores, {name: curve.widths[-1] for name, curve in curves.items()})
    least, dense = (sc.measure(m, ARGS, latency=False).macs for m in (sc.cut(net, narrowest, program=program), net))
    assert aimed[-1] == pytest.approx(least / dense) and aimed == sorted(aimed, reverse=True)


@pytest.mark.parametrize("goal", [{"budget": sc.Budget(macs=0.3)}, {"tolerance": 0.03}], ids=str)
def test_a_finished_run_repeats_no_round(net: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, goal: dict) -> None:
    homes = {"trace": scene, "collect": scene, "retrain": rounds}
    counts = dict.fromkeys(homes, 0)

    def counted(name: str):
        honest = getattr(homes[name], name)

        def call(*args, **kwargs):
            counts[name] += 1
            return honest(*args, **kwargs)

        return call

    for name, home in homes.items():
        monkeypatch.setattr(home, name, counted(name))

    def run() -> sc.Result:
        return sc.prune(net, ARGS, **DATA, **goal, retrain=TRAINING, controls=("random",), run_dir=tmp_path, **QUICK)

    first = run()
    assert counts["trace"] > 2 and counts["retrain"] >= 2
    counts.update(dict.fromkeys(counts, 0))
    second = run()
    # One scene is needed for the report: the dense model's.
    assert counts == {"trace": 1, "collect": 1, "retrain": 0}
    assert second.plan == first.plan and second.report_data.rounds == first.report_data.rounds


class SmallestFirst:
    """A criterion of the user's, without a text of its own."""

    needs = frozenset({"weights"})

    def __init__(self, power: float) -> None:
        self.power = power

    def __call__(self, group, statistics) -> Tensor:
        return sc.Magnitude(self.power)(group, statistics)


def with_functions(run_dir: Path, *, rate: float = 3e-3, power: float = 1.0, scale: float = 1.0) -> sc.Result:
    """A run whose settings are functions and objects, made anew at each call."""
    how = sc.Retraining(epochs=1, optimizer=lambda p: torch.optim.SGD(p, lr=rate))
    return sc.prune(
        trained(), ARGS, **DATA, budget=sc.Budget(macs=0.5), retrain=how, controls=(), run_dir=run_dir,
        criterion=SmallestFirst(power), metric=lambda o, t: scale * (o.argmax(1) == t).double(),
        loss=nn.CrossEntropyLoss(), higher_is_better=True, **QUICK,
    )  # fmt: skip


def test_settings_that_are_functions_are_found_again_and_other_ones_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = with_functions(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(rounds, "retrain", None)
        patch.setattr(CurveStore, "put", None)
        again = with_functions(tmp_path)
    assert again.plan == first.plan
    for text in ((tmp_path / "settings.json").read_text(), again.report_data.model_dump_json()):
        assert re.search(r"\b0x[0-9a-f]", text) is None  # an address would differ in the next process; "1.10x" is none
    for name, change in (("retrain", {"rate": 1e-3}), ("criterion", {"power": 2.0}), ("metric", {"scale": 2.0})):
        with pytest.raises(sc.StoreError, match=rf"a run with {name}=.*; this one has {name}="):
            with_functions(tmp_path, **change)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("finished")
    bad(tolerance=None, budget=sc.Budget(macs=0.6), run_dir=path)
    return path


class OtherCode(Net):
    def forward(self, x: Tensor) -> Tensor:
        return 1.5 * super().forward(x)


def other_code() -> Net:
    model = trained()
    model.__class__ = type("Net", (OtherCode,), {"__qualname__": "Net"})
    return model


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("validation data", {"validation": batches(300, 9)}),
        ("calibration data", {"train": batches(400, 9)}),
        ("calibration data", {"calibration": batches(100, 9)}),
        ("example inputs", {"args": (stripes(16, 9)[0],)}),
        ("loss", {"loss": nn.CrossEntropyLoss(label_smoothing=0.1)}),
        ("schedule", {"schedule": "linear"}),
        ("operators", {"model": other_code()}),
    ],
)
def test_saved_rounds_of_other_data_are_refused(finished: Path, name: str, changes: dict) -> None:
    with pytest.raises(sc.StoreError, match=rf"a run with {name}=.*; this one has {name}=.*: choose another") as said:
        bad(tolerance=None, budget=sc.Budget(macs=0.6), run_dir=finished, **changes)
    assert str(finished) in str(said.value)


def bad(**changes):
    values = {**DATA, "tolerance": 0.02, "controls": (), **QUICK, **changes}
    return sc.prune(values.pop("model", trained()), values.pop("args", ARGS), **values)


def test_a_budget_out_of_reach_names_what_could_go_inexactly() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 4), nn.Linear(4, 2))
    message = r"ignore fewer modules; or pass inexact=\['1'\], .* \(1: layer_norm normalises over it\)$"
    with pytest.raises(sc.BudgetError, match=message):
        bad(model=net, tolerance=None, budget=sc.Budget(macs=0.5))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"budget": sc.Budget(macs=0.5)}, sc.ArgumentError, "exactly one of tolerance and budget"),
        ({"tolerance": None}, sc.ArgumentError, "exactly one"),
        ({"tolerance": 1.0}, sc.ArgumentError, "largest possible damage to accuracy, 1;"),
        ({"tolerance": 0.0}, sc.ArgumentError, "positive finite"),
        ({"tolerance": float("inf")}, sc.ArgumentError, "positive finite"),
        ({"tolerance": "1%"}, sc.ArgumentError, "must be a number"),
        ({"tolerance": None, "budget": sc.Budget(macs=1.5)}, sc.ArgumentError, r"Budget\(macs=1.5\)"),
        ({"tolerance": None, "budget": sc.Budget()}, sc.ArgumentError, "bounds nothing"),
        ({"tolerance": None, "budget": sc.Budget(macs=1e-4)}, sc.BudgetError, "or ignore fewer modules$"),
        ({"validation": []}, sc.DataError, "validation is empty"),
        ({"train": None}, sc.ArgumentError, "neither train nor calibration"),
        ({"train": None, "calibration": DATA["train"], "retrain": TRAINING}, sc.ArgumentError, "train is not"),
        ({"metric": "acuracy"}, sc.MetricError, "'acuracy' is not known"),
        ({"metric": lambda o, t: o.sum()}, sc.MetricError, "no direction"),
        ({"metric": lambda o, t: o.sum(), "higher_is_better": True}, sc.MetricError, r"gave \(\) for a batch of 50"),
        ({"loss": nn.CrossEntropyLoss(), "metric": "accuracy", "folds": 1}, sc.ArgumentError, "folds=1"),
        ({"controls": ("best",)}, sc.ArgumentError, "control 'best'"),
        ({"args": (torch.zeros(2, 3),)}, sc.TraceError, "does not run on the example inputs"),
        ({"schedule": "cubical"}, sc.ArgumentError, "'cubical' is not known"),
    ],
)
def test_bad_input_is_named(changes: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        bad(**changes)


def test_nan_in_weights_data_and_loss() -> None:
    broken = trained()
    broken.head.weight.data[0, 0] = torch.nan
    with pytest.raises(sc.NumericalError, match=r"'head.weight' holds 1 values"):
        bad(model=broken)
    spoilt = copy.deepcopy(DATA["validation"])
    spoilt[1][0][3] = torch.nan
    with pytest.raises(sc.DataError, match="validation, batch 1"):
        bad(validation=spoilt)
    with pytest.raises(sc.NumericalError, match="the loss is NaN or infinite on 300 of 300"):
        bad(loss=lambda o, t: o.sum(1) * torch.nan)


def test_a_run_directory_of_another_run_is_refused(tmp_path: Path) -> None:
    bad(tolerance=None, budget=sc.Budget(macs=0.6), run_dir=tmp_path)
    with pytest.raises(sc.StoreError, match="belongs to a run with"):
        bad(tolerance=None, budget=sc.Budget(macs=0.5), run_dir=tmp_path)


def test_what_the_user_ignored_is_among_what_was_left_alone(net: Net) -> None:
    result = sc.prune(net, ARGS, **DATA, budget=sc.Budget(macs=0.6), controls=(), ignore=["conv1"], **QUICK)
    left = {row.where: row.reason for row in result.report_data.left_alone}
    assert left["conv1.weight, dimension 0"] == "ignored at the caller's wish"
    assert left["conv2.weight, dimension 1"] == "ignored at the caller's wish"


@pytest.mark.parametrize("budget", [sc.Budget(params=0.45, macs=0.9), sc.Budget(memory=0.6, params=0.9, macs=0.55)])
def test_every_bound_of_a_budget_holds(net: Net, budget: sc.Budget) -> None:
    without_test = {name: part for name, part in DATA.items() if name != "test"}
    result = sc.prune(net, ARGS, **without_test, budget=budget, retrain=TRAINING, controls=(), **QUICK)
    before, after = sc.measure(net, ARGS, latency=False), sc.measure(result.model, ARGS, latency=False)
    left = {
        "macs": after.macs / before.macs,
        "params": after.params / before.params,
        "memory": after.memory_bytes / before.memory_bytes,
    }
    assert all(left[name] <= bound for name, bound in budget.fractions().items())
    assert any(left[name] > bound - 0.25 for name, bound in budget.fractions().items()), "no bound was used"
    least = min(budget.fractions(), key=budget.fractions().get)
    assert result.report_data.thresholds.of == {"params": "parameters", "macs": "MACs"}[least]


class Twice(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        return self.head(self.bn2(torch.relu(self.bn2(self.conv2(x)))).mean((2, 3)))


def test_what_repair_left_as_it_was_is_told_and_remembered(net: Net, tmp_path: Path) -> None:
    twice = Twice().eval()
    twice.load_state_dict(net.state_dict())

    def told() -> list[tuple[str, str]]:
        found = sc.prune(
            twice, ARGS, **DATA, budget=sc.Budget(macs=0.6), controls=(), run_dir=tmp_path / "run", **QUICK
        )
        return [(row.where, row.reason) for row in found.report_data.left_alone if "repair" in row.where]

    first = told()
    assert ("repair of bn2", REPEATED_NORM) in first
    assert told() == first
