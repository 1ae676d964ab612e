"""Layers of a stacked recurrent module at widths of their own: the equivalent stack, its groups, and its cuts."""

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import secateur as sc
from secateur.graph.copies import become
from secateur.graph.stacks import LayerStates, LayerwiseRecurrent, fit_stacks, layer_widths
from secateur.surgery.cut import cut_model
from secateur.surgery.plan import plan_widths

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")

KINDS: dict[str, tuple[type[nn.RNNBase], dict[str, Any]]] = {
    "lstm": (nn.LSTM, {}),
    "projected": (nn.LSTM, {"proj_size": 4}),
    "gru": (nn.GRU, {}),
    "tanh": (nn.RNN, {}),
    "relu": (nn.RNN, {"nonlinearity": "relu"}),
}
ALL = list(itertools.product(KINDS, (2, 3), *[(False, True)] * 4, ("steps", "last", "given")))
# Every pair of settings occurs among these.
SOME = [case for number, case in enumerate(ALL) if number % 19 == 0]


class Net(nn.Module):
    """A linear layer, a stack, and a head on its steps; with "last" on the last layer's final states too."""

    def __init__(self, kind: str, use: str = "steps", *, packed: bool = False, **options: Any) -> None:
        super().__init__()
        self.use, self.packed = use, packed
        self.before = nn.Linear(5, 6)
        made, more = KINDS[kind]
        self.rnn = made(6, 10, **more, **options)
        self.head = nn.Linear((self.rnn.proj_size or 10) * (2 if self.rnn.bidirectional else 1), 3)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        x = self.before(x)
        time = 1 if self.rnn.batch_first else 0
        state = self._state(x.shape[1 - time], x) if self.use == "given" else None
        given: Any = x
        if self.packed:
            given = pack_padded_sequence(x, lengths, batch_first=self.rnn.batch_first, enforce_sorted=False)
        steps, final = self.rnn(given, state)
        if self.packed:
            steps, _ = pad_packed_sequence(steps, batch_first=self.rnn.batch_first)
        result = self.head(steps)
        if self.use == "last":
            final = final[0] if self.rnn.mode == "LSTM" else final
            last = torch.cat([final[-2], final[-1]], dim=-1) if self.rnn.bidirectional else final[-1]
            result = result + self.head(last).unsqueeze(time)
        return result

    def _state(self, batch: int, like: Tensor) -> Any:
        rows = self.rnn.num_layers * (2 if self.rnn.bidirectional else 1)
        h = like.new_zeros(rows, batch, self.rnn.proj_size or self.rnn.hidden_size)
        return (h, like.new_zeros(rows, batch, self.rnn.hidden_size)) if self.rnn.mode == "LSTM" else h

    def inputs(self, batch: int) -> tuple[Tensor, Tensor]:
        shape = (batch, 7, 5) if self.rnn.batch_first else (7, batch, 5)
        return torch.randn(*shape, dtype=torch.float64), torch.tensor([7, *[3] * (batch - 1)])


def _net(*args: Any, **options: Any) -> Net:
    torch.manual_seed(0)
    return Net(*args, **options).double().eval()


def _uneven(groups: tuple[sc.Group, ...], seed: int = 1) -> sc.Plan:
    """One unit less, two less, three less, ..., drawn anew for each row."""
    draw = torch.Generator().manual_seed(seed)
    scores = {g.name: torch.rand(g.size, generator=draw) for g in groups}
    return plan_widths(groups, scores, {g.name: max(g.minimum, g.width - 1 - k) for k, g in enumerate(groups)})


def _cut(model: Net) -> tuple[sc.Program, sc.Plan, Any]:
    program = sc.trace(model, model.inputs(2))
    plan = _uneven(sc.find_groups(program, split_stacks=True))
    return program, plan, sc.cut(model, plan, program=program)


