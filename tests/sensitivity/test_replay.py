"""Running a program from the middle, against the masked module; and what is done where it cannot be."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from counting import Counting
from networks import CASES, Case, built
from secateur.data import Batch, as_batches
from secateur.errors import SurgeryError
from secateur.graph.groups import find_groups
from secateur.graph.trace import trace
from secateur.measures.evaluate import evaluate
from secateur.measures.metrics import resolve_loss, resolve_metric
from secateur.sensitivity.probe import Probe, probe
from secateur.sensitivity.replay import Change, Replay
from secateur.sensitivity.scan import measure_curves
from secateur.surgery.mask import mask
from secateur.surgery.plan import plan_widths


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_replayed_outputs_are_those_of_the_masked_module(case: Case) -> None:
    model = built(case)
    program = trace(model, (case.inputs(2),))
    groups = find_groups(program)
    scores = {g.name: torch.rand(g.size) for g in groups}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batch = Batch((case.inputs(5),), {}, torch.zeros(5, dtype=torch.int64))
    metric, loss = resolve_metric(lambda o, t: torch.zeros(5), True), lambda o, t: torch.zeros(5)
    prober = Probe(model, groups, scores, as_batches([], "d"), metric, loss, None, program, Replay.of(program))
    plans = [plan_widths(groups, scores, {g.name: w}) for g in groups for w in (max(1, g.width // 2), g.width)]
    seen = []
    for number, found in prober.replay.outputs(batch, [prober.change(plan) for plan in plans]):
        with torch.no_grad():
            expected = mask(model, plans[number], program=program)(*batch.args)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        seen.append(number)
    assert sorted(seen) == list(range(len(plans)))
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())


class Chain(nn.Module):
    """Linear layers that count their calls by what an operator sees; in-place activations between them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
            half = x[:, :2]
            half.relu_()
            x += 1
        return x


def test_only_what_follows_is_run_and_writing_in_place_reaches_no_other_run() -> None:
    torch.manual_seed(0)
    model = Chain().double().eval()
    program = trace(model, (torch.randn(2, 4).double(),))
    replay = Replay.of(program)
    x = torch.randn(7, 4).double()
    kept = x.clone()
    names = [f"layers.{k}.weight" for k in (3, 0, 2, 2)]
    changes = [Change({name}, lambda name=name: {name: model.state_dict()[name] * 0.5}) for name in names]
    with Counting() as counter:
        found = dict(replay.outputs(Batch((x,), {}, None), changes))
    # The walk makes 3 of 4 calls, the runs 1, 4, 2 and 2.
    assert counter.calls == 3 + 1 + 4 + 2 + 2
    assert torch.equal(x, kept)
    for number, name in enumerate(names):
        changed = Chain().double().eval()
        changed.load_state_dict({**model.state_dict(), name: model.state_dict()[name] * 0.5})
        assert torch.equal(found[number], changed(kept.clone()))
    assert replay.first({"no such tensor"}) == len(replay._calls)


def test_threads_share_a_replay() -> None:
    case = next(c for c in CASES if c.name == "residual")
    model = built(case)
    replay = Replay.of(trace(model, (case.inputs(2),)))
    batches = [Batch((case.inputs(n),), {}, None) for n in (1, 2, 3, 4)]
    names = [name for name, _ in model.named_parameters()]
    changes = [Change({name}, lambda name=name: {name: torch.zeros_like(model.state_dict()[name])}) for name in names]
    alone = [dict(replay.outputs(batch, changes)) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda batch: dict(replay.outputs(batch, changes)), batches))
    for a, b in zip(alone, together, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


class FixedBatch(nn.Module):
    """Its forward pass holds the batch size as a number."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(x))
        return self.second(y * torch.ones(2, 1, dtype=y.dtype) if len(x) == 2 else y * 2)


class Steered(FixedBatch):
    """Its control flow depends on values."""

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(x))
        return self.second(y * 2 if float(y.sum()) > 1e6 else y)


@pytest.mark.parametrize(("model", "why"), [(FixedBatch(), "size|shape|outputs"), (Steered(), "recorded")])
def test_what_cannot_be_replayed_is_measured_by_the_module(model: nn.Module, why: str) -> None:
    model = model.double().eval()
    program = trace(model, (torch.randn(2, 4).double(),))
    groups = find_groups(program)
    data = as_batches([(torch.randn(5, 4).double(), torch.randint(3, (5,)))], "d")
    metric, loss = resolve_metric("accuracy"), resolve_loss("cross_entropy")
    baseline = evaluate(model, data, metric=metric, loss=loss)
    scores = {g.name: torch.rand(g.size) for g in groups}
    prober = probe(model, groups, scores, data, metric=metric, loss=loss, baseline=baseline, program=program)
    curve = measure_curves(prober, sparsities=(0.5,))[groups[0].name]
    np.testing.assert_array_equal(curve.loss_damage[1], prober.damage({groups[0].name: curve.widths[1]})[1])
    if isinstance(model, Steered):
        with pytest.raises(SurgeryError, match=why):
            Replay.of(program)
    else:
        assert prober.replay is not None
        assert prober.replay.refusal(Batch((torch.randn(5, 4).double(),), {}, None)) != ""
        assert prober.replay.refusal(Batch((torch.randn(2, 4).double(),), {}, None)) == ""


def test_arguments_in_another_layout_are_refused() -> None:
    model = nn.Linear(3, 2)
    replay = Replay.of(trace(model, (torch.zeros(2, 3),)))
    given = replay.refusal(Batch((), {"input": torch.zeros(2, 3)}, None))
    assert given.startswith("batches give (input=_), the example inputs gave (_); trace the model with arguments")
