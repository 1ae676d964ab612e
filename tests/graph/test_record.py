"""Recorded programs against exported ones, against the models themselves, and against the law of surgery."""

import weakref
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, fx, nn
from torch.profiler import ProfilerActivity, profile

from networks import CASES, Case, built
from secateur.errors import NumericalError, TraceError
from secateur.graph import trace as tracing
from secateur.graph.groups import find_fixed, find_groups
from secateur.graph.record import Recording, record
from secateur.graph.trace import Program, check_finite_weights, named_state, trace
from secateur.graph.typing import arguments
from secateur.surgery.cut import cut
from secateur.surgery.mask import mask
from secateur.surgery.plan import plan


@pytest.fixture
def no_export(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("refused for this test")

    monkeypatch.setattr(tracing, "_export", refuse)


class Routed(nn.Module):
    """A mixture of experts: each token goes to the expert that its router prefers."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.embed = nn.Linear(6, 10), nn.Linear(10, 8)
        self.router = nn.Linear(8, 3)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 8)) for _ in range(3))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(torch.relu(self.inner(x)))
        weights = self.router(x).softmax(-1)
        chosen = weights.argmax(-1)
        mixed = torch.zeros_like(x)
        for number in range(int(chosen.max().item()) + 1):
            rows = (chosen == number).nonzero().flatten()
            if len(rows):
                mixed.index_add_(0, rows, self.experts[number](x[rows]) * weights[rows, number, None])
        return self.head(mixed if mixed.sum() > -1e9 else -mixed)


class Bottleneck(nn.Module):
    """Two layers and something between them that only a recording can follow."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, width), nn.Linear(width, 4)

    def between(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.between(self.up(x)))


class Branching(Bottleneck):
    def between(self, x: Tensor) -> Tensor:
        return x.tanh() if x.sum() > 1e9 else x.relu()


class InPlace(Bottleneck):
    def between(self, x: Tensor) -> Tensor:
        x += 1
        x.relu_()
        x.view(x.shape).mul_(2)
        return torch.mul(x, 3, out=torch.empty_like(x))


class WrittenPart(Bottleneck):
    def between(self, x: Tensor) -> Tensor:
        y = torch.zeros(len(x), 8, dtype=x.dtype)
        y[1:] += x[1:]
        return y


class WrittenFlat(Bottleneck):
    def between(self, x: Tensor) -> Tensor:
        x.view(-1)[3:].mul_(2)
        return x


class WrittenBase(Bottleneck):
    def between(self, x: Tensor) -> Tensor:
        y = torch.zeros(len(x), 8, dtype=x.dtype)
        part = y[:, :5]
        y += x.flip(-1)
        return torch.cat([part, part[:, :3]], -1)


class WrittenInLists(Bottleneck):
    def between(self, x: Tensor) -> Tensor:
        y = torch.zeros(len(x), 8, dtype=x.dtype)
        torch._foreach_add_([y], [x])
        return y


class HiddenViews(Bottleneck):
    def between(self, x: Tensor) -> Tensor:
        turned = torch.zeros(0, dtype=x.dtype).set_(x.untyped_storage(), 0, (8, len(x)), (1, 8))
        x.data.tanh_()
        return turned.T


class ReadByPython(Bottleneck):
    def between(self, x: Tensor) -> Tensor:
        return x * 2 if max(x.flatten().tolist()) > -1e9 else x


class Compared(Bottleneck):
    def between(self, x: Tensor) -> Tensor:
        return x * 2 if torch.equal(x, x + 1) else x


class Mapped(Bottleneck):
    def between(self, x: Tensor) -> Tensor:
        # The transform hands out a view of `x`, and a tensor of its own.
        head, tail = torch.vmap(lambda row: (row[:3], row[3:] * 2))(x)
        return torch.cat([head, tail], -1)


class Shifted(Bottleneck):
    """A constant that the forward pass makes, and one that no module's state holds."""

    def __init__(self) -> None:
        super().__init__()
        self.constant = [torch.arange(8.0).double()]

    def between(self, x: Tensor) -> Tensor:
        return x * torch.ones(8).double() + self.constant[0]


FOLLOWED = [Branching, InPlace]
WRITING = [WrittenPart, WrittenFlat, WrittenBase, WrittenInLists]
FIXED = [*WRITING, HiddenViews, ReadByPython, Compared, Mapped, Shifted]


def example(batch: int = 5) -> Tensor:
    return torch.randn(batch, 6, generator=torch.Generator().manual_seed(batch)).double()


def run(found: Recording | Program, model: nn.Module, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Execute a program's graph on the state of `model`."""
    state, rest = named_state(model), iter(inputs)
    values = [
        state[found.names[str(node.target)]].detach().clone() if str(node.target) in found.names else next(rest)
        for node in found.graph.nodes
        if node.op == "placeholder"
    ]
    with torch.no_grad():
        return fx.Interpreter(fx.GraphModule(nn.Module(), found.graph)).run(*values)


def described(program: Program) -> list[tuple[object, ...]]:
    return [
        (
            g.name,
            g.size,
            g.rows,
            g.granularity,
            g.exact,
            g.minimum,
            s.parameter,
            s.dim,
            s.first,
            s.masked,
            s.index.tolist(),
        )
        for g in find_groups(program)
        for s in g.slices
    ]


def calls(program: Program) -> list[tuple[object, ...]]:
    """Each operator with its arguments (tensors by the operator that made them) and its modules."""
    return [
        (
            str(n.target),
            str(fx.map_arg(named(n), lambda n: f"<{n.target if n.op == 'call_function' else n.op}>")),
            list(n.meta["nn_module_stack"].items()),
        )
        for n in program.nodes
        if n.op == "call_function"
    ]


def named(node: fx.Node) -> dict[str, object]:
    every = arguments(node) if hasattr(node.target, "_schema") else {"args": node.args}
    return {name: value for name, value in every.items() if not name.startswith("cudnn_enable")}


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_a_recording_is_what_export_gives(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = built(case), case.inputs(2)
    exported = trace(model, (x,))
    monkeypatch.setattr(tracing, "_export", None)
    recorded = trace(model, (x,))
    assert (exported.recorded, recorded.recorded) == (False, True)
    assert described(recorded) == described(exported)
    assert calls(recorded) == calls(exported)
    assert set(recorded.names.values()) == set(exported.names.values())


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_a_recording_of_the_table_computes_the_model(case: Case) -> None:
    model, fresh = built(case), case.inputs(2)
    (given,) = run(record(model, (case.inputs(2),)), model, fresh)
    torch.testing.assert_close(given, model(fresh).detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "kind", [*FOLLOWED, *WRITING, HiddenViews, ReadByPython, Compared], ids=lambda kind: kind.__name__
)
def test_a_recording_computes_the_model_where_memory_is_written(kind: type[nn.Module]) -> None:
    model = kind().double()
    (given,) = run(record(model, (example(),)), model, -example())
    with torch.no_grad():
        torch.testing.assert_close(given, model(-example()), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", FOLLOWED, ids=lambda kind: kind.__name__)
def test_a_group_goes_through_branches_and_writes(kind: type[nn.Module]) -> None:
    program = trace(kind().double().eval(), (example(),))
    assert [(g.name, g.size) for g in find_groups(program)] == [("up", 8)]
    assert cut_and_masked_agree(program, example(3))


@pytest.mark.usefixtures("no_export")
@pytest.mark.parametrize("kind", FIXED, ids=lambda kind: kind.__name__)
def test_what_cannot_be_followed_is_fixed(kind: type[nn.Module]) -> None:
    program = trace(kind().double().eval(), (example(),))
    assert find_groups(program) == ()
    assert {(f.parameter, f.dim) for f in find_fixed(program)} >= {("up.weight", 0), ("down.weight", 1)}


def cut_and_masked_agree(program: Program, *fresh: Tensor) -> bool:
    groups = [g for g in find_groups(program) if g.exact]
    generator = torch.Generator().manual_seed(0)
    chosen = plan(groups, {g.name: torch.rand(g.size, generator=generator) for g in groups}, sparsity=0.5)
    small, masked = (f(program.model, chosen, program=program) for f in (cut, mask))
    with torch.no_grad():
        for x in fresh:
            torch.testing.assert_close(small(x), masked(x), rtol=1e-10, atol=1e-10)
            assert (masked(x) - program.model(x)).abs().max() > 1e-6
    return sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in masked.parameters())


def test_a_mixture_of_experts_is_cut() -> None:
    torch.manual_seed(0)
    model = Routed().double().eval()
    program = trace(model, (example(40),))
    assert program.recorded
    sizes = {g.name: g.size for g in find_groups(program)}
    assert sizes.items() >= {"inner": 10, "experts.0.0": 7, "experts.1.0": 7, "experts.2.0": 7}.items()
    assert cut_and_masked_agree(program, example(40), example(3))


def test_an_expert_that_no_example_reaches_stays() -> None:
    torch.manual_seed(0)
    program = trace(Routed().double().eval(), (example(1),))
    reached = {g.name for g in find_groups(program) if g.name.startswith("experts")}
    assert len(reached) == 1
    assert {f.reason for f in find_fixed(program) if f.parameter.startswith("experts")} >= {
        "not used by the forward pass on the example inputs"
    }


@pytest.mark.parametrize("shared", [False, True])
def test_parameters_go_by_identity_and_not_by_memory(shared: bool) -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)).double()
    if shared:
        model[2].weight.data = model[0].weight.data
    found = record(model, (example(),))
    used = [found.names.get(str(n.args[1].target)) for n in found.graph.nodes if "linear" in str(n.target)]
    assert used == ["0.weight", "2.weight"]


class Failing(nn.Module):
    """Writes a buffer and an input, replaces another buffer, sets attributes, and may then fail in an inner module."""

    def __init__(self, failing: bool) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(2))
        self.register_buffer("mean", torch.zeros(2))
        self.inner, self.failing, self.steps = nn.Linear(2, 2), failing, 0

    def forward(self, x: Tensor) -> Tensor:
        x.add_(1)
        self.count.add_(1)
        self.mean = self.mean + 1
        self.steps, self.last = self.steps + 1, x
        # One column too few for the inner module, whose hooks then see the failure.
        return self.inner(x[:, 1:] if self.failing else x)