def _law(
    kind: str, layers: int, bidirectional: bool, batch_first: bool, bias: bool, packed: bool, use: str, folder: Path
) -> None:
    options: dict[str, Any] = {"num_layers": layers, "bidirectional": bidirectional, "batch_first": batch_first}
    options |= {"bias": bias, "packed": packed}
    model = _net(kind, use, **options)
    before = copy.deepcopy(model.state_dict())
    program, plan, small = _cut(model)
    assert type(small) is Net
    assert isinstance(small.rnn, LayerwiseRecurrent) is (use != "given")
    assert list(small.state_dict()) == list(model.state_dict())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    fresh = model.inputs(3)
    masked = sc.mask(model, plan, program=program)(*fresh)
    assert float((model(*fresh) - masked).detach().abs().max()) > 1e-6
    torch.testing.assert_close(small(*fresh), masked, rtol=1e-9, atol=1e-12)
    measured, predicted = sc.measure(small, model.inputs(2), latency=False), plan.cost(program)
    assert (predicted.macs, predicted.params, predicted.memory_bytes) == (
        measured.macs,
        measured.params,
        measured.memory_bytes,
    )
    sc.save(small, folder, original=model, plan=sc.Plan.from_json(plan.to_json()))
    loaded = sc.load(lambda: _net(kind, use, **options), folder).eval()
    assert repr(loaded) == repr(small)
    assert torch.equal(loaded(*fresh), small(*fresh))
    # Once more; and both cuts are one plan for the original.
    second = sc.trace(small, model.inputs(2))
    groups = sc.find_groups(second, split_stacks=True)
    assert [(g.name, g.rows) for g in groups] == [(g.name, g.rows) for g in sc.find_groups(program, split_stacks=True)]
    more = _uneven(groups[::-1], seed=2)
    smaller = sc.cut(small, more, program=second)
    again = sc.mask(small, more, program=second)(*fresh)
    torch.testing.assert_close(smaller(*fresh), again, rtol=1e-9, atol=1e-12)
    at_once = sc.cut(model, plan.then(more), program=program)
    assert torch.equal(at_once(*fresh), smaller(*fresh))


