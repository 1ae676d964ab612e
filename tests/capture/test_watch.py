"""Every use of a weight is seen, however it is called; nothing that the model computes changes."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils import _pytree as pytree

from secateur.capture.calls import NONE, Call, column_units
from secateur.capture.forms import Convolution
from secateur.capture.gram import gram_of, some_positions
from secateur.capture.lockstep import End, Norm, in_lockstep
from secateur.capture.watch import watching
from secateur.data import Batch
from secateur.types import Slice


@pytest.fixture(autouse=True)
def double() -> Any:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def tensors(outputs: Any) -> list[Tensor]:
    found = outputs.data if isinstance(outputs, PackedSequence) else outputs
    if isinstance(found, tuple):
        return [t for part in found for t in tensors(part)]
    return [t for t in pytree.tree_leaves(found) if isinstance(t, Tensor)]


def seen_calls(model: nn.Module, *args: Any) -> list[str]:
    """Names of the weights seen; each call's matrices must give its outputs, and the model what it gave."""
    model.eval()
    seen: list[str] = []

    def visit(call: Call) -> Tensor:
        outputs = call.run()
        rows = call.form.responses(outputs.detach())
        found = torch.einsum("npgc,grc->npgr", call.design(), call.matrix())
        if call.offset is not None:
            found = found + call.offset.reshape(rows.shape[2], -1)
        assert torch.allclose(found, rows, atol=1e-12)
        assert call.form.positions(call.inputs) == rows.shape[1]
        assert torch.equal(call.form.weight(call.matrix(), call.values.shape), call.values)
        state = model.state_dict(keep_vars=True)[call.weight.name].detach()[call.weight.start : call.weight.stop]
        assert torch.equal(state, call.values.detach())
        seen.append(call.weight.name)
        return outputs

    before = tensors(model(*args))
    with watching(model, visit):
        after = tensors(model(*args))
    assert len(before) == len(after)
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(before, after, strict=True))
    return seen


