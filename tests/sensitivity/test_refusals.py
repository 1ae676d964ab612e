"""What cannot be measured rightly is refused, in words that say what to do."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import killable
from secateur.errors import ArgumentError, DataError, MetricError, SecateurError, StoreError
from secateur.graph.groups import find_groups
from secateur.graph.trace import trace
from secateur.measures.metrics import resolve_loss
from secateur.sensitivity.racing import Racing
from secateur.sensitivity.scan import scan
from secateur.storage.curve_store import CurveStore
from secateur.surgery.plan import Plan
from secateur.types import Budget

JOB = killable.job()
DATA = JOB[3]
WHOLE = TensorDataset(torch.cat([x for x, _ in DATA]), torch.cat([y for _, y in DATA]))


class _Once:
    """Batches that can be had once."""

    def __init__(self) -> None:
        self.batches = iter(DATA)

    def __iter__(self) -> Iterator[Any]:
        return self.batches


def test_data_in_another_order_each_time_is_refused() -> None:
    loader = DataLoader(WHOLE, batch_size=40, shuffle=True)
    for racing in (None, Racing((0.1,), stage=20)):
        with pytest.raises(DataError, match=r"validation gives another first batch .* neither shuffles nor augments"):
            scan(*JOB[:3], loader, racing=racing)
    one, two = scan(*JOB), scan(*JOB[:3], DataLoader(WHOLE, batch_size=40))
    for name, curve in one.items():
        np.testing.assert_array_equal(curve.loss_damage, two[name].loss_damage)


class _Scaled(nn.Module):
    """Takes a tensor that holds no samples."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(12, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return self.two(torch.tanh(self.one(x))) * scale


