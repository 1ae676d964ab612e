"""Statistics of one pass against loops over samples, literal gates, numpy, and whole Hessians."""

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from secateur.capture.calls import Place
from secateur.criteria import data_pass, tally
from secateur.criteria.collect import bytes_needed, collect
from secateur.criteria.merge import merge
from secateur.criteria.statistics import (
    GATE_GRADIENTS,
    GRAMS,
    HESSIAN_DIAGONAL,
    INPUT_MOMENTS,
    NEEDS,
    OUTPUT_GRADIENTS,
    WEIGHT_GRADIENTS,
    Statistics,
)
from secateur.errors import ArgumentError, NumericalError
from secateur.graph.groups import find_groups
from secateur.graph.trace import trace
from secateur.types import Group, Slice

GRADIENTS = {GATE_GRADIENTS, WEIGHT_GRADIENTS}


@pytest.fixture(autouse=True)
def double() -> Any:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Twice(nn.Module):
    """A layer that is called twice, a gain of the model's own, and a class token."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.shared, self.head = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.gain = nn.Parameter(torch.randn(6))
        self.token = nn.Parameter(torch.randn(1, 1, 6))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.shared(torch.tanh(self.shared(self.first(x))))) * self.gain
        x = torch.cat([self.token.expand(len(x), -1, -1), x.unsqueeze(1)], dim=1)
        return self.head(x.mean(1))


class Tied(nn.Module):
    """A table of words that is read, and multiplied with, whole and transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.position = nn.Embedding(7, 6), nn.Parameter(torch.randn(1, 5, 6))
        self.up, self.down, self.norm = nn.Linear(6, 9), nn.Linear(9, 6), nn.LayerNorm(6)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens) + self.position
        x = self.norm(x + self.down(functional.gelu(self.up(x))))
        scores = functional.linear(x, self.table.weight)
        return scores + 0.1 * functional.linear(scores.softmax(-1) @ self.table.weight, self.table.weight)


class Positions(nn.Module):
    """Learned positions, the same for every sample."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places, self.head = nn.Embedding(7, 6, padding_idx=2), nn.Embedding(9, 6), nn.Linear(6, 3)
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 6)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens) + self.places(torch.arange(tokens.shape[1]))
        x = self.places(torch.arange(1, tokens.shape[1] + 1).unsqueeze(0)) + x
        return self.head(x + self.down(self.up(x).relu()))


class Flat(nn.Module):
    """Products on a flattened batch, as GPT-2 has them."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.randn(4, 8)), nn.Parameter(torch.randn(8))
        self.v, self.c = nn.Parameter(torch.randn(8, 3)), nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.addmm(self.b, x.reshape(-1, 4), self.w).relu_()
        return torch.addmm(self.c, hidden, self.v).reshape(*x.shape[:-1], 3)


class TimeMajor(nn.Module):
    """Inside, samples are the second dimension."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        found = self.layer(x.transpose(0, 1))
        found = found[0] if isinstance(found, tuple) else found
        return self.head(torch.tanh(found)).transpose(0, 1)


class Packed(nn.Module):
    """Sequences of different lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(4, 5, batch_first=True, bidirectional=True), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        lengths = 1 + (x[:, 0, 0] > 0).long() + (x[:, 0, 1] > 0).long()
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        steps, _ = pad_packed_sequence(self.rnn(packed)[0], batch_first=True, total_length=x.shape[1])
        return self.head(steps.sum(1))


class Steps(nn.Module):
    """A recurrent network of two layers and directions."""

    def __init__(self, cls: type[nn.Module]) -> None:
        super().__init__()
        self.rnn, self.head = cls(4, 5, 2, bidirectional=True, batch_first=True), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