@pytest.mark.parametrize("case", SOME, ids=str)
def test_cut_equals_masked(case: tuple[Any, ...], tmp_path: Path) -> None:
    _law(*case, folder=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("case", ALL, ids=str)
def test_cut_equals_masked_in_every_setting(case: tuple[Any, ...], tmp_path: Path) -> None:
    _law(*case, folder=tmp_path)


def _released(module: nn.RNNBase) -> LayerwiseRecurrent:
    """The stand-in at equal widths, which `fit_stacks` never makes."""
    return become(copy.deepcopy(module), LayerwiseRecurrent)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_stand_in_computes_what_torch_does(kind: str, batch_first: bool, bidirectional: bool) -> None:
    made, more = KINDS[kind]
    torch.manual_seed(0)
    ours: Any
    torchs = made(6, 10, 3, batch_first=batch_first, bidirectional=bidirectional, **more).double()
    ours = _released(torchs)
    x = torch.randn(4, 5, 6, dtype=torch.float64)
    rows, batch = 3 * (2 if bidirectional else 1), 4 if batch_first else 5
    h, c = (torch.randn(rows, batch, n, dtype=torch.float64) for n in (torchs.proj_size or 10, 10))
    state, one = ((h, c), (h[:, 0], c[:, 0])) if kind in ("lstm", "projected") else (h, h[:, 0])
    torch.testing.assert_close(ours(x), torchs(x), rtol=0, atol=0)
    torch.testing.assert_close(ours(x, state), torchs(x, state), rtol=0, atol=0)
    torch.testing.assert_close(ours(x[0]), torchs(x[0]), rtol=0, atol=0)
    torch.testing.assert_close(ours(x[0], one), torchs(x[0], one), rtol=0, atol=0)
    lengths = torch.tensor([2, 4, 1, 3, 3][:batch])
    packed = pack_padded_sequence(x, lengths, batch_first=batch_first, enforce_sorted=False)
    for arguments in ((packed,), (packed, state)):
        (got, got_state), (steps, final) = ours(*arguments), torchs(*arguments)
        assert isinstance(got, PackedSequence)
        torch.testing.assert_close((tuple(got), got_state), (tuple(steps), final), rtol=0, atol=0)
    with pytest.raises(ValueError, match="2 or 3 dimensions, got 4"):
        ours(x[None])


def test_final_states_can_be_handed_in_again() -> None:
    small = _cut(_net("lstm", num_layers=3, bidirectional=False))[2].rnn
    x = torch.randn(6, 2, 5, dtype=torch.float64)
    whole, ends = small(x)
    half, state = small(x[:3])
    rest, _ = small(x[3:], state)
    torch.testing.assert_close(torch.cat([half, rest]), whole)
    assert isinstance(ends[0], LayerStates)
    assert [row.shape for row in ends[0]] == [(2, w.hidden) for w in layer_widths(small)]
    assert torch.equal(ends[0][-1, :, 1:], ends[0][-1][:, 1:])
    assert [row.shape for row in ends[0][1:]] == [row.shape for row in ends[0].unbind()[1:]]
    assert len(ends[0]) == 3
    with pytest.raises(IndexError, match="dimension 0 only; got 1"):
        ends[0].unbind(1)
    _, one = small(x[:, 0])
    torch.testing.assert_close(one[1][2], ends[1][2][0])
    _, same = small(x[3:, 0], tuple(LayerStates(tuple(row[0] for row in kind)) for kind in state))
    torch.testing.assert_close(same[0][1], ends[0][1][0])


def test_dropout_acts_between_layers_and_in_training_only() -> None:
    small = _cut(_net("gru", num_layers=2, dropout=0.5))[2].rnn
    x = torch.randn(4, 2, 5, dtype=torch.float64)
    assert torch.equal(small(x)[0], small(x)[0])
    small.train()
    (_, first), (_, second) = small(x), small(x)
    assert torch.equal(first[0], second[0])
    assert not torch.equal(first[1], second[1])
    small.dropout = 0.0
    torch.testing.assert_close(small(x)[0], copy.deepcopy(small).eval()(x)[0])


def test_each_layer_is_a_group_of_one_row_for_each_direction() -> None:
    model = _net("projected", num_layers=2, bidirectional=True)
    program = sc.trace(model, model.inputs(2))
    split = {g.name: (g.size, g.rows, g.note) for g in sc.find_groups(program, split_stacks=True)}
    layers = {f"rnn.l{k}:hidden{n}": (size, 2, "") for k in (0, 1) for n, size in (("", 20), ("#2", 8))}
    assert split == {"before": (6, 1, ""), **layers}
    together = {g.name: (g.size, g.rows) for g in sc.find_groups(program)}
    assert together == {"before": (6, 1), "rnn:hidden": (40, 4), "rnn:hidden#2": (16, 4)}


class Flattened(nn.Module):
    """The final states of both layers as one vector."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(6, 10, 2), nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[1].transpose(0, 1).flatten(1))


class Own(nn.LSTM):
    """It may compute anything."""


@pytest.mark.parametrize("what", ["given", "flattened", "subclass"])
def test_layers_that_cannot_be_apart_stay_together_and_say_why(what: str) -> None:
    model: Any = Flattened() if what == "flattened" else _net("lstm", "given", num_layers=2)
    args = (torch.randn(7, 2, 6),) if what == "flattened" else model.inputs(2)
    if what == "subclass":
        model.use, model.rnn = "steps", Own(6, 10, 2).double()
    groups = {g.name: g for g in sc.find_groups(sc.trace(model, args), split_stacks=True)}
    assert groups["rnn"].exact
    assert {"given": "is given", "flattened": "as one tensor", "subclass": "own class"}[what] in groups["rnn"].note
    # One tensor of all states has one axis of units; else both layers have rows.
    assert groups["rnn"].rows == (1 if what == "flattened" else 2)
    assert all(g.note == "" for g in sc.find_groups(sc.trace(model, args)))


def test_one_layer_is_no_stack() -> None:
    model = _net("lstm", "given", num_layers=1)
    program = sc.trace(model, model.inputs(2))
    expected = [("before", 6, ""), ("rnn", 10, "")]
    assert [(g.name, g.size, g.note) for g in sc.find_groups(program, split_stacks=True)] == expected


class Reshaping(nn.Module):
    """Sizes read off the stack's attributes count what its last layer gives."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(6, 10, 3, batch_first=True, bidirectional=True)
        self.head = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        steps, _ = self.rnn(x)
        forwards = steps.view(len(x), -1, 2, self.rnn.hidden_size)[:, :, 0]
        return self.head(forwards)


def test_the_hidden_size_is_that_of_the_last_layer() -> None:
    model = Reshaping().double().eval()
    x = torch.randn(2, 4, 6, dtype=torch.float64)
    program = sc.trace(model, (x,))
    groups = sc.find_groups(program, split_stacks=True)
    assert [g.name for g in groups] == ["rnn.l0", "rnn.l1", "rnn.l2"]
    small: Any = sc.cut(model, _uneven(groups), program=program)
    assert small.rnn.hidden_size == 7
    assert [widths.hidden for widths in layer_widths(small.rnn)] == [9, 8, 7]
    assert (
        repr(small.rnn) == "LayerwiseRecurrent(LSTM, 6, hidden_sizes=[9, 8, 7], batch_first=True, bidirectional=True)"
    )


def test_a_stack_whose_layers_end_equally_wide_is_torchs_own() -> None:
    model = _net("gru", num_layers=2)
    program = sc.trace(model, model.inputs(2))
    groups = sc.find_groups(program, split_stacks=True)
    scores = {g.name: torch.rand(g.size) for g in groups}
    done = cut_model(model, plan_widths(groups, scores, {"rnn.l0": 7, "rnn.l1": 7}), program=program)
    assert type(done.model.rnn) is nn.GRU
    assert done.replaced == ()
    uneven = cut_model(model, plan_widths(groups, scores, {"rnn.l0": 7}), program=program)
    assert [(note.where, "layer by layer" in note.text) for note in uneven.replaced] == [("rnn", True)]
    second = sc.trace(uneven.model, model.inputs(2))
    left = sc.find_groups(second)
    even: Any = sc.cut(
        uneven.model, plan_widths(left, {g.name: torch.rand(g.size) for g in left}, {"rnn.l1": 7}), program=second
    )
    assert type(even.rnn) is nn.GRU
    even(*model.inputs(3)).sum().backward()
    assert all(parameter.grad is not None for parameter in even.rnn.parameters())
    assert fit_stacks(even) == ()


def test_a_plan_of_equal_rows_is_cut_as_ever() -> None:
    model = _net("lstm", num_layers=2)
    program = sc.trace(model, model.inputs(2))
    groups = sc.find_groups(program)
    assert [g.name for g in groups] == ["before", "rnn"]
    small: Any = sc.cut(model, _uneven(groups), program=program)
    assert type(small.rnn) is nn.LSTM


@pytest.mark.parametrize("use", ["steps", "last"])
@pytest.mark.parametrize("kind", ["projected", "gru"])
def test_the_stand_in_copies_compiles_exports_and_learns(kind: str, use: str) -> None:
    model = _net(kind, use, num_layers=2, bidirectional=True, batch_first=True)
    _, _, small = _cut(model)
    args = model.inputs(2)
    expected = small(*args)
    assert torch.equal(copy.deepcopy(small)(*args), expected)
    exported = torch.export.export(small, args, strict=False).module()
    torch.testing.assert_close(exported(*args), expected)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(small, backend="eager")(*args), expected)
    expected.sum().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in small.parameters())
    small.rnn.flatten_parameters()
    assert small.float().rnn.weight_ih_l1.dtype == torch.float32


