"""Scans with several metrics, slices and metrics that are no means, against evaluations of the real cut."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score
from torch import nn
from torchmetrics.classification import MulticlassAUROC

from secateur.data import Batch
from secateur.errors import ArgumentError, DataError
from secateur.graph.groups import find_groups
from secateur.graph.trace import trace
from secateur.sensitivity.racing import Racing
from secateur.sensitivity.scan import scan
from secateur.storage.curve_store import CurveStore
from secateur.surgery.cut import cut
from secateur.surgery.plan import plan_widths

LEVELS = (0.4, 0.8)


def margin(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return outputs[torch.arange(len(targets)), targets] - outputs.mean(1)


@pytest.fixture(scope="module")
def setting():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 3)).double().eval()
    x = torch.randn(400, 6).double()
    targets = (model(x) + 0.1 * torch.randn(400, 3)).argmax(1)
    data = [(x[k : k + 64], targets[k : k + 64]) for k in range(0, 400, 64)]
    program = trace(model, (x[:2],))
    groups = find_groups(program)
    scores = {g.name: torch.arange(float(g.size)) for g in groups}
    return program, groups, scores, data


def outputs_of(setting, group, width) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    program, groups, scores, data = setting
    small = cut(program.model, plan_widths(groups, scores, {group.name: width}), program=program)
    x, y = (torch.cat(parts) for parts in zip(*data, strict=True))
    with torch.no_grad():
        return program.model(x), small(x), y


def test_every_metric_has_the_damage_of_the_real_cut(setting) -> None:
    metrics = ["accuracy", "loss", "f1", "perplexity", "top2", margin, MulticlassAUROC(3)]
    found = scan(*setting, metric=metrics, higher_is_better=True, sparsities=LEVELS)
    assert list(found.others) == ["loss", "f1", "perplexity", "top2_accuracy", "margin", "MulticlassAUROC"]
    for group in setting[1]:
        for level, width in enumerate(found[group.name].widths[1:], start=1):
            before, after, y = outputs_of(setting, group, width)

            def lost(value, before=before, after=after, y=y):
                return float(value(before, y)) - float(value(after, y))

            expected = {
                "accuracy": lost(lambda o, y: (o.argmax(1) == y).double().mean()),
                "loss": -lost(nn.functional.cross_entropy),
                "f1": lost(lambda o, y: f1_score(y, o.argmax(1), average="macro")),
                "perplexity": -lost(lambda o, y: nn.functional.cross_entropy(o, y).exp()),
                "top2_accuracy": lost(lambda o, y: (o.topk(2).indices == y[:, None]).any(1).double().mean()),
                "margin": lost(lambda o, y: margin(o, y).mean()),
                "MulticlassAUROC": lost(MulticlassAUROC(3)),
            }
            for name, value in expected.items():
                curve = found.of(name)[group.name]
                assert curve.mean()[level] == pytest.approx(value, abs=1e-6), name
                assert curve.standard_error()[level] > 0
    assert "mean damage to perplexity by sparsity" in str(found)
    both = found.thresholds({"accuracy": 0.2, "f1": 0.05})
    single = found.thresholds(0.2), {n: c for n, c in found.thresholds({"f1": 0.05}).items()}
    assert both == {name: min(single[0][name], single[1][name]) for name in both}
    with pytest.raises(ArgumentError, match="'mse' was not measured; there are"):
        found.thresholds({"mse": 1.0})


@pytest.mark.parametrize("how", ["targets", "labels", "function"])
def test_the_worst_slice_is_that_of_the_real_cut(setting, how: str) -> None:
    y = torch.cat([targets for _, targets in setting[3]])

    def of_batch(batch: Batch) -> torch.Tensor:
        return batch.targets

    slices = {"targets": "targets", "labels": y.numpy(), "function": of_batch}[how]
    found = scan(*setting, metric=["accuracy", "f1"], slices=slices, sparsities=LEVELS)
    group = setting[1][0]
    curve, table = found.of("accuracy on the worst slice")[group.name], found.by_slice["accuracy"][group.name]
    assert table.labels == (0, 1, 2)
    for level, width in enumerate(curve.widths[1:], start=1):
        before, after, _ = outputs_of(setting, group, width)
        lost = [((before.argmax(1) == y).double() - (after.argmax(1) == y).double())[y == c] for c in range(3)]
        np.testing.assert_allclose(table.mean[level], [part.mean() for part in lost])
        worst = max(lost, key=lambda part: float(part.mean()))
        assert curve.mean()[level] == pytest.approx(float(worst.mean()))
        assert curve.standard_error()[level] == pytest.approx(float(worst.std()) / len(worst) ** 0.5, rel=0.02)
        assert table.mean[level].max() == pytest.approx(curve.mean()[level])


def test_slices_that_do_not_fit_are_refused(setting) -> None:
    with pytest.raises(DataError, match="needed one for each of 400"):
        scan(*setting, slices=np.zeros(3))
    with pytest.raises(ArgumentError, match="'classes' is not known"):
        scan(*setting, slices="classes")
    sequences = [(x, y[:, None]) for x, y in setting[3]]
    with pytest.raises(ArgumentError, match="one class a sample"):
        scan(*setting[:3], sequences, slices="targets", metric=lambda o, t: o[:, 0], loss=lambda o, t: o[:, 0],
             higher_is_better=True)  # fmt: skip


def test_a_race_on_a_metric_that_is_no_mean_stops_and_a_store_has_all_metrics(setting, tmp_path: Path) -> None:
    racing = Racing((0.15,), stage=50, seed=1)
    whole = scan(*setting, metric=["f1", "accuracy"], sparsities=LEVELS)
    with CurveStore.open(tmp_path / "points") as store:
        raced = scan(*setting, metric=["f1", "accuracy"], sparsities=LEVELS, racing=racing, store=store)
        assert raced.tally.stopped > 0
        again = scan(*setting, metric=["f1", "accuracy"], sparsities=LEVELS, racing=racing, store=store)
        assert again.tally.measured == 0
        other = scan(*setting, metric=["f1"], sparsities=LEVELS, store=store)
        assert other.tally.stored == 0
    for name, curve in raced.of("accuracy").items():
        np.testing.assert_array_equal(curve.damage, again.of("accuracy")[name].damage)
        known = ~np.isnan(curve.damage)
        np.testing.assert_array_equal(curve.damage[known], whole.of("accuracy")[name].damage[known])
        assert (known == ~np.isnan(raced[name].damage)).all()
    # Few samples are enough for points far from the boundary only, so thresholds are those of all samples.
    assert raced.thresholds(0.15) == whole.thresholds(0.15)