class Reordered(nn.Module):
    """Samples change places inside."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x.flip(0)).tanh()).flip(0)


class Late(nn.Module):
    """A use that no capture sees, and only with some inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.a(x).tanh()
        extra = torch.einsum("nh,oh->no", hidden, self.b.weight) if bool(x.max() > 50) else 0
        return self.b(hidden) + extra


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.Conv2d(6, 6, (3, 2), stride=2, groups=3),
        nn.GroupNorm(2, 6),
        nn.ReLU(),
        nn.Conv2d(6, 4, 1),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 3),
    )


@dataclass(frozen=True)
class Case:
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    slow: bool = False
    words: bool = False

    def data(self, samples: int) -> tuple[Tensor, Tensor]:
        x = torch.randint(7, (samples, *self.shape)) if self.words else torch.randn(samples, *self.shape)
        model = self.make().eval()
        with torch.no_grad():
            outputs = model(x)
        return x, torch.randint(outputs.shape[-1], outputs.shape[:-1])


CASES = {
    "convolutions": Case(convolutions, (2, 7, 6)),
    "called twice": Case(Twice, (4,)),
    "tied": Case(Tied, (5,), words=True),
    "positions": Case(Positions, (4,), words=True),
    "flattened": Case(Flat, (5, 4)),
    "lstm": Case(lambda: Steps(nn.LSTM), (4, 4)),
    "gru": Case(lambda: Steps(nn.GRU), (4, 4)),
    "encoder": Case(
        lambda: nn.Sequential(nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), nn.Linear(8, 3)), (3, 8)
    ),
    "time-major lstm": Case(lambda: TimeMajor(nn.LSTM(4, 6)), (3, 4), slow=True),
    "time-major linear": Case(lambda: TimeMajor(nn.Linear(4, 6)), (3, 4), slow=True),
    "packed": Case(Packed, (3, 4), slow=True),
    "reordered": Case(Reordered, (4,), slow=True),
    "weight norm": Case(
        lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), weight_norm(nn.Linear(6, 3))), (4,), slow=True
    ),
}


def ready(case: Case) -> tuple[nn.Module, list[Group]]:
    torch.manual_seed(1)
    model = case.make()
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2)
            nn.init.normal_(part.weight)
    example = torch.zeros(2, *case.shape, dtype=torch.int64) if case.words else torch.randn(2, *case.shape)
    return model, list(find_groups(trace(model, (example,))))


def loss_of(model: nn.Module, x: Tensor, y: Tensor, values: Any = None) -> Tensor:
    outputs = torch.func.functional_call(model, values or {}, (x.unsqueeze(0),))
    return functional.cross_entropy(outputs.reshape(-1, outputs.shape[-1]), y.reshape(-1))


def gate_derivatives(model: nn.Module, group: Group, x: Tensor, y: Tensor) -> Tensor:
    """By gates that literally multiply the masked slices."""
    gate = torch.ones(group.size, requires_grad=True)
    state = dict(model.named_parameters())
    values: dict[str, Tensor] = {}
    for s in group.slices:
        if not (s.masked and s.trained):
            continue
        current = values.get(s.parameter, state[s.parameter].detach())
        scale = torch.ones_like(current)
        for unit in range(len(s.index)):
            where = torch.zeros(current.shape[s.dim], dtype=torch.bool)
            where[s.index[unit]] = True
            shape = [1] * current.ndim
            shape[s.dim] = -1
            owned = where.reshape(shape)
            if s.within is not None:
                beside = torch.zeros(current.shape[s.within[0]], dtype=torch.bool)
                beside[s.within[1][unit]] = True
                shape = [1] * current.ndim
                shape[s.within[0]] = -1
                owned = owned & beside.reshape(shape)
            scale = scale * torch.where(owned, gate[s.first + unit], 1.0)
        values[s.parameter] = current * scale
    return torch.autograd.grad(loss_of(model, x, y, values), gate)[0]


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """What was found by running samples alone."""
    found: set[str] = set()
    original = data_pass.DataPass.statistics

    def spy(work: Any, weights: Any) -> Statistics:
        found.update(work.slow_groups | work.slow_parameters)
        return original(work, weights)

    monkeypatch.setattr(data_pass.DataPass, "statistics", spy)
    return found


