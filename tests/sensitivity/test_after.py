"""Points after repair and after retraining, against a cut, repaired and retrained by hand."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import secateur as sc
from secateur.data import as_batches
from secateur.measures.evaluate import evaluate
from secateur.measures.metrics import resolve_loss, resolve_metric
from secateur.sensitivity.result import Scan
from secateur.storage.curve_store import CurveStore
from secateur.surgery.plan import plan_widths
from secateur.training.loop import retrain
from secateur.types import Curve

LEVELS = (0.4, 0.8)


@dataclass
class Setting:
    program: sc.Program
    groups: Any
    scores: Any
    data: Any
    calibration: Any

    def scan(self, **options: Any) -> sc.Scan:
        return sc.scan(self.program, self.groups, self.scores, self.data, sparsities=LEVELS, **options)

    def damages(self, model: nn.Module) -> tuple[np.ndarray, np.ndarray]:
        metric, loss = resolve_metric("accuracy"), resolve_loss("cross_entropy")
        before, after = (
            evaluate(m, as_batches(self.data, "d"), metric=metric, loss=loss) for m in (self.program.model, model)
        )
        return before.metric - after.metric, after.loss - before.loss


@pytest.fixture(scope="module")
def setting() -> Setting:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 3)).double().eval()
    x = torch.randn(500, 6).double()
    targets = model(x).argmax(1)
    data = list(zip(x[:300].split(64), targets[:300].split(64), strict=True))
    program = sc.trace(model, (x[:2],))
    groups = sc.find_groups(program)
    scores = {g.name: torch.arange(float(g.size)) for g in groups}
    return Setting(program, groups, scores, data, list(zip(x[300:].split(50), targets[300:].split(50), strict=True)))


@pytest.mark.parametrize("reach", ["cut", "all"])
def test_damage_after_repair_is_that_of_the_repaired_cut(setting: Setting, reach: str) -> None:
    found = setting.scan(after=sc.AfterRepair(setting.calibration, reach))
    plain = setting.scan()
    for group in setting.groups:
        for level, width in enumerate(found[group.name].widths[1:], start=1):
            plan = plan_widths(setting.groups, setting.scores, {group.name: width})
            small = sc.cut(setting.program.model, plan, program=setting.program)
            sc.repair(
                small, setting.program.model, plan, setting.calibration, program=setting.program,
                groups=setting.groups, reach=reach,
            )  # fmt: skip
            metric, loss = setting.damages(small)
            np.testing.assert_array_equal(found[group.name].damage[level], metric)
            np.testing.assert_allclose(found[group.name].loss_damage[level], loss, atol=1e-12)
    mean = {name: np.mean([c.mean_loss()[1:].mean() for c in s.values()]) for name, s in [("a", found), ("b", plain)]}
    assert mean["a"] < 0.8 * mean["b"]
    assert "mean damage to accuracy after repair" in str(found) and "after" not in str(plain).splitlines()[0]


def test_damage_after_retraining_is_that_of_the_retrained_cut(setting: Setting) -> None:
    training = sc.Retraining(learning_rate=1e-2)
    after = sc.AfterRetraining(setting.calibration, steps=6, retraining=training, seed=3)
    finalists = setting.scan().finalists(0.2)
    found = sc.scan(
        setting.program, setting.groups, setting.scores, setting.data, sparsities=finalists, after=after
    )  # fmt: skip
    assert {n: c.sparsities[1:] for n, c in found.items()} == finalists
    name, curve = next(iter(found.items()))
    plan = plan_widths(setting.groups, setting.scores, {name: curve.widths[-1]})
    small = sc.cut(setting.program.model, plan, program=setting.program)
    # Four batches are a pass, so six steps are one and a half.
    batches = as_batches([*setting.calibration, *setting.calibration[:2]], "train")
    retrain(small, batches, resolve_loss("cross_entropy"), retraining=training, seed=3)
    np.testing.assert_array_equal(curve.damage[-1], setting.damages(small)[0])
    assert "after 6 steps of retraining" in str(found)
    repaired = sc.AfterRetraining(setting.calibration, steps=6, first=sc.AfterRepair(setting.calibration))
    assert repaired.name == "repair and 6 steps of retraining"
    assert not np.array_equal(setting.scan(after=repaired)[name].loss_damage[1], setting.scan()[name].loss_damage[1])
    with pytest.raises(sc.ArgumentError, match="steps=0"):
        sc.AfterRetraining(setting.calibration, steps=0)


@pytest.mark.parametrize("bisect", [False, True])
def test_races_and_stores_serve_points_after_repair(setting: Setting, bisect: bool, tmp_path: Path) -> None:
    racing = sc.Racing((0.1,), stage=50, bisect=bisect)
    whole = setting.scan(after=sc.AfterRepair(setting.calibration))
    with CurveStore.open(tmp_path / "points") as store:
        raced = setting.scan(after=sc.AfterRepair(setting.calibration), racing=racing, store=store)
        again = setting.scan(after=sc.AfterRepair(list(setting.calibration)), racing=racing, store=store)
        assert raced.tally.stopped > 0 == again.tally.measured
        plain = setting.scan(racing=racing, store=store)
        other = setting.scan(after=sc.AfterRepair(setting.calibration[:2]), racing=racing, store=store)
        assert plain.tally.stored == other.tally.stored == 0
    assert raced.thresholds(0.1) == whole.thresholds(0.1)
    for name, curve in raced.items():
        for level, width in enumerate(curve.widths):
            known = ~np.isnan(curve.damage[level])
            same = whole[name].damage[whole[name].widths.index(width)]
            np.testing.assert_array_equal(curve.damage[level][known], same[known])


def test_each_point_is_recovered_once_and_only_where_samples_are_missing(setting: Setting, tmp_path: Path) -> None:
    calls: list[int] = []

    class Counted:
        name = "nothing"

        def __call__(self, small, plan, *, program, groups):
            calls.append(1)
            return small

    racing = sc.Racing((0.1,), stage=20)
    with CurveStore.open(tmp_path / "points") as store:
        found = setting.scan(after=Counted(), racing=racing, store=store)
        assert len(calls) == sum(len(c.widths) - 1 for c in found.values())
        setting.scan(after=Counted(), racing=racing, store=store)
    assert len(calls) == sum(len(c.widths) - 1 for c in found.values())
    plain = setting.scan(racing=racing)
    for name, curve in found.items():
        np.testing.assert_allclose(curve.loss_damage, plain[name].loss_damage, atol=1e-9)


def test_sparsities_by_group(setting: Setting) -> None:
    name = setting.groups[1].name
    job = setting.program, setting.groups, setting.scores, setting.data
    found = sc.scan(*job, sparsities={name: (0.5,)})
    assert list(found) == [name] and found[name].sparsities == (0, 0.5)
    with pytest.raises(sc.ArgumentError, match=r"given for \['nobody'\]; there are groups"):
        sc.scan(*job, sparsities={"nobody": (0.5,)})


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.grouped, self.last = nn.Conv2d(8, 6, 3, groups=2), nn.Conv2d(6, 4, 1, bias=False)
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.first(x)))
        return self.head(torch.relu(self.last(torch.relu(self.grouped(x)))).mean((2, 3)))


def test_a_refit_in_closed_form_is_least_squares_on_what_the_readers_see(setting: Setting) -> None:
    statistics = sc.collect(setting.program.model, setting.groups, setting.calibration, needs=sc.GroupOBS().needs)
    found = setting.scan(after=sc.AfterRefit(statistics, ridge=1e-10))
    assert found.tally.replayed == found.tally.measured > 0
    x = torch.cat([inputs for inputs, _ in setting.calibration])
    layers = setting.program.model
    for group, (first, reader) in zip(setting.groups, ((0, 2), (2, 4)), strict=True):
        seen = layers[: first + 2](x).detach().numpy()
        for level, width in enumerate(found[group.name].widths[1:], start=1):
            plan = plan_widths(setting.groups, setting.scores, {group.name: width})
            small = sc.cut(layers, plan, program=setting.program)
            kept = plan.keep[group.name].numpy()
            design = np.column_stack([seen[:, kept], np.ones(len(seen))])
            outputs = layers[reader](torch.from_numpy(seen)).detach().numpy()
            weights = np.linalg.lstsq(design, outputs, rcond=None)[0]
            with torch.no_grad():
                small[reader].weight.copy_(torch.from_numpy(weights[:-1].T))
                small[reader].bias.copy_(torch.from_numpy(weights[-1]))
            metric, loss = setting.damages(small)
            np.testing.assert_allclose(found[group.name].loss_damage[level], loss, atol=1e-6)
            np.testing.assert_array_equal(found[group.name].damage[level], metric)
    plain, repaired = setting.scan(), setting.scan(after=sc.AfterRepair(setting.calibration))

    def mean(scanned: sc.Scan) -> float:
        return float(np.mean([c.mean_loss()[1:].mean() for c in scanned.values()]))

    assert mean(found) == pytest.approx(mean(repaired), rel=0.2)
    assert mean(found) < 0.8 * mean(plain)


def test_a_refit_of_convolutions_keeps_their_outputs_closest_and_leaves_the_model() -> None:
    torch.manual_seed(1)
    model = Convolutions().double().eval()
    x = torch.randn(80, 2, 6, 6).double()
    program = sc.trace(model, (x[:2],))
    groups = sc.find_groups(program)
    statistics = sc.collect(model, groups, [x], needs=sc.GroupOBS().needs)
    after = sc.AfterRefit(statistics, ridge=1e-9)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    inputs: dict[str, torch.Tensor] = {}
    for name, module in model.named_children():
        module.register_forward_hook(lambda _, args, output, name=name: inputs.update({name: args[0]}))
    model(x)
    assert len(groups) == 4
    for group in groups:
        name = next(s.parameter for s in group.slices if s.masked).removesuffix(".weight")
        reader = model.get_submodule(name)
        plan = plan_widths(groups, {group.name: torch.arange(float(group.size))}, {group.name: group.width - 1})
        tensors = after.tensors(program, groups, plan)
        seen = inputs[name].detach()

        def missed(weight: torch.Tensor, bias: torch.Tensor | None, reader=reader, seen=seen) -> float:
            old, new = (
                torch.func.functional_call(reader, p, (seen,))
                for p in (
                    dict(reader.named_parameters()),
                    {"weight": weight} | ({} if bias is None else {"bias": bias}),
                )
            )
            return float((old - new).detach().square().mean())

        weight = tensors[f"{name}.weight"]
        bias = tensors.get(f"{name}.bias")
        assert (bias is None) == (reader.bias is None)
        best = missed(weight, bias)
        gone = (weight == 0) & (before[f"{name}.weight"] != 0)
        assert gone.any()
        masked = before[f"{name}.weight"].masked_fill(gone, 0.0)
        assert best < 0.9 * missed(masked, before.get(f"{name}.bias"))
        for _ in range(5):
            step = 1e-3 * torch.randn_like(weight).masked_fill(gone, 0.0)
            shift = None if bias is None else bias + 1e-3 * torch.randn_like(bias)
            assert missed(weight + step, shift) > best
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_refit_needs_its_statistics_and_masked_groups(setting: Setting) -> None:
    bare = sc.collect(setting.program.model, setting.groups, setting.calibration, needs=sc.Taylor().needs)
    with pytest.raises(sc.ArgumentError, match=r"Gram matrix of the inputs of '2.weight' was not collected"):
        setting.scan(after=sc.AfterRefit(bare))
    with pytest.raises(sc.ArgumentError, match="ridge=0"):
        sc.AfterRefit(bare, ridge=0)
    tied = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3)).double().eval()
    program = sc.trace(tied, (setting.data[0][0][:2],))
    groups = [g for g in sc.find_groups(program) if not g.exact]
    grams = sc.collect(tied, groups, setting.calibration, needs=sc.GroupOBS().needs)
    with pytest.raises(sc.ArgumentError, match="serves masked groups only"):
        sc.scan(program, groups, {groups[0].name: torch.rand(8)}, setting.data, after=sc.AfterRefit(grams))


def test_what_repair_makes_up_for_is_not_called_a_broken_probe() -> None:
    whole = np.zeros((2, 5))
    curve = Curve("a", (4, 2), (0.0, 0.5), whole, whole)
    said = str(Scan({"a": curve}, after="repair"))
    assert said.endswith("before calling them robust, unless repair made up for all of it")
    assert str(Scan({"a": curve})).endswith("before calling them robust")
