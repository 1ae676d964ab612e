"""Repair against closed forms and brute force."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from networks import CASES, built
from secateur.data import as_batches
from secateur.errors import NumericalError
from secateur.graph.groups import find_groups
from secateur.graph.trace import trace
from secateur.repairs import calls
from secateur.repairs.changes import OTHER_CALLS, READ_OTHERWISE, REPEATED_NORM
from secateur.repairs.least_squares import solve
from secateur.repairs.repair import repair
from secateur.surgery.cut import cut
from secateur.surgery.plan import Plan, plan


def setting(model: nn.Module, x: torch.Tensor, keep: dict[str, list[int]]):
    program = trace(model, (x[:2],))
    groups = find_groups(program)
    sizes = {g.name: g.size for g in groups if g.name in keep}
    chosen = Plan({name: torch.tensor(k) for name, k in keep.items()}, sizes)
    return program, groups, chosen, cut(model, chosen, program=program)


def test_a_linear_consumer_gets_the_least_squares_fit() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x = torch.randn(400, 5).double()
    program, groups, chosen, small = setting(model, x, {"0": [0, 2, 3, 6]})
    done = repair(small, model, chosen, as_batches([(x, None)], "c"), program=program, groups=groups, ridges=(1e-12,))
    assert done.refitted == ("2.weight",)
    before, after = (f"{error:.2%}" for error in (done.changes[0].before, done.changes[0].after))
    assert [line.split() for line in str(done).splitlines()] == [
        ["repaired:", "1", "by", "least", "squares"],
        ["2.weight", "error", before, "->", after],
    ]
    inputs = np.c_[torch.tanh(small[0](x)).detach().numpy(), np.ones(400)]
    expected, *_ = np.linalg.lstsq(inputs, model(x).detach().numpy(), rcond=None)
    found = np.c_[small[2].weight.detach().numpy(), small[2].bias.detach().numpy()].T
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(("stride", "padding", "dilation"), [(1, 1, 1), (2, 0, 1), (1, 2, 2)])
def test_a_convolution_gets_the_least_squares_fit(stride: int, padding: int, dilation: int) -> None:
    torch.manual_seed(1)
    second = nn.Conv2d(6, 4, 3, stride=stride, padding=padding, dilation=dilation)
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), second).double()
    x = torch.randn(40, 2, 9, 9).double()
    program, groups, chosen, small = setting(model, x, {"0": [1, 2, 5]})
    repair(small, model, chosen, as_batches([(x, None)], "c"), program=program, groups=groups, ridges=(1e-12,))
    # Stationarity: at the least-squares solution no parameter's gradient is left.
    loss = (small(x) - model(x).detach()).square().sum()
    gradients = torch.autograd.grad(loss, list(small[2].parameters()))
    assert max(float(g.abs().max()) for g in gradients) < 1e-5 * float(loss.detach())


def test_a_fit_draws_as_many_positions_as_its_columns_ask_for(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []

    def solved(parts, *given, **more):
        rows.append(sum(part.rows for part in parts))
        return solve(parts, *given, **more)

    monkeypatch.setattr(calls, "solve", solved)
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 1)).double()
    x = torch.randn(10, 2, 9, 9).double()
    program, groups, chosen, small = setting(model, x, {"0": [1, 2, 5]})
    repair(small, model, chosen, [x[:4], x[4:]], program=program, groups=groups, reach="cut", rows_per_column=8)
    # Eight for each of three columns and a constant are 32: at least 4 of each of the ten samples.
    assert rows == [40]


def test_removing_duplicates_is_repaired_completely() -> None:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    for copied, origin in ((3, 0), (4, 1), (5, 2)):
        model[0].weight.data[copied] = model[0].weight.data[origin]
        model[0].bias.data[copied] = model[0].bias.data[origin]
    x = torch.randn(200, 4).double()
    program, groups, chosen, small = setting(model, x, {"0": [0, 1, 2]})
    assert (small(x) - model(x)).abs().max() > 0.1
    repair(small, model, chosen, as_batches([(x, None)], "c"), program=program, groups=groups, ridges=(1e-12,))
    torch.testing.assert_close(small(x), model(x), atol=1e-6, rtol=0)


def test_batch_norm_gets_population_moments_whatever_the_batches() -> None:
    case = next(c for c in CASES if c.name == "residual")
    model = built(case)
    x = torch.randn(30, 3, 8, 8).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            module.reset_running_stats()
    model.train()(x)
    model.eval()
    program = trace(model, (x[:2],))
    groups = find_groups(program)
    chosen = plan(groups, {g.name: torch.rand(g.size) for g in groups}, sparsity=0.4)
    results, done = [], []
    for size in (30, 7):
        small = cut(model, chosen, program=program)
        batches = [(part, None) for part in x.split(size)]
        done.append(repair(small, model, chosen, as_batches(batches, "c"), program=program, groups=groups))
        results.append(small)
    assert torch.allclose(results[0].bn.running_var, results[1].bn.running_var, rtol=1e-9)
    small = results[0]
    # The same samples are held out, so the same is found out by them.
    for one, other in zip(done[0].changes, done[1].changes, strict=True):
        assert one.where == other.where
        assert (one.before, one.after) == pytest.approx((other.before, other.after), rel=1e-6)
    assert len(done[0].recalibrated) >= 2
    for name in done[0].recalibrated:
        seen: list[torch.Tensor] = []
        handle = getattr(small, name).register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
        small(x)
        handle.remove()
        values = seen.pop().movedim(1, 0).flatten(1)
        torch.testing.assert_close(getattr(small, name).running_mean, values.mean(1), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(
            getattr(small, name).running_var, values.var(1, unbiased=False), rtol=1e-9, atol=1e-12
        )


def test_where_nothing_was_removed_nothing_changes() -> None:
    case = next(c for c in CASES if c.name == "residual")
    model = built(case)
    x = torch.randn(20, 3, 8, 8).double()
    program = trace(model, (x[:2],))
    groups = find_groups(program)
    chosen = Plan({g.name: torch.arange(g.size) for g in groups}, {g.name: g.size for g in groups})
    small = cut(model, chosen, program=program)
    done = repair(small, model, chosen, [x], program=program, groups=groups)
    assert done.changes == () and done.notes == ()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in small.state_dict().items())


class Raised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Conv2d(1, 6, 3), nn.Conv2d(6, 4, 1, bias=False)
        self.norm = nn.BatchNorm2d(4, momentum=None)
        self.again = False

    def before(self, x):
        return self.down(self.up(x).relu()) + 3000

    def forward(self, x):
        y = self.norm(self.before(x))
        return self.norm(y) if self.again else y


@pytest.mark.parametrize(("reach", "refitted"), [("cut", ("2.weight",)), ("all", ("2.weight", "4.weight"))])
def test_how_far_repair_reaches(reach: str, refitted: tuple[str, ...]) -> None:
    torch.manual_seed(15)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    x = torch.randn(300, 5).double()
    program, groups, chosen, small = setting(model, 3 * x, {"0": [0, 2]})
    done = repair(small, model, chosen, [3 * x], program=program, groups=groups, reach=reach)
    assert done.refitted == refitted


def test_batch_norm_of_large_means_keeps_its_digits() -> None:
    torch.manual_seed(12)
    model, x = Raised(), torch.randn(32, 1, 16, 16)
    model.train()(x)
    program, groups, chosen, small = setting(model.eval(), x, {"up": [0, 4]})
    done = repair(small, model, chosen, [x[:20], x[20:]], program=program, groups=groups, ridges=(1e9,))
    assert done.recalibrated == ("norm",)
    seen = small.before(x).detach().double().movedim(1, 0).flatten(1)
    # Values near 3,000 are known to 2e-4, and vary by some tenths.
    torch.testing.assert_close(small.norm.running_var.double(), seen.var(1, unbiased=False), rtol=2e-3, atol=0)
    torch.testing.assert_close(small.norm.running_mean.double(), seen.mean(1), rtol=1e-6, atol=0)


def test_the_error_of_new_moments_is_that_on_samples_that_they_are_not_of() -> None:
    torch.manual_seed(12)
    model, x = Raised().double(), torch.randn(33, 1, 16, 16).double()
    model.train()(x)
    program, groups, chosen, small = setting(model.eval(), x, {"up": [0, 4]})
    done = repair(small, model, chosen, [x[:22], x[22:]], program=program, groups=groups, ridges=(1e9,))
    held = torch.arange(33) % 4 == 3
    fitted = small.before(x[~held]).detach().movedim(1, 0).flatten(1)
    y = torch.nn.functional.batch_norm(small.before(x[held]), fitted.mean(1), fitted.var(1, correction=0))
    target = model(x[held])
    expected = (y - target).square().sum() / target.square().sum()
    assert done.changes[-1].kind == "batch norm"
    assert done.changes[-1].after == pytest.approx(float(expected.detach()), rel=1e-6)


def test_a_batch_norm_that_is_called_twice_keeps_its_moments() -> None:
    torch.manual_seed(14)
    model, x = Raised().double(), torch.randn(10, 1, 5, 5).double()
    model.train()(x)
    model.again = True
    program, groups, chosen, small = setting(model.eval(), x, {"up": [0, 4]})
    done = repair(small, model, chosen, [x], program=program, groups=groups)
    assert done.recalibrated == () and ("norm", REPEATED_NORM) in [(n.where, n.text) for n in done.notes]
    assert torch.equal(small.norm.running_mean, model.norm.running_mean)


def test_nothing_is_made_worse_on_held_out_samples() -> None:
    """What nothing left can tell of is not fitted: the old weights are kept, with a note."""

    class Sine(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.sin()

    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(3, 40), Sine(), nn.Linear(40, 2)).double()
    model[0].weight.data[39] *= 1e4
    x = torch.randn(60, 3).double()
    program, groups, chosen, small = setting(model, x, {"0": list(range(39))})
    before = copy.deepcopy(small.state_dict())
    done = repair(small, model, chosen, as_batches([(x, None)], "c"), program=program, groups=groups, ridges=(1e-12,))
    assert done.refitted == () and [n.where for n in done.notes] == ["2.weight"]
    assert all(torch.equal(v, small.state_dict()[k]) for k, v in before.items())


def test_a_weight_that_is_also_a_table_is_left_alone_and_one_used_twice_is_not() -> None:
    class Reused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.mix = nn.Embedding(7, 6), nn.Linear(6, 6)
            self.decoder = nn.Linear(6, 7, bias=False)
            self.decoder.weight = self.table.weight

        def forward(self, tokens):
            return self.decoder(torch.tanh(self.mix(torch.tanh(self.mix(input=self.table(tokens))))))

    torch.manual_seed(4)
    model = Reused().double()
    tokens = torch.randint(7, (40, 5))
    program = trace(model, (tokens[:2],))
    groups = find_groups(program)
    chosen = plan(groups, {g.name: torch.rand(g.size) for g in groups}, sparsity=0.5)
    small = cut(model, chosen, program=program)
    table = small.table.weight.detach().clone()
    worse = (small(tokens) - model(tokens)).square().mean()
    done = repair(small, model, chosen, as_batches([(tokens, None)], "c"), program=program, groups=groups)
    assert done.refitted == ("mix.weight",)
    assert [(n.where, n.text) for n in done.notes] == [("table.weight", READ_OTHERWISE)]
    assert torch.equal(table, small.table.weight)
    assert (small(tokens) - model(tokens)).square().mean() < worse


@pytest.mark.parametrize("reach", ["all", "cut"])
def test_a_layer_used_twice_gets_the_fit_over_both_uses(reach: str) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x):
            return torch.stack([self.down(self.up(x).tanh()), self.down(self.up(3 * x).relu())])

    torch.manual_seed(6)
    model = Twice().double()
    x = torch.randn(100, 4).double()
    program, groups, chosen, small = setting(model, x, {"up": [0, 1, 5]})
    batches = as_batches([(x[:30], None), (x[30:], None)], "c")
    done = repair(small, model, chosen, batches, program=program, groups=groups, reach=reach, ridges=(1e-12,))
    assert done.refitted == ("down.weight",)
    loss = (small(x) - model(x).detach()).square().sum()
    gradients = torch.autograd.grad(loss, list(small.down.parameters()))
    assert max(float(g.abs().max()) for g in gradients) < 1e-6 * float(loss.detach())


def test_what_is_used_once_sees_what_repaired_layers_before_it_give() -> None:
    class TwiceAndOnce(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.mix, self.last = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)

        def before(self, x):
            return self.mix(self.mix(self.up(x).tanh()).tanh()).tanh()

        def forward(self, x):
            return self.last(self.before(x))

    torch.manual_seed(16)
    model = TwiceAndOnce().double()
    x = torch.randn(2000, 4).double()
    program = trace(model, (x[:2],))
    groups = find_groups(program)
    chosen = plan(groups, {g.name: torch.arange(g.size) for g in groups}, sparsity=0.25)
    small = cut(model, chosen, program=program)
    done = repair(small, model, chosen, [x], program=program, groups=groups, ridges=(1e-12,))
    assert set(done.refitted) >= {"mix.weight", "last.weight"}
    inputs = np.c_[small.before(x).detach().numpy(), np.ones(len(x))]
    expected, *_ = np.linalg.lstsq(inputs, model(x).detach().numpy(), rcond=None)
    np.testing.assert_allclose(small.last.weight.detach().numpy(), expected[:-1].T, atol=1e-6)


def test_the_bias_of_a_table_stays_where_nothing_was_removed() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.decoder = nn.Embedding(7, 6), nn.Linear(6, 7)
            self.decoder.weight = self.table.weight

        def forward(self, tokens):
            return self.decoder(self.table(tokens).tanh())

    torch.manual_seed(17)
    model = Tied().double()
    tokens = torch.randint(7, (40, 5))
    program, groups, chosen, small = setting(model, tokens, {"table": list(range(6))})
    done = repair(small, model, chosen, [tokens], program=program, groups=groups)
    assert done.changes == () and torch.equal(small.decoder.bias, model.decoder.bias)


RECURRENT = [
    (nn.LSTM, {}),
    (nn.LSTM, {"num_layers": 2, "bidirectional": True}),
    (nn.LSTM, {"proj_size": 6, "bias": False}),
    (nn.GRU, {"num_layers": 2}),
    (nn.GRU, {"bidirectional": True, "bias": False}),
    (nn.RNN, {"num_layers": 2}),
    (nn.RNN, {"nonlinearity": "relu", "batch_first": True}),
]


class Sequence(nn.Module):
    def __init__(self, cls: type[nn.Module], how: dict) -> None:
        super().__init__()
        self.rnn = cls(5, 12, **how)
        width = how.get("proj_size", 12) * (2 if how.get("bidirectional") else 1)
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        return self.head(self.rnn(x)[0])


@pytest.mark.parametrize(("cls", "how"), RECURRENT, ids=[f"{c.__name__} {list(h)}" for c, h in RECURRENT])
def test_recurrent_layers_come_closer_to_the_dense_ones(cls: type[nn.Module], how: dict) -> None:
    torch.manual_seed(7)
    model = Sequence(cls, how).double()
    # Units in pairs that do nearly the same, so that one of each can make up for the other.
    x, fresh = torch.randn(2, 10, 40, 5).double().cumsum(1) / 3
    if how.get("batch_first"):
        x, fresh = x.transpose(0, 1), fresh.transpose(0, 1)
    program = trace(model, (x[:, :2] if not how.get("batch_first") else x[:2],))
    groups = find_groups(program)
    generator = torch.Generator().manual_seed(3)
    chosen = plan(groups, {g.name: torch.rand(g.size, generator=generator) for g in groups}, sparsity=0.3)
    small = cut(model, chosen, program=program)
    before = (small(fresh) - model(fresh)).square().mean()
    batches = [(x, None)]
    batch_fn = None
    if not how.get("batch_first"):
        # The first dimension of a batch is the samples', the model's is time.
        batch_fn = lambda raw: ((raw[0],), {}, None)  # noqa: E731
    source = as_batches(batches, "c", batch_fn)
    done = repair(small, model, chosen, source, program=program, groups=groups)
    assert sum(c.kind == "recurrent" for c in done.changes) >= 1
    assert all(c.after < c.before for c in done.changes)
    assert (small(fresh) - model(fresh)).square().mean() < 0.7 * before


@pytest.mark.parametrize(("cls", "how"), RECURRENT, ids=[f"{c.__name__} {list(h)}" for c, h in RECURRENT])
def test_duplicated_hidden_units_are_made_up_for_completely(cls: type[nn.Module], how: dict) -> None:
    """Each unit has a twin that does the same: without the twins, nothing is lost."""
    torch.manual_seed(8)
    model = Sequence(cls, how).double()
    width = how.get("proj_size", 12)
    for name, p in model.rnn.named_parameters():
        if "hr" in name:
            p.data[width // 2 :] = p.data[: width // 2]
        else:
            gates = p.data.reshape(-1, 12, *p.shape[1:])
            gates[:, 6:] = gates[:, :6]
    x = torch.randn(6, 40, 5).double()
    program = trace(model, (x[:2] if how.get("batch_first") else x[:, :2],))
    groups = find_groups(program)
    keep = {}
    for g in groups:
        first = torch.arange(g.width) < g.width // 2
        keep[g.name] = first.repeat(g.rows).nonzero().flatten()
    chosen = Plan(keep, {g.name: g.size for g in groups})
    small = cut(model, chosen, program=program)
    assert (small(x) - model(x)).abs().max() > 1e-3
    source = as_batches([(x, None)], "c", lambda raw: ((raw[0],), {}, None))
    repair(small, model, chosen, source, program=program, groups=groups, ridges=(1e-13,))
    torch.testing.assert_close(small(x), model(x), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("reach", "tried"), [("cut", ["first"]), ("all", ["first", "second"])])
def test_how_far_repair_of_recurrent_layers_reaches(reach: str, tried: list[str]) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(4, 8), nn.Linear(5, 2)
            self.first, self.second = (nn.LSTM(k, n, batch_first=True) for k, n in ((8, 6), (6, 5)))

        def forward(self, x):
            return self.down(self.second(self.first(self.up(x).tanh())[0])[0])

    torch.manual_seed(9)
    model = Two().double()
    x = torch.randn(40, 6, 4).double()
    program, groups, chosen, small = setting(model, x, {"up": [0, 3, 5]})
    done = repair(small, model, chosen, [x], program=program, groups=groups, reach=reach)
    found = {c.where for c in (*done.changes, *done.notes)} - {"down.weight"}
    assert found == {f"{name}.weight_ih_l0" for name in tried}


def test_a_layer_called_by_keyword_is_repaired() -> None:
    class Keyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x):
            return self.down(input=torch.tanh(self.up(input=x)))

    torch.manual_seed(5)
    model = Keyword().double()
    x = torch.randn(120, 4).double()
    program, groups, chosen, small = setting(model, x, {"up": [0, 1, 5]})
    before = (small(x) - model(x)).detach().square().mean()
    done = repair(small, model, chosen, as_batches([(x, None)], "c"), program=program, groups=groups)
    assert done.refitted == ("down.weight",)
    assert (small(x) - model(x)).detach().square().mean() < 0.5 * before


def test_a_bias_that_two_layers_share_stays_and_counts_as_part_of_the_outputs() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2), nn.Linear(8, 2)
            self.b.bias = self.a.bias

        def forward(self, x):
            hidden = self.up(x).tanh()
            return torch.cat([self.a(hidden), self.b(hidden.square())], 1)

    torch.manual_seed(9)
    model = Shared().double()
    nn.init.constant_(model.a.bias, 3.0)
    x = torch.randn(2000, 4).double()
    program, groups, chosen, small = setting(model, x, {"up": [0, 1, 2, 5, 6]})
    repair(small, model, chosen, [x], program=program, groups=groups, ridges=(1e-12,))
    assert torch.equal(small.a.bias, model.a.bias) and small.b.bias is small.a.bias
    hidden = small.up(x).tanh().detach()
    for layer, inputs, target in ((small.a, hidden, model(x)[:, :2]), (small.b, hidden.square(), model(x)[:, 2:])):
        expected, *_ = np.linalg.lstsq(inputs.numpy(), (target - model.a.bias).detach().numpy(), rcond=None)
        np.testing.assert_allclose(layer.weight.detach().numpy().T, expected, atol=1e-6)


def test_a_repair_that_fails_leaves_the_model_as_it_was() -> None:
    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down, self.norm = nn.Linear(4, 8), nn.Linear(8, 3), nn.BatchNorm1d(3)

        def forward(self, x):
            return self.norm(self.down(self.up(x).tanh()).div(self.scale))

    torch.manual_seed(10)
    model = Late().double().eval()
    model.scale = 1.0
    x = torch.randn(40, 4).double()
    program, groups, chosen, small = setting(model, x, {"up": [0, 1, 5]})
    small.scale = 0.0
    before = {name: tensor.clone() for name, tensor in small.state_dict().items()}
    with pytest.raises(NumericalError, match="of 'norm' are not finite"):
        repair(small, model, chosen, [x], program=program, groups=groups)
    assert all(torch.equal(tensor, before[name]) for name, tensor in small.state_dict().items())


def test_what_the_dense_model_does_not_call_is_left_alone_with_all_that_follows() -> None:
    class Sometimes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down, self.extra = nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(3, 3)
            self.more = False

        def forward(self, x):
            y = self.down(self.up(x).tanh())
            return self.extra(y) if self.more else y

    torch.manual_seed(11)
    model = Sometimes().double()
    x = torch.randn(40, 4).double()
    program, groups, chosen, small = setting(model, x, {"up": [0, 1, 5]})
    small.more = True
    done = repair(small, model, chosen, [x], program=program, groups=groups)
    assert done.refitted == ("down.weight",)
    assert [(n.where, n.text) for n in done.notes] == [("extra.weight", OTHER_CALLS)]


def test_inputs_that_are_not_finite_are_refused() -> None:
    case = next(c for c in CASES if c.name == "residual")
    model = built(case)
    x = torch.randn(8, 3, 8, 8).double()
    program, groups, chosen, small = setting(model, x, {"a1": [0, 1, 2]})
    small.stem.weight.data[0, 0, 0, 0] = float("inf")
    with pytest.raises(NumericalError, match="of 'bn' are"):
        repair(small, model, chosen, as_batches([(x, None)], "c"), program=program, groups=groups)


class ReadTwice(nn.Module):
    """A weight that a linear layer reads, and another map that repair does not see."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.first, self.second = nn.Linear(8, 24), nn.Linear(24, 16)
        self.weight, self.last = nn.Parameter(torch.randn(6, 16)), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.second(torch.relu(self.first(x))))
        unseen = {
            "in another shape": lambda: h.view(-1, 2, 8) @ self.weight.view(12, 8).T,
            "some columns": lambda: h[:, :5].unsqueeze(1) @ self.weight[:, :5].T,
        }
        return self.last(nn.functional.linear(h, self.weight)) + unseen[self.how]().sum((1, 2)).unsqueeze(1)


@pytest.mark.parametrize("how", ["in another shape", "some columns"])
def test_a_weight_with_a_use_that_is_not_seen_is_left_alone(how: str) -> None:
    torch.manual_seed(0)
    dense, x = ReadTwice(how).eval(), torch.randn(500, 8)
    program = trace(dense, (x[:2],))
    groups = [group for group in find_groups(program) if group.name == "first"]
    chosen = plan(groups, {"first": torch.rand(24, dtype=torch.float64)}, sparsity=0.5)
    small = cut(dense, chosen, program=program)
    before = (small(x) - dense(x)).square().mean()
    done = repair(small, dense, chosen, [(x, None)], program=program, groups=groups)
    assert torch.equal(small.weight, dense.weight)
    assert ("weight", READ_OTHERWISE) in [(note.where, note.text) for note in done.notes]
    assert (small(x) - dense(x)).square().mean() < 0.7 * before