@pytest.mark.parametrize(
    "needs",
    [{GATE_GRADIENTS}, {WEIGHT_GRADIENTS}, GRADIENTS | {OUTPUT_GRADIENTS}],
    ids=["gates", "weights", "all"],
)
@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_a_loop_over_samples(name: str, needs: set[str], slow: set[str]) -> None:
    case = CASES[name]
    model, groups = ready(case)
    x, y = case.data(7)
    found = collect(model, groups, [(x[:4], y[:4]), (x[4:], y[4:])], needs=needs)
    model.eval()
    if GATE_GRADIENTS in needs:
        assert groups
        for group in groups:
            each = torch.stack([gate_derivatives(model, group, *sample) for sample in zip(x, y, strict=True)])
            gates = found.gates[group.name]
            torch.testing.assert_close(gates.total, each.sum(0))
            torch.testing.assert_close(gates.absolute, each.abs().sum(0))
            torch.testing.assert_close(gates.squares, each.square().sum(0))
    if WEIGHT_GRADIENTS in needs:
        state = dict(model.named_parameters())
        assert found.gradients.keys() == state.keys()
        rows = [torch.autograd.grad(loss_of(model, *s), list(state.values())) for s in zip(x, y, strict=True)]
        for key, gradients in zip(state, zip(*rows, strict=True), strict=True):
            each = torch.stack(gradients)
            torch.testing.assert_close(found.gradients[key].total, each.sum(0))
            torch.testing.assert_close(found.gradients[key].absolute, each.abs().sum(0))
            torch.testing.assert_close(found.gradients[key].squares, each.square().sum(0))
    assert bool(slow) == case.slow


@pytest.mark.parametrize("name", CASES)
def test_batches_order_and_duplicates_change_nothing(name: str) -> None:
    case = CASES[name]
    model, groups = ready(case)
    x, y = case.data(6)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    whole = collect(model, groups, [(x, y)])
    same = collect(model, groups, list(zip(x[order].split(1), y[order].split(1), strict=True)))
    double = collect(model, groups, [(x, y), (x, y)])
    for other, factor in ((same, 1), (double, 2)):
        assert other.samples == factor * whole.samples
        for a, b in itertools.chain(
            zip(whole.gates.values(), other.gates.values(), strict=True),
            ((whole.gradients[key], other.gradients[key]) for key in whole.gradients),
        ):
            torch.testing.assert_close(factor * a.squares, b.squares)
            torch.testing.assert_close(factor * a.total, b.total)
        for c, d in zip(whole.consumers, other.consumers, strict=True):
            assert c.place == d.place
            assert c.gram is not None and d.gram is not None and c.moments is not None and d.moments is not None
            torch.testing.assert_close(c.gram.total * factor, d.gram.total)
            torch.testing.assert_close(c.moments.squares * factor, d.moments.squares)
            torch.testing.assert_close(c.output_gradients * factor, d.output_gradients)


def test_a_use_that_appears_late_is_noticed(slow: set[str]) -> None:
    torch.manual_seed(1)
    model = Late()
    groups = [Group("a", 6, (Slice("b.weight", 1, torch.arange(6).reshape(-1, 1), masked=True),))]
    x, y = torch.randn(12, 4), torch.randint(3, (12,))
    x[-1] = 60.0
    found = collect(model, groups, list(zip(x.split(2), y.split(2), strict=True)), needs=GRADIENTS)
    assert slow == {"a", "b.weight"}
    # The use belongs to one batch only, whose samples run alone; there, the sample that does not call for it has none.
    each = torch.stack([gate_derivatives(model, groups[0], *sample) for sample in zip(x, y, strict=True)])
    torch.testing.assert_close(found.gates["a"].squares, each.square().sum(0))