@pytest.mark.parametrize("failing", [False, True])
def test_model_inputs_and_torch_are_left_as_they_were(failing: bool) -> None:
    model, x = Failing(failing), torch.ones(3, 2)
    torch.backends.mha.set_fastpath_enabled(True)
    if failing:
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            record(model, (x,))
    else:
        record(model, (x,))
    for module in model.modules():
        assert module.training and not module._forward_hooks and not module._forward_pre_hooks
    assert model.count.tolist() == model.mean.tolist() == [0, 0]
    assert model.steps == 0 and not hasattr(model, "last")
    assert torch.equal(x, torch.ones(3, 2))
    assert torch.backends.mha.get_fastpath_enabled()
    assert torch.ones(1).add(1) == 2, "the recorder is off"


def test_tracing_leaves_buffers_as_they_were() -> None:
    class Counting(nn.BatchNorm1d):
        def forward(self, x: Tensor) -> Tensor:
            self.num_batches_tracked.add_(1)
            return super().forward(x)

    model = Counting(6).double()
    trace(model, (example(),))
    assert int(model.num_batches_tracked) == 0


def test_attention_layers_keep_their_operators() -> None:
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1).eval()
    found = record(model, (torch.randn(2, 3, 8),))
    names = {str(node.target) for node in found.graph.nodes}
    assert {"aten.scaled_dot_product_attention.default", "aten.layer_norm.default"} <= names
    assert not any("transformer_encoder_layer" in name for name in names)


