"""Curves against real cuts, and stores that make a second scan free."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from networks import CASES, Case, built
from secateur.data import as_batches
from secateur.errors import ArgumentError
from secateur.graph.groups import find_groups
from secateur.graph.trace import trace
from secateur.measures.evaluate import evaluate
from secateur.measures.metrics import Metric, accuracy, resolve_loss, resolve_metric
from secateur.sensitivity.keys import context_key, fingerprint
from secateur.sensitivity.probe import chosen, probe
from secateur.sensitivity.result import Scan
from secateur.sensitivity.scan import measure_curves, scan
from secateur.storage.curve_store import CurveStore
from secateur.surgery.cut import cut
from secateur.surgery.plan import plan_widths
from secateur.types import Curve

SOME = [c for c in CASES if c.name in {"residual", "LSTM-2-bidirectional", "GRU-1-state", "grouped"}]


def setting(case: Case):
    model = built(case)
    torch.manual_seed(7)
    data = [(case.inputs(5), torch.randint(3, (5,))) for _ in range(3)]
    program = trace(model, (case.inputs(2),))
    groups = [g for g in find_groups(program) if g.exact]
    return model, data, program, groups, {g.name: torch.rand(g.size) for g in groups}


@pytest.mark.parametrize("case", SOME, ids=repr)
def test_measured_damage_is_that_of_the_real_cut(case: Case) -> None:
    model, data, program, groups, scores = setting(case)
    before = copy.deepcopy(model.state_dict())
    curves = scan(program, groups, scores, data, sparsities=(0.3, 0.6))
    loss = resolve_loss("cross_entropy")
    dense = evaluate(model, as_batches(data, "d"), metric=resolve_metric("accuracy"), loss=loss)
    for group in groups:
        curve = curves[group.name]
        assert curve.damage.shape == (len(curve.widths), 15)
        assert not curve.damage[0].any() and curve.sparsities[0] == 0
        for row, width in enumerate(curve.widths[1:], start=1):
            small = cut(model, plan_widths(groups, scores, {group.name: width}), program=program)
            after = evaluate(small, as_batches(data, "d"), metric=resolve_metric("accuracy"), loss=loss)
            np.testing.assert_allclose(curve.loss_damage[row], after.loss - dense.loss, atol=1e-9)
            np.testing.assert_array_equal(curve.damage[row], dense.metric - after.metric)
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())


def test_statistics_of_a_curve() -> None:
    _, data, program, groups, scores = setting(SOME[0])
    curve = scan(program, groups, scores, data, sparsities=(0.5,))[groups[0].name]
    values = curve.damage[1]
    assert curve.mean()[1] == pytest.approx(values.mean())
    assert curve.standard_error()[1] == pytest.approx(values.std(ddof=1) / 15**0.5)


def test_joint_damage_on_chosen_samples_is_part_of_that_on_all() -> None:
    model, data, _, groups, scores = setting(SOME[0])
    batches = as_batches(data, "d")
    metric, loss = resolve_metric("accuracy"), resolve_loss("cross_entropy")
    prober = probe(
        model, groups, scores, batches, metric=metric, loss=loss,
        baseline=evaluate(model, batches, metric=metric, loss=loss),
    )  # fmt: skip
    widths = {g.name: max(1, g.width // 2) for g in groups}
    samples = np.array([0, 3, 4, 9, 14])
    np.testing.assert_allclose(prober.damage(widths, samples)[1], prober.damage(widths)[1][samples], atol=1e-12)
    assert [b.size for b in chosen(batches, samples)] == [3, 1, 1]


def test_a_second_scan_measures_nothing_and_other_data_everything(tmp_path: Path) -> None:
    model, data, _, groups, scores = setting(SOME[0])
    metric, loss = resolve_metric("accuracy"), resolve_loss("cross_entropy")

    def curves(source):
        batches = as_batches(source, "d")
        prober = probe(
            model, groups, scores, batches, metric=metric, loss=loss,
            baseline=evaluate(model, batches, metric=metric, loss=loss),
        )  # fmt: skip
        calls: list[int] = []
        honest = prober.evaluated
        object.__setattr__(prober, "evaluated", lambda *a: calls.append(1) or honest(*a))
        with CurveStore.open(tmp_path / "c.sqlite") as store:
            return measure_curves(prober, sparsities=(0.3, 0.6), store=store), len(calls)

    first, measured = curves(data)
    second, again = curves(data)
    assert measured == 2 * len(groups) * len(data) and again == 0
    assert all(np.array_equal(first[name].damage, second[name].damage) for name in first)
    assert curves(data[:2])[1] == 2 * len(groups) * 2


def test_functions_made_anew_find_their_points_and_other_ones_do_not(tmp_path: Path) -> None:
    model, data, _, groups, scores = setting(SOME[0])
    batches = as_batches(data, "d")

    def scaled(scale: float):
        return lambda outputs, targets: scale * accuracy(outputs, targets)

    def key(*, scale: float = 1.0, higher: bool = True, smoothing: float = 0.0) -> str:
        metric = Metric("m", scaled(scale), higher)
        loss = resolve_loss(torch.nn.CrossEntropyLoss(label_smoothing=smoothing))
        same = evaluate(model, batches, metric=resolve_metric("accuracy"), loss=resolve_loss("cross_entropy"))
        return context_key(probe(model, groups, scores, batches, metric=metric, loss=loss, baseline=same))

    assert key() == key()
    assert len({key(), key(scale=2.0), key(higher=False), key(smoothing=0.1)}) == 4


def test_another_forward_pass_of_the_same_modules_is_measured_anew(tmp_path: Path) -> None:
    class Net(torch.nn.Module):
        def __init__(self, act) -> None:
            super().__init__()
            self.up, self.down, self.act = torch.nn.Linear(4, 6), torch.nn.Linear(6, 3), [act]

        def forward(self, x):
            return self.down(self.act[0](self.up(x)))

    def scanned(act, store):
        torch.manual_seed(0)
        model, x = Net(act).eval(), torch.randn(50, 4)
        program = trace(model, (x[:2],))
        groups = find_groups(program)
        scores = {g.name: torch.arange(float(g.size)) for g in groups}
        data = [(x, torch.arange(50) % 3)]
        return scan(program, groups, scores, data, metric="cross_entropy", sparsities=(0.5,), store=store)

    with CurveStore.open(tmp_path / "points") as store:
        scanned(torch.relu, store)
        kept, plain = scanned(torch.tanh, store), scanned(torch.tanh, None)
        assert scanned(torch.relu, store).tally.measured == 0 < kept.tally.measured
    for name, curve in plain.items():
        np.testing.assert_array_equal(curve.damage, kept[name].damage)


@pytest.mark.parametrize(
    ("place", "value"), [("torch.__version__", "1.0"), ("secateur.sensitivity.keys.own_version", lambda: "0.0.1")]
)
def test_another_version_measures_anew(
    place: str, value: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, data, program, groups, scores = setting(SOME[0])
    with CurveStore.open(tmp_path / "points") as store:

        def measured() -> int:
            return scan(program, groups, scores, data, sparsities=(0.5,), store=store).tally.measured

        first = measured()
        assert measured() == 0
        baseline_and_points = store.count()
        monkeypatch.setattr(place, value)
        assert measured() == first > 0
        assert store.count() == 2 * baseline_and_points


def test_the_fingerprint_of_a_model_holds_no_address() -> None:
    class Printed(torch.nn.Linear):
        def extra_repr(self) -> str:
            return f"function={object()}"

    model = Printed(2, 2)
    found = fingerprint(model)
    with torch.no_grad():
        assert found == fingerprint(model)
        model.bias[0] += 1
    assert found != fingerprint(model)


def test_sparsities_out_of_range() -> None:
    _, data, program, groups, scores = setting(SOME[0])
    for bad in (0.0, 1.0, -0.1):
        with pytest.raises(ArgumentError, match="strictly between 0 and 1"):
            scan(program, groups, scores, data, sparsities=(bad,))


def test_a_copy_of_a_graph_has_its_fingerprint_and_other_weights_have_not() -> None:
    graph = torch.fx.symbolic_trace(torch.nn.Sequential(torch.nn.Linear(2, 2)))
    graph.__class__.__name__ = "Named"
    copied = copy.deepcopy(graph)
    assert str(copied) != str(graph)
    assert fingerprint(copied) == fingerprint(graph)
    copied.get_submodule("0").weight.data[0, 0] += 1
    assert fingerprint(copied) != fingerprint(graph)


def test_a_scan_prints_measured_means_within_80_columns() -> None:
    rng = np.random.default_rng(0)
    widths = {"few": (4, 3, 2), "a.long.name.of.a.module.in.a.deep.network": (24, 22, 17, 12, 7, 2), "rate": (10, 5, 1)}
    curves = {
        name: Curve(
            name, kept, tuple(1 - k / kept[0] for k in kept), rng.normal(size=(len(kept), 9)), np.ones((len(kept), 9))
        )
        for name, kept in widths.items()
    }
    title, heads, *rows = str(Scan(curves, metric="accuracy")).splitlines()
    assert max(map(len, (title, heads, *rows[:3]))) <= 80
    shown = [float(head.rstrip("%")) / 100 for head in heads.split()[1:-2]]
    assert len(shown) == 5
    for row, curve in zip(rows, curves.values(), strict=False):
        cells = [row[i : i + 9].strip() for i in range(len(row) - 54, len(row), 9)]
        assert cells[-1] == f"{curve.standard_error().max():.4f}"
        for level, cell in zip(shown, cells[:-1], strict=True):
            away, at = min((abs(s - level), at) for at, s in enumerate(curve.sparsities) if at)
            assert cell == (f"{curve.mean()[at]:.4f}" if away <= 0.05 + 1e-9 else "")


def test_a_second_scan_does_not_run_the_model(tmp_path: Path) -> None:
    model, data, program, groups, scores = setting(SOME[0])
    calls: list[int] = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    options = {"sparsities": (0.3, 0.6), "metric": ["accuracy", "f1"], "slices": "targets"}
    with CurveStore.open(tmp_path / "c.sqlite") as store:
        first = scan(program, groups, scores, data, **options, store=store)
        assert calls
        calls.clear()
        second = scan(program, groups, scores, data, **options, store=store)
        assert not calls and second.tally.measured == 0
        for name in first.others:
            assert all(np.array_equal(c.damage, second.of(name)[g].damage) for g, c in first.of(name).items())
        changed = [(x + 1, y) for x, y in data]
        assert scan(program, groups, scores, changed, **options, store=store).tally.stored == 0 and calls