class Kinked(nn.Module):
    """All of its activations lie next to a kink: just above in a batch, below for a sample alone."""

    def __init__(self, step: float) -> None:
        super().__init__()
        self.up, self.down, self.beside, self.step = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(4, 3), step

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.up(x)
        above = self.step if len(x) > 1 else -self.step
        return self.down(torch.relu(hidden - hidden.detach() + above)) + self.beside(x)


@pytest.mark.parametrize(("step", "is_slow"), [(1e-12, False), (0.1, True)])
def test_rounding_at_a_kink_is_no_reason_to_run_samples_alone(step: float, is_slow: bool, slow: set[str]) -> None:
    torch.manual_seed(2)
    model = Kinked(step)
    groups = [Group("up", 6, (Slice("down.weight", 1, torch.arange(6).reshape(-1, 1), masked=True),))]
    x, y = torch.randn(7, 4), torch.randint(3, (7,))
    found = collect(model, groups, [(x, y)], needs=GRADIENTS)
    assert bool(slow) == is_slow
    # Together the units above the kink pass gradients on, alone those below it do not.
    assert bool(found.gradients["up.bias"].squares.any()) != is_slow


def test_batches_of_one_sample_prove_nothing_about_larger_ones(slow: set[str]) -> None:
    case = CASES["reordered"]
    model, groups = ready(case)
    x, y = case.data(7)
    sizes = [1, 1, 1, 4]
    found = collect(model, groups, list(zip(x.split(sizes), y.split(sizes), strict=True)), needs=GRADIENTS)
    assert slow
    for group in groups:
        each = torch.stack([gate_derivatives(model, group, *sample) for sample in zip(x, y, strict=True)])
        torch.testing.assert_close(found.gates[group.name].squares, each.square().sum(0))


def test_gradients_are_found_wherever_the_caller_has_switched_them_off() -> None:
    case = CASES["called twice"]
    model, groups = ready(case)
    data = [case.data(3)]
    expected = collect(model, groups, data, needs=GRADIENTS).gradients
    for off in (torch.no_grad(), torch.inference_mode()):
        with off:
            found = collect(model, groups, data, needs=GRADIENTS).gradients
        assert all(torch.equal(found[name].squares, expected[name].squares) for name in expected)


def test_moments_and_grams_are_those_of_numpy() -> None:
    model, groups = ready(CASES["convolutions"])
    x, _ = CASES["convolutions"].data(5)
    x = torch.where(x > 1, 0.0, x)
    with torch.inference_mode():
        found = collect(model, groups, [x[:2], x[2:]], needs={INPUT_MOMENTS, GRAMS})
    first, grouped = found.consumers[:2]
    assert first.place == Place("0.weight", 0, 6) and first.calls == 1
    patches = functional.unfold(x, 3, padding=1).transpose(1, 2).reshape(-1, 18).numpy()
    assert first.gram is not None and first.moments is not None
    columns = np.concatenate([patches, np.ones((len(patches), 1))], axis=1)
    np.testing.assert_allclose(first.gram.total[0].numpy(), columns.T @ columns)
    assert first.gram.positions == first.moments.positions == len(patches)
    for got, expected in (
        (first.moments.total, patches.sum(0)),
        (first.moments.absolute, np.abs(patches).sum(0)),
        (first.moments.squares, (patches**2).sum(0)),
        (first.moments.zeros, (patches == 0).sum(0)),
    ):
        np.testing.assert_allclose(got[0].numpy(), expected, atol=1e-10)
    assert grouped.bias == Place("3.bias", 0, 6)
    assert grouped.gram is not None and grouped.gram.total.shape == (3, 13, 13)
    assert not found.gates and not found.gradients and found.samples == 5