class Steps(nn.Module):
    """What the last layer gives is what the model gives."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(4, 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x)[0]


def test_layers_below_a_fixed_one_can_be_cut() -> None:
    torch.manual_seed(0)
    model = Steps().double().eval()
    x = torch.randn(5, 2, 4, dtype=torch.float64)
    program = sc.trace(model, (x,))
    assert sc.find_groups(program) == ()
    assert {f.parameter for f in sc.find_fixed(program, split_stacks=True) if f.dim == 1} == {
        "rnn.weight_ih_l0",
        "rnn.weight_hh_l2",
    }
    groups = sc.find_groups(program, split_stacks=True)
    assert [(g.name, g.size) for g in groups] == [("rnn.l0", 6), ("rnn.l1", 6)]
    small: Any = sc.cut(model, _uneven(groups), program=program)
    assert [w.output for w in layer_widths(small.rnn)] == [5, 4, 6]
    assert small.rnn.hidden_size == 6


class Graph(nn.Module):
    """It writes its widths down as numbers: only a graph can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(6, 10, 3, batch_first=True), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        steps, (h, c) = self.rnn(x)
        return self.head(steps.reshape(-1, 7, 10)) + self.head(h[-1] + c.unbind(0)[2])[:, None]


def test_a_graph_runs_layers_of_any_width_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Graph().double().eval()
    x, fresh = (torch.randn(n, 7, 6, dtype=torch.float64) for n in (2, 3))
    program = sc.trace(model, (x,))
    assert [g.name for g in sc.find_groups(program, split_stacks=True)] == ["rnn.l0", "rnn.l1"]
    groups = sc.find_groups(program, split_stacks=True, fallback="graph")
    plan = _uneven(groups)
    done = cut_model(model, plan, program=program, fallback="graph")
    assert (done.way, done.verified) == ("graph", True)
    masked = sc.mask(model, plan, program=program, fallback="graph")
    torch.testing.assert_close(done.model(fresh), masked(fresh), rtol=1e-9, atol=1e-12)
    sc.save(done.model, tmp_path, original=model, plan=plan)
    assert torch.equal(sc.load(lambda: Graph().double().eval(), tmp_path)(fresh), done.model(fresh))