def test_activations_are_not_kept() -> None:
    class Deep(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x.exp()
            gone, y = weakref.ref(y), y.log()
            assert gone() is None
            return y

    assert len(record(Deep(), (torch.ones(2),)).graph.nodes) == 4


def test_outputs_in_objects_of_any_class_are_outputs() -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> SimpleNamespace:
            return SimpleNamespace(loss=None, inner=SimpleNamespace(logits=self.down(self.up(x))))

    program = trace(Wrapped().double(), (example(),))
    assert program.recorded
    assert [g.name for g in find_groups(program)] == ["up"]


def test_keyword_inputs_in_containers_are_user_inputs() -> None:
    class Pair(nn.Module):
        def forward(self, x: Tensor, *, more: dict[str, list[Tensor]]) -> Tensor:
            return x - more["a"][0]

    found = record(Pair(), (torch.ones(2),), {"more": {"a": [torch.zeros(2)]}})
    assert found.user_inputs == ("input_0", "input_1") and not found.names
    assert run(found, Pair(), torch.tensor([5.0, 7.0]), torch.tensor([1.0, 1.0]))[0].tolist() == [4, 6]


def test_a_model_that_can_be_neither_exported_nor_recorded(capfd: pytest.CaptureFixture[str]) -> None:
    class Sparse(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.to_sparse() @ x if x.sum() > 0 else x

    with pytest.raises(TraceError, match=r"export cannot capture Sparse: .*recorded: .*sparse_coo.*torch\.where"):
        trace(Sparse(), (torch.eye(2),))
    assert "def forward" not in capfd.readouterr().err

    class Silent(nn.Module):
        def forward(self, x: Tensor) -> str:
            return str(x.tolist())

    with pytest.raises(TraceError, match="gives a str that holds no tensor"):
        record(Silent(), (torch.eye(2),))


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_a_model_without_memory_is_traced(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    x = case.inputs(2)
    expected = described(trace(built(case), (x,)))
    with torch.device("meta"):
        model = built(case)
    assert described(trace(model, (x.to("meta"),))) == expected
    monkeypatch.setattr(tracing, "_export", None)
    assert described(trace(model, (x.to("meta"),))) == expected


DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_found_in_any_type(dtype: torch.dtype, bad: float) -> None:
    # Sums of these overflow in half precision, and they are sound.
    values = torch.full((300,), 6e4).to(dtype)
    model = nn.ParameterList([nn.Parameter(torch.empty(0, dtype=dtype)), nn.Parameter(values)])
    check_finite_weights(model)
    values[7] = complex(0, bad) if dtype.is_complex else bad
    with pytest.raises(NumericalError, match="'1' holds 1 values"):
        check_finite_weights(model)


def test_looking_for_weights_that_are_not_finite_copies_none() -> None:
    model = nn.Linear(512, 512)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        check_finite_weights(model)
    assert sum(max(event.self_cpu_memory_usage, 0) for event in found.events()) < 1000


@pytest.mark.parametrize("cut", [slice(None, 2), slice(None, None, 2)])
def test_a_view_of_a_larger_tensor_is_exported_as_any_other_input(cut: slice) -> None:
    x = torch.randn(4, 3)
    program = trace(torch.nn.Linear(3, 2), (x[cut],))
    assert not program.recorded and program.args[0]._base is x