def test_output_gradients_are_those_of_a_loop_over_samples() -> None:
    case = CASES["called twice"]
    model, groups = ready(case)
    x, y = case.data(5)
    found = {c.place.name: c for c in collect(model, groups, [(x, y)], needs={OUTPUT_GRADIENTS}).consumers}
    shared = found["shared.weight"]
    assert shared.calls == 2
    expected = torch.zeros(6, 6)
    for sample, label in zip(x, y, strict=True):
        a = model.first(sample)
        b = model.shared(a)
        c = model.shared(torch.tanh(b))
        hidden = torch.stack([model.token[0, 0], torch.tanh(c) * model.gain]).mean(0)
        loss = functional.cross_entropy(model.head(hidden).unsqueeze(0), label.unsqueeze(0))
        for g in torch.autograd.grad(loss, [b, c]):
            expected += torch.outer(g, g)
    torch.testing.assert_close(shared.output_gradients[0], expected)


def test_sampled_labels_give_the_fisher_information_of_the_model() -> None:
    model = nn.Linear(3, 4)
    x = torch.randn(1, 3)
    p = model(x).softmax(-1)[0].detach()
    exact = torch.diag(p) - torch.outer(p, p)
    data = [x.expand(4000, 3)]
    found = collect(model, [], data, needs={OUTPUT_GRADIENTS}, labels="sampled")
    assert found.consumers[0].output_gradients is not None
    mean = found.consumers[0].output_gradients[0] / 4000
    assert torch.allclose(mean, exact, atol=0.03)
    again = collect(model, [], list(data[0].split(700)), needs={OUTPUT_GRADIENTS}, labels="sampled")
    torch.testing.assert_close(again.consumers[0].output_gradients, found.consumers[0].output_gradients)
    other = collect(model, [], data, needs={OUTPUT_GRADIENTS}, labels="sampled", seed=1)
    assert not torch.equal(other.consumers[0].output_gradients, found.consumers[0].output_gradients)
    with pytest.raises(ArgumentError, match="labels='true'"):
        collect(model, [], data, needs={OUTPUT_GRADIENTS}, labels="sampled", loss="mse")


@pytest.mark.parametrize("name", ["called twice", "lstm"])
def test_the_hessians_diagonal_is_that_of_the_whole_hessian(name: str) -> None:
    case = CASES[name]
    model = nn.Sequential(nn.LSTM(2, 2, batch_first=True)) if name == "lstm" else ready(case)[0]
    if name == "lstm":

        class Small(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.rnn, self.head = nn.LSTM(2, 2, batch_first=True), nn.Linear(2, 2)

            def forward(self, x: Tensor) -> Tensor:
                return self.head(self.rnn(x)[0][:, -1])

        model = Small()
        x, y = torch.randn(3, 3, 2), torch.randint(2, (3,))
    else:
        x, y = case.data(3)
    found = collect(
        model, [], [(x[:2], y[:2]), (x[2:], y[2:])], needs={HESSIAN_DIAGONAL}, hessian_vectors=None
    ).hessian_diagonal
    state = {key: p.detach() for key, p in model.named_parameters()}
    sizes = [p.numel() for p in state.values()]

    def mean_loss(flat: Tensor) -> Tensor:
        parts = torch.split(flat, sizes)
        values = {key: part.reshape(p.shape) for (key, p), part in zip(state.items(), parts, strict=True)}
        return torch.stack([loss_of(model, a, b, values) for a, b in zip(x, y, strict=True)]).mean()

    flat = torch.cat([p.flatten() for p in state.values()])
    hessian = torch.autograd.functional.hessian(mean_loss, flat)
    exact = torch.cat([found[key].flatten() for key in state])
    torch.testing.assert_close(exact, hessian.diagonal())
    vectors = 400
    about = collect(model, [], [(x, y)], needs={HESSIAN_DIAGONAL}, hessian_vectors=vectors).hessian_diagonal
    estimate = torch.cat([about[key].flatten() for key in state])
    rest = hessian - torch.diag(hessian.diagonal())
    error = rest.square().sum(1).sqrt() / vectors**0.5
    assert bool(((estimate - exact).abs() <= 4.5 * error + 1e-12).all())
    assert bool(((estimate - exact).abs() > 0.1 * error).float().mean() > 0.5)


def test_wide_consumers_are_left_out_and_named() -> None:
    model = nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 3))
    data = [(torch.randn(5, 4), torch.randint(3, (5,)))]
    found = collect(model, [], data, needs={GRAMS, OUTPUT_GRADIENTS}, most_columns=8)
    assert [c.gram is None for c in found.consumers] == [False, True]
    assert [c.output_gradients is None for c in found.consumers] == [True, False]
    assert sorted((note.where, note.text.split(":")[0]) for note in found.notes) == [
        ("0.weight", "no output gradients"),
        ("2.weight", "no Gram"),
    ]