class Ends(nn.Module):
    """Final states by slices and whole indices, of a batch or of one sample; `written`: by numbers."""

    def __init__(self, *, batched: bool, written: bool) -> None:
        super().__init__()
        self.batched, self.written = batched, written
        self.rnn, self.head = nn.GRU(6, 10, 3, bidirectional=True), nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        final = self.rnn(x if self.batched else x[:, 0])[1]
        if not self.batched:
            return self.head(torch.cat([final[-2], final[-1]]))
        last = final[-2:, :].transpose(0, 1).flatten(1)
        other = torch.cat([final[4, :, :], final[-1]], dim=-1)
        return self.head(last.reshape(-1, 20) if self.written else last) + self.head(other)


@pytest.mark.parametrize("settings", [(True, False), (False, False), (True, True)], ids=str)
def test_final_states_may_be_read_by_slices(settings: tuple[bool, bool]) -> None:
    torch.manual_seed(0)
    model = Ends(batched=settings[0], written=settings[1]).double().eval()
    x, fresh = (torch.randn(5, n, 6, dtype=torch.float64) for n in (2, 3))
    program = sc.trace(model, (x,))
    fallback: Any = "graph" if settings[1] else "error"
    groups = sc.find_groups(program, split_stacks=True, fallback=fallback)
    assert [g.name for g in groups] == ["rnn.l0", "rnn.l1", "rnn.l2"]
    # Slices put both directions of the last layer into one tensor.
    assert [g.rows for g in groups] == [2, 2, 1 if settings[0] else 2]
    plan = _uneven(groups)
    done = cut_model(model, plan, program=program, fallback=fallback)
    assert done.way == ("graph" if settings[1] else "module")
    masked = sc.mask(model, plan, program=program, fallback=fallback)
    torch.testing.assert_close(done.model(fresh), masked(fresh), rtol=1e-9, atol=1e-12)


class Measuring(nn.Module):
    """It asks for the shape of all final states at once, which layers of different widths do not have."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(6, 10, 2), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        final = self.rnn(x)[1]
        return self.head(final[-1]).reshape(final.shape[1], 3)


@pytest.mark.parametrize("verify", [False, True])
def test_a_forward_pass_that_cannot_read_states_apart_is_refused(verify: bool) -> None:
    model, x = Measuring(), torch.randn(4, 2, 6)
    program = sc.trace(model, (x,))
    plan = _uneven(sc.find_groups(program, split_stacks=True))
    with pytest.raises(sc.SurgeryError, match="shape"):
        sc.cut(model, plan, program=program, verify=verify)


def test_sizes_beside_the_value_of_a_tensor_are_told_apart() -> None:
    """Four layers and directions, and four outputs: `zeros(4, batch_sizes[0], 4)` names both."""
    model = _net("projected", packed=True, num_layers=2, bidirectional=True)
    groups = sc.find_groups(sc.trace(model, model.inputs(2)))
    assert [g.name for g in groups] == ["before", "rnn:hidden", "rnn:hidden#2"]
