"""Retraining: deterministic, resumable bit for bit, and stopped by a loss that is not finite."""

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn
from torch.nn import functional

from secateur.cli.batches import TensorBatches
from secateur.data import as_batches
from secateur.errors import ArgumentError, NumericalError
from secateur.measures.metrics import cross_entropy
from secateur.training.distill import distillation_loss
from secateur.training.loop import Retraining, retrain
from secateur.training.schedules import cubic, exponential, linear, one_shot, resolve_schedule


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3))


def batches():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(96, 5, generator=generator)
    return as_batches(TensorBatches(x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long(), 16, shuffle=True), "train")


def trained(epochs: int = 4, checkpoint: Path | None = None, **options) -> nn.Module:
    how = Retraining(epochs=epochs, learning_rate=1e-2, **options)
    return retrain(network(), batches(), cross_entropy, retraining=how, seed=3, checkpoint=checkpoint)


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


def test_training_learns_and_does_not_depend_on_what_ran_before() -> None:
    first = trained()
    again, _ = network(), torch.rand(17)
    state = torch.get_rng_state()
    second = retrain(again, batches(), cross_entropy, retraining=Retraining(epochs=4, learning_rate=1e-2), seed=3)
    assert same(first, second) and not first.training
    assert torch.equal(torch.get_rng_state(), state), "the caller's random state is put back"
    x = torch.randn(500, 5)
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
    assert (trained(epochs=25)(x).argmax(1) == y).float().mean() > 0.7
    assert (network().eval()(x).argmax(1) == y).float().mean() < 0.6


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import test_training as t
from secateur.training import loop
save, done = loop.save_checkpoint, []
def kill_after_two(*args):
    save(*args); done.append(1)
    if len(done) == 2: os.kill(os.getpid(), signal.SIGKILL)
loop.save_checkpoint = kill_after_two
t.trained(checkpoint=Path(sys.argv[1]))
"""


def test_killed_and_resumed_is_the_same_bit_for_bit(tmp_path: Path) -> None:
    folder = str(Path(__file__).parent)
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), folder], check=False, env=environment)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "latest.json").exists()
    assert same(trained(checkpoint=tmp_path), trained())


def test_a_loss_that_is_not_finite_is_tried_once_more_and_then_refused(caplog: pytest.LogCaptureFixture) -> None:
    model = network()
    before = {k: v.clone() for k, v in model.state_dict().items()}

    def broken(outputs, targets):
        return cross_entropy(outputs, targets) * torch.where(targets == 1, torch.nan, 1.0)

    with caplog.at_level(logging.WARNING), pytest.raises(NumericalError, match=r"epoch 1, batch 1.*learning_rate"):
        retrain(model, batches(), broken, retraining=Retraining(), seed=0)
    assert "tenth" in caplog.text
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())


def test_frozen_parameters_stay_and_own_epochs_are_called() -> None:
    model = network()
    model[0].weight.requires_grad_(False)
    before = model[0].weight.clone()
    retrain(model, batches(), cross_entropy, retraining=Retraining(epochs=1), seed=0)
    assert torch.equal(model[0].weight, before)
    seen: list[int] = []
    how = Retraining(epochs=3, epoch_function=lambda m, epoch: seen.append(epoch))
    retrain(model, batches(), cross_entropy, retraining=how, seed=0)
    assert seen == [0, 1, 2]


def test_distillation_moves_towards_the_teacher() -> None:
    teacher = trained(epochs=6)
    x = torch.randn(200, 5)

    def gap(model: nn.Module) -> float:
        return float(distillation_loss(model(x), teacher(x), temperature=1.0).mean().detach())

    taught = network()
    how = Retraining(epochs=4, learning_rate=1e-2, distill=1.0)
    retrain(taught, batches(), lambda o, t: torch.zeros(len(t)), retraining=how, seed=0, teacher=teacher)
    assert gap(taught) < 0.5 * gap(network().eval())


def test_distillation_is_the_divergence_of_tempered_softmaxes() -> None:
    student, teacher = torch.randn(6, 4).double(), torch.randn(6, 4).double()
    p, q = (teacher / 3).softmax(1), (student / 3).softmax(1)
    expected = 9 * (p * (p / q).log()).sum(1)
    torch.testing.assert_close(distillation_loss(student, teacher, temperature=3.0), expected)
    assert functional.kl_div(q.log(), p, reduction="batchmean") * 9 == pytest.approx(expected.mean().item())


@given(st.integers(1, 12), st.sampled_from([linear, cubic, exponential]))
def test_schedules_rise_to_one(rounds: int, make) -> None:
    schedule = make(rounds)
    values = [schedule(k) for k in range(rounds)]
    assert values == sorted(values) and values[-1] == 1.0 and values[0] > 0
    assert schedule(rounds + 5) == 1.0


def test_schedules_by_name() -> None:
    assert one_shot().rounds == 1
    assert resolve_schedule("cubic", rounds=2)(0) == 0.875
    with pytest.raises(ArgumentError, match="'cubix' is not known"):
        resolve_schedule("cubix", rounds=2)
    for bad in ({"epochs": 0}, {"distill": 1.5}, {"learning_rate": 0.0}):
        with pytest.raises(ArgumentError):
            Retraining(**bad)