def test_sampled_positions_err_as_stated() -> None:
    conv = nn.Conv1d(1, 1, 1)
    x = torch.randn(1, 1, 400)
    errors = []
    for count, seed in itertools.product((25, 100), range(200)):
        gram = collect(conv, [], [x], needs={GRAMS}, positions=count, seed=seed).consumers[0].gram
        assert gram is not None and gram.positions == count
        errors.append(float(gram.mean()[0, 0, 0] - x.square().mean()))
    few, many = torch.tensor(errors).reshape(2, -1).square().mean(1).sqrt()
    # Without replacement: sd * sqrt((1 - n / N) / n).
    spread = x.square().std()
    assert float(few / spread) == pytest.approx(((1 - 25 / 400) / 25) ** 0.5, rel=0.15)
    assert float(many / spread) == pytest.approx(((1 - 100 / 400) / 100) ** 0.5, rel=0.15)


def test_half_precision_weights() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).bfloat16()
    groups = list(find_groups(trace(model, (torch.randn(2, 4).bfloat16(),))))
    x, y = torch.randn(6, 4).bfloat16(), torch.randint(3, (6,))
    found = collect(model, groups, [(x, y)])
    single = collect(copy.deepcopy(model).float(), groups, [(x.float(), y)])
    for name, gate in found.gates.items():
        assert gate.squares.dtype == torch.float64
        torch.testing.assert_close(gate.squares, single.gates[name].squares, rtol=0.2, atol=1e-3)
    assert found.consumers[1].gram is not None and found.consumers[1].gram.total.dtype == torch.float64


def test_the_model_is_left_as_it_is() -> None:
    model, groups = ready(CASES["convolutions"])
    model.train()
    model[0].weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    collect(model, groups, [CASES["convolutions"].data(4)], needs=NEEDS, hessian_vectors=1)
    assert model.training and not model[0].weight.requires_grad and model[1].weight.requires_grad
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())


def test_a_gradient_that_is_not_finite_names_the_sample() -> None:
    model = nn.Linear(2, 1, bias=False)
    x = torch.ones(5, 2)
    x[3] = 0

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.abs().sqrt().flatten()

    with pytest.raises(NumericalError, match=r"'weight' for calibration sample 3 is not"):
        collect(model, [], [(x[:2], x[:2]), (x[2:], x[2:])], needs={WEIGHT_GRADIENTS}, loss=loss)


@pytest.mark.parametrize("name", ["convolutions", "tied", "packed"])
def test_statistics_of_two_parts_merge_into_those_of_the_whole(name: str) -> None:
    case = CASES[name]
    model, groups = ready(case)
    x, y = case.data(7)
    whole = collect(model, groups, [(x, y)], needs=NEEDS, hessian_vectors=2)
    parts = [
        collect(model, groups, [(x[rows], y[rows])], needs=NEEDS, hessian_vectors=2) for rows in (slice(3), slice(3, 7))
    ]
    merged = merge(*parts)
    assert merged.samples == 7
    assert merged.gates.keys() == whole.gates.keys() and merged.gradients.keys() == whole.gradients.keys()
    for found, expected in ((merged.gates, whole.gates), (merged.gradients, whole.gradients)):
        for key in expected:
            for part in ("total", "absolute", "squares"):
                torch.testing.assert_close(getattr(found[key], part), getattr(expected[key], part))
    for key in whole.hessian_diagonal:
        torch.testing.assert_close(merged.hessian_diagonal[key], whole.hessian_diagonal[key])
    for c, d in zip(merged.consumers, whole.consumers, strict=True):
        assert c.gram is not None and d.gram is not None and c.moments is not None and d.moments is not None
        assert (c.gram.positions, c.moments.positions) == (d.gram.positions, d.moments.positions)
        torch.testing.assert_close(c.gram.total, d.gram.total)
        torch.testing.assert_close(c.output_gradients, d.output_gradients)
        for part in ("total", "absolute", "squares", "zeros"):
            torch.testing.assert_close(getattr(c.moments, part), getattr(d.moments, part))