class _Centred(nn.Module):
    """Samples depend on each other."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(12, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return self.two(torch.tanh(self.one(x - x.mean(0)))) * scale.mean()


@pytest.mark.parametrize(
    ("model", "size", "words"),
    [
        (_Scaled(), 10, None),
        (_Scaled(), 5, r"the model fails \(RuntimeError.* a tensor as long as the batch"),
        (
            _Centred(),
            20,
            r"the losses of \d+ of (10|2) samples are others.*samples depend on each other.* or racing=None",
        ),
    ],
)
@pytest.mark.parametrize("most", [64, 4])
def test_samples_that_cannot_be_drawn_are_not_raced(
    model: nn.Module, size: int, words: str | None, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("secateur.sensitivity.mixing.MOST", most)
    torch.manual_seed(0)
    x, scale = torch.randn(60, 12), torch.rand(5) * 10
    data = [(part, scale, torch.arange(size) % 5) for part in x.split(size)]
    program = trace(model, (x[:3], scale))
    groups = find_groups(program)
    job = program, groups, {group.name: torch.arange(float(group.size)) for group in groups}, data
    whole = scan(*job)
    if words is not None:
        with pytest.raises(DataError, match=words):
            scan(*job, racing=Racing((0.1,), stage=5))
        return
    for name, curve in scan(*job, racing=Racing((0.1,), stage=5)).items():
        known = ~np.isnan(curve.loss_damage)
        np.testing.assert_allclose(curve.loss_damage[known], whole[name].loss_damage[known], atol=1e-5)


@pytest.mark.parametrize("alike", [True, False])
def test_losses_that_differ_by_rounding_may_be_drawn(alike: bool) -> None:
    """Of an order of sums that depends on how many samples there are."""

    def rounded(outputs: Tensor, targets: Tensor) -> Tensor:
        losses = 1 + 0 * outputs[:, 0] if alike else torch.sin(1000 * outputs[:, 0])
        return losses + (5e-4 if alike else 0.02 * losses.std()) * (len(targets) == 20)

    assert scan(*JOB, loss=rounded, racing=Racing((0.1,)))


@pytest.mark.parametrize(
    ("validation", "error", "words"),
    [
        (_Once(), DataError, "starts anew each time it is read"),
        ([x for x, _ in DATA], MetricError, r"targets of type NoneType.*pass batches \(inputs\.\.\., targets\)"),
        (WHOLE.tensors, MetricError, r"pass batches \(inputs\.\.\., targets\)"),
        (
            [DATA[0], (DATA[1][0][:, :5], DATA[1][1])],
            DataError,
            r"Sequential failed on batch 1, .*\(40, 5\) of float32",
        ),
    ],
)
def test_data_that_a_model_cannot_be_measured_on(validation: Any, error: type[SecateurError], words: str) -> None:
    with pytest.raises(error, match=words):
        scan(*JOB[:3], validation)


@pytest.mark.filterwarnings("ignore:Using a target size")
def test_targets_that_are_held_against_every_output_are_refused() -> None:
    outputs = JOB[0].model[0](DATA[0][0]).detach()[:, :1]
    targets = DATA[0][1].float()
    for shaped in (outputs, outputs[..., None]):
        with pytest.raises(MetricError, match=r"MSELoss held each of the outputs .* of the shape of the outputs"):
            resolve_loss(nn.MSELoss())(shaped, targets)
    same = resolve_loss(nn.MSELoss())(outputs.flatten(), targets)
    np.testing.assert_array_equal(same, (outputs.flatten() - targets) ** 2)


def test_a_metric_or_loss_leaves_the_outputs_to_others_as_they_are() -> None:
    def losses(outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.exp_()[torch.arange(len(targets)), targets]

    for measured in ({"loss": losses}, {"metric": [losses, "accuracy"], "higher_is_better": False}):
        with pytest.raises(MetricError, match=r"writes to the outputs or targets in place; let it work on a copy"):
            scan(*JOB, **measured)
    with torch.inference_mode():
        assert scan(*JOB)


def test_what_is_done_after_a_cut_gives_a_model() -> None:
    def forgetful(small: nn.Module, plan: Plan, **_: Any) -> None:
        small.eval()

    with pytest.raises(ArgumentError, match="after= gave a NoneType; needed the model"):
        scan(*JOB, after=forgetful)


@pytest.mark.parametrize("sparsities", [0.5, "half", None, ("a", 0.3), {"0": 0.5}])
def test_sparsities_that_are_no_fractions(sparsities: Any) -> None:
    with pytest.raises(ArgumentError, match="needed fractions"):
        scan(*JOB, sparsities=sparsities)


def test_sparsities_may_be_a_tensor() -> None:
    one, two = scan(*JOB, sparsities=[0.25, 0.5]), scan(*JOB, sparsities=torch.tensor([0.25, 0.5]))
    assert {name: curve.widths for name, curve in one.items()} == {name: curve.widths for name, curve in two.items()}


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("racing", (0.1,)),
        ("deepen", Budget(macs=0.5)),
        ("executor", "ray"),
        ("store", Path("points")),
        ("store", {}),
        ("progress", True),
        ("after", "repair"),
    ],
)
def test_an_argument_of_another_kind_is_named(name: str, given: Any) -> None:
    with pytest.raises(ArgumentError, match=f"{name} is a {type(given).__name__}; pass "):
        scan(*JOB, **{name: given})


def test_a_store_that_was_not_entered_is_told_how(tmp_path: Path) -> None:
    given: Any = CurveStore.open(tmp_path / "points")
    with pytest.raises(ArgumentError, match=r"pass the store of `with sc\.CurveStore\.open\(path\) as store:`"):
        scan(*JOB, store=given)


@pytest.mark.parametrize("surrogate", [3, {"0": 0.5}])
def test_a_surrogate_says_what_is_predicted_at_each_width(surrogate: Any) -> None:
    with pytest.raises(ArgumentError, match=r"surrogate is a \w+; pass \{group name"):
        scan(*JOB, surrogate=surrogate)


@pytest.mark.parametrize("groups", [JOB[1][0], {group.name: group for group in JOB[1]}, ["0"]])
def test_groups_are_a_list(groups: Any) -> None:
    with pytest.raises(ArgumentError, match=r"groups is a \w+; pass a list of groups"):
        scan(JOB[0], groups, *JOB[2:])


def test_a_model_that_was_changed_since_it_was_traced() -> None:
    program, groups, scores, data = killable.job()
    program.model[2] = nn.Tanh()
    with pytest.raises(ArgumentError, match=r"the model has no '2\.\w+', in which units of the groups lie"):
        scan(program, groups, scores, data)


@pytest.mark.parametrize("kind", [np.asarray, list])
def test_scores_may_be_arrays_or_lists(kind: Any) -> None:
    program, groups, scores, data = JOB
    one, two = scan(*JOB), scan(program, groups, {name: kind(own) for name, own in scores.items()}, data)
    for name, curve in one.items():
        np.testing.assert_array_equal(curve.loss_damage, two[name].loss_damage)


def test_a_model_is_no_program() -> None:
    with pytest.raises(ArgumentError, match=r"program is a Sequential; pass what sc\.trace"):
        scan(JOB[0].model, *JOB[1:])


@pytest.mark.parametrize("boundaries", [0.1, "0.1", (), (float("nan"),), ("0.1",)])
def test_boundaries_are_numbers(boundaries: Any) -> None:
    with pytest.raises(ArgumentError, match=r"one or more finite numbers, such as \(0.01,\)"):
        Racing(boundaries)


@pytest.mark.parametrize("label", [None, float("nan")])
def test_slices_are_of_one_kind(label: Any) -> None:
    labels: Any = [label, *[1.0] * (killable.SAMPLES - 1)]
    with pytest.raises(DataError, match=r"needed values of one type"):
        scan(*JOB, slices=labels)


def test_a_store_that_cannot_be_read(tmp_path: Path) -> None:
    other = tmp_path / "other"
    with sqlite3.connect(other) as raw:
        raw.execute("CREATE TABLE points (name)")
    raw.close()
    with CurveStore.open(other) as store, pytest.raises(StoreError, match=r"no such column.*choose another file"):
        scan(*JOB, store=store)
    with pytest.raises(StoreError, match=r"closed database.*open the store anew"):
        scan(*JOB, store=store)