class Bare(nn.Module):
    """Weights that belong to no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(3, 4))
        self.b = nn.Parameter(torch.randn(4))
        self.experts = nn.Parameter(torch.randn(2, 4, 5))

    def forward(self, x: Tensor) -> Any:
        y, z = x @ self.w, torch.addmm(self.b, x, self.w)
        both = torch.bmm(torch.stack([y, z]), self.experts)
        return both, y @ self.w.t(), y.matmul(self.w.T), torch.mm(x, self.w * 2)


LAYERS = {
    "linear": (lambda: nn.Linear(3, 2), (4, 5, 3), 1),
    "grouped convolution": (lambda: nn.Conv2d(4, 6, 3, 2, 1, groups=2), (4, 4, 7, 8), 1),
    "dilated, same": (lambda: nn.Conv1d(4, 6, 4, padding="same", dilation=2), (4, 4, 7), 1),
    "three dimensions": (lambda: nn.Conv3d(2, 6, (1, 2, 3), padding=(1, 0, 2), stride=(1, 2, 1)), (2, 2, 4, 5, 5), 1),
    "reflected": (lambda: nn.Conv2d(4, 6, 3, 1, 1, padding_mode="reflect"), (4, 4, 7, 7), 1),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, (3, 2), (2, 3), (1, 0), (1, 2), groups=2), (3, 4, 3, 4), 1),
    "transposed, dilated": (lambda: nn.ConvTranspose1d(4, 3, 3, 1, 3, dilation=2), (2, 4, 9), 1),
    "unbatched": (lambda: nn.Conv1d(4, 6, 3), (4, 7), 1),
    "relu": (lambda: nn.RNN(3, 4, nonlinearity="relu"), (5, 2, 3), 6),
    "lstm cell": (lambda: nn.LSTMCell(3, 4), (5, 3), 2),
    "gru cell": (lambda: nn.GRUCell(3, 4), (5, 3), 2),
    "rnn cell": (lambda: nn.RNNCell(3, 4), (5, 3), 2),
    "encoder layer": (lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (2, 5, 8), 4),
    "bare": (Bare, (6, 3), 5),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_seen_as_matrices(name: str) -> None:
    make, shape, count = LAYERS[name]
    assert len(seen_calls(make(), torch.randn(shape))) == count


@pytest.mark.parametrize("cls", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize(("layers", "two_ways", "first"), list(itertools.product([1, 2], [False, True], [False, True])))
@pytest.mark.parametrize("bias", [False, True])
def test_recurrent_networks_run_step_by_step(
    cls: type[nn.Module], layers: int, two_ways: bool, first: bool, bias: bool
) -> None:
    for proj_size in (0, 2) if cls is nn.LSTM else (0,):
        how = {"num_layers": layers, "bidirectional": two_ways, "batch_first": first, "bias": bias}
        model = cls(3, 4, **how, **({"proj_size": proj_size} if proj_size else {}))
        per_step = 3 if proj_size else 2
        directions = 2 if two_ways else 1
        steps = 3 if first else 5
        x = torch.randn(5, 3, 3)
        count = layers * directions * (1 + steps * (per_step - 1))
        assert len(seen_calls(model, x)) == count
        state = torch.randn(layers * directions, 5 if first else 3, proj_size or 4)
        cells = torch.randn(layers * directions, state.shape[1], 4)
        seen_calls(model, x, (state, cells) if cls is nn.LSTM else state)
        seen_calls(model, pack_padded_sequence(torch.randn(5, 3, 3), torch.tensor([2, 5, 3]), enforce_sorted=False))


def test_attention_of_torch_is_seen_by_rows() -> None:
    places = []
    model = nn.MultiheadAttention(8, 2, batch_first=True).eval()

    def visit(call: Call) -> Tensor:
        places.append((call.weight.name, call.weight.start, call.weight.stop))
        return call.run()

    q, k = torch.randn(2, 2, 5, 8)
    with watching(model, visit):
        model(q, k, k)
    assert places[:3] == [("in_proj_weight", first, first + 8) for first in (0, 8, 16)]
    assert type(model) is nn.MultiheadAttention


@pytest.mark.parametrize("groups", [1, 2])
def test_columns_know_their_units(groups: int) -> None:
    conv = nn.Conv2d(4, 6, 3, groups=groups)
    form = Convolution((3, 3), (1, 1), (0, 0), (0, 0), (1, 1), groups)
    calls: list[Call] = []

    def visit(call: Call) -> Tensor:
        calls.append(call)
        return call.run()

    with watching(conv, visit):
        conv(torch.randn(1, 4, 5, 5))
    assert calls[0].form == form
    shape = tuple(conv.weight.shape)
    width = 4 // groups
    units = column_units(form, calls[0].weight, Slice("weight", 1, torch.arange(width).reshape(-1, 1), first=7), shape)
    assert units is not None
    assert units.tolist() == [[7 + c for c in range(width) for _ in range(9)]] * groups
    partly = column_units(form, calls[0].weight, Slice("weight", 1, torch.tensor([[1]])), shape)
    assert partly is not None
    assert partly[0].tolist() == [0 if c == 1 else NONE for c in range(width) for _ in range(9)]
    assert column_units(form, calls[0].weight, Slice("weight", 0, torch.arange(6).reshape(-1, 1)), shape) is None
    if groups == 2:
        # Unit 0: the second channel of the first group only.
        nested = Slice("weight", 1, torch.tensor([[1]]), within=(0, torch.arange(3).reshape(1, -1)))
        within = column_units(form, calls[0].weight, nested, shape)
        assert within is not None
        assert (within == 0).nonzero()[:, 0].unique().tolist() == [0]
        assert int((within == 0).sum()) == 9


def test_gram_of_halves_is_that_of_the_whole_and_of_numpy() -> None:
    conv, x = nn.Conv2d(2, 4, 3, padding=1, groups=2), torch.randn(6, 2, 5, 4)

    def gram(inputs: Tensor) -> Any:
        found = []

        def visit(call: Call) -> Tensor:
            found.append(gram_of(call.design()))
            return call.run()

        with watching(conv, visit):
            conv(inputs)
        return found[0]

    whole, halves = gram(x), gram(x[:2]) + gram(x[2:])
    assert torch.allclose(whole.total, halves.total, atol=1e-10)
    assert whole.positions == halves.positions == 6 * 20
    patches = nn.functional.unfold(x[:, 1:], 3, padding=1).transpose(1, 2).reshape(-1, 9)
    columns = torch.cat([patches, torch.ones(len(patches), 1)], dim=1)
    assert torch.allclose(whole.total[1], columns.T @ columns)


def test_chosen_positions_are_rows_of_all_of_them() -> None:
    conv = nn.Conv2d(2, 3, (2, 3), stride=(1, 2))
    calls: list[Call] = []

    def visit(call: Call) -> Tensor:
        calls.append(call)
        return call.run()

    with watching(conv, visit):
        y = conv(torch.randn(3, 2, 5, 9))
    generator = torch.Generator().manual_seed(1)
    positions = some_positions(calls[0], 7, generator)
    assert positions is not None
    assert len(positions.unique()) == 7
    assert torch.equal(calls[0].design(positions), calls[0].design()[:, positions])
    assert torch.equal(calls[0].form.responses(y, positions), calls[0].form.responses(y)[:, positions])
    assert some_positions(calls[0], 16, generator) is None


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv1d(2, 3, 1), nn.BatchNorm1d(3)
        self.lstm, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.lstm(self.norm(self.conv(x)).transpose(1, 2))[0]
        return self.head(hidden[:, -1])


def test_in_lockstep_changes_are_seen_by_what_comes_after() -> None:
    model, reference = Small().eval(), Small().eval()
    reference.load_state_dict(model.state_dict())
    with torch.no_grad():
        reference.conv.weight.mul_(2)
        reference.norm.running_mean.add_(1)
        reference.lstm.weight_hh_l0.mul_(-1)
    batches = [Batch((torch.randn(n, 2, 5),), {}, None) for n in (1, 3)]
    kinds = []
    with torch.no_grad():
        for events in in_lockstep(model, batches):
            kinds.append(type(events[0]).__name__)
            assert len({type(event) for event in events}) == 1
            if isinstance(events[0], Call) and events[0].weight.name == "conv.weight":
                model.conv.weight.mul_(2)
            if isinstance(events[0], Norm):
                model.norm.running_mean.add_(1)
            if kinds[-1] == "Layer":
                model.lstm.weight_hh_l0.mul_(-1)
    assert kinds == ["Call", "Norm", "Layer", "Call", "End"]
    for batch, event in zip(batches, events, strict=True):
        assert isinstance(event, End)
        assert torch.allclose(event.outputs, reference(*batch.args))


def test_a_lockstep_left_early_ends_its_threads_and_errors_come_through() -> None:
    import threading

    before = threading.active_count()
    walk = in_lockstep(Small().eval(), [Batch((torch.randn(1, 2, 5),), {}, None)] * 3)
    next(walk)
    walk.close()
    assert threading.active_count() == before
    with pytest.raises(RuntimeError, match="expected input"):
        list(in_lockstep(Small().eval(), [Batch((torch.randn(1, 7, 5),), {}, None)]))
    assert threading.active_count() == before


@pytest.mark.parametrize("is_fixed", [False, True])
def test_what_a_fixed_model_gives_is_computed_once(is_fixed: bool) -> None:
    model = nn.Linear(3, 2)
    batches = [Batch((torch.randn(4, 3),), {}, None), Batch((torch.randn(2, 3),), {}, None)]
    walk = in_lockstep(model, batches, is_fixed=is_fixed)
    first, second = next(walk)
    assert isinstance(first, Call) and isinstance(second, Call)
    assert (first.run() is first.run()) == is_fixed
    assert not torch.equal(first.run()[:2], second.run())
    with torch.no_grad():
        expected = model(batches[1].args[0])
        assert torch.equal(first.run(batches[1].args[0]), expected)
        ends = next(walk)
    assert isinstance(ends[1], End) and torch.equal(ends[1].outputs, expected)