def test_statistics_of_other_weights_or_needs_do_not_merge() -> None:
    model, x = nn.Linear(2, 2), torch.randn(3, 2)
    found = collect(model, [], [x], needs={GRAMS})
    with pytest.raises(ArgumentError, match="only one of the statistics has moments of 'weight'"):
        merge(found, collect(model, [], [x], needs={INPUT_MOMENTS}))
    with pytest.raises(ArgumentError, match="parameter 'weight' differs"):
        merge(found, collect(nn.Linear(2, 2), [], [x], needs={GRAMS}))


def test_predicted_bytes_are_those_of_what_is_collected() -> None:
    model, groups = ready(CASES["convolutions"])
    data = CASES["convolutions"].data(4)
    for needs in (NEEDS, {GRAMS}, {GATE_GRADIENTS}):
        found = collect(model, groups, [data], needs=needs, hessian_vectors=1, most_columns=50)
        held = [t for d in (*found.gates.values(), *found.gradients.values()) for t in (d.total, d.absolute, d.squares)]
        held += list(found.hessian_diagonal.values())
        for c in found.consumers:
            held += [c.gram.total] if c.gram is not None else []
            held += [c.output_gradients] if c.output_gradients is not None else []
            held += [c.moments.total, c.moments.absolute, c.moments.squares, c.moments.zeros] if c.moments else []
        assert bytes_needed(model, groups, data, needs=needs, most_columns=50) == sum(t.nbytes for t in held)


def test_output_gradients_alone_leave_changes_in_place_to_the_model() -> None:
    model, groups = ready(CASES["flattened"])
    data = [CASES["flattened"].data(4)]
    alone = collect(model, groups, data, needs={OUTPUT_GRADIENTS})
    for a, b in zip(alone.consumers, collect(model, groups, data).consumers, strict=True):
        torch.testing.assert_close(a.output_gradients, b.output_gradients)


class Readers(nn.Module):
    """Two layers that read the same tensor, which may be written to in between."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.a, self.b, self.shift = nn.Linear(4, 2), nn.Linear(4, 2), shift

    def forward(self, x: Tensor) -> Tensor:
        seen = x * 2
        first = self.a(seen)
        if self.shift:
            seen += self.shift
        return first + self.b(seen)


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_what_several_layers_read_is_summed_once_unless_it_changed(shift: float, monkeypatch: Any) -> None:
    read: list[int] = []
    original = tally.gram_of_inputs
    monkeypatch.setattr(tally, "gram_of_inputs", lambda *given: (read.append(0), original(*given))[1])
    parts = torch.randn(3, 4), torch.randn(2, 4)
    found = {c.place.name: c for c in collect(Readers(shift), [], parts, needs={GRAMS, INPUT_MOMENTS}).consumers}
    assert len(read) == (4 if shift else 2)
    x = torch.cat(parts).double()
    for name, inputs in (("a.weight", 2 * x), ("b.weight", 2 * x + shift)):
        torch.testing.assert_close(found[name].gram.total[0, :-1, :-1], inputs.T @ inputs, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found[name].moments.total[0], inputs.sum(0), rtol=1e-5, atol=1e-5)
