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
from secateur.surgery.cut import cut
from secateur.surgery.plan import Plan, plan
from secateur.surgery.repair import repair, run_order


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
    done = repair(small, model, chosen, as_batches([(x, None)], "c"), program=program, groups=groups, ridge=1e-12)
    assert done.refitted == ("2",)
    fit = [k for k in range(400) if k % 4 != 3]
    inputs = np.c_[torch.tanh(small[0](x)).detach().numpy()[fit], np.ones(300)]
    expected, *_ = np.linalg.lstsq(inputs, model(x).detach().numpy()[fit], rcond=None)
    found = np.c_[small[2].weight.detach().numpy(), small[2].bias.detach().numpy()].T
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(("stride", "padding", "dilation"), [(1, 1, 1), (2, 0, 1), (1, 2, 2)])
def test_a_convolution_gets_the_least_squares_fit(stride: int, padding: int, dilation: int) -> None:
    torch.manual_seed(1)
    second = nn.Conv2d(6, 4, 3, stride=stride, padding=padding, dilation=dilation)
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), second).double()
    x = torch.randn(40, 2, 9, 9).double()
    program, groups, chosen, small = setting(model, x, {"0": [1, 2, 5]})
    repair(small, model, chosen, as_batches([(x, None)], "c"), program=program, groups=groups, ridge=1e-12)
    fit = torch.tensor([k for k in range(40) if k % 4 != 3])
    # Stationarity: at the least-squares solution no parameter's gradient is left.
    loss = (small(x[fit]) - model(x[fit]).detach()).square().sum()
    gradients = torch.autograd.grad(loss, list(small[2].parameters()))
    assert max(float(g.abs().max()) for g in gradients) < 1e-5 * float(loss.detach())


def test_removing_duplicates_is_repaired_completely() -> None:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    for copied, origin in ((3, 0), (4, 1), (5, 2)):
        model[0].weight.data[copied] = model[0].weight.data[origin]
        model[0].bias.data[copied] = model[0].bias.data[origin]
    x = torch.randn(200, 4).double()
    program, groups, chosen, small = setting(model, x, {"0": [0, 1, 2]})
    assert (small(x) - model(x)).abs().max() > 0.1
    repair(small, model, chosen, as_batches([(x, None)], "c"), program=program, groups=groups, ridge=1e-12)
    torch.testing.assert_close(small(x), model(x), atol=1e-6, rtol=0)


def test_batch_norm_gets_population_moments_whatever_the_batches() -> None:
    case = next(c for c in CASES if c.name == "residual")
    model = built(case)
    x = torch.randn(30, 3, 8, 8).double()
    program = trace(model, (x[:2],))
    groups = find_groups(program)
    chosen = plan(groups, {g.name: torch.rand(g.size) for g in groups}, sparsity=0.4)
    results = []
    for size in (30, 7):
        small = cut(model, chosen, program=program)
        batches = [(part, None) for part in x.split(size)]
        repair(small, model, chosen, as_batches(batches, "c"), program=program, groups=groups)
        results.append(small)
    assert torch.allclose(results[0].bn.running_var, results[1].bn.running_var, rtol=1e-9)
    seen: list[torch.Tensor] = []
    small = results[0]
    for name in ("bn", "n1", "n2", "m1"):
        handle = getattr(small, name).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        small(x)
        handle.remove()
        values = seen.pop().movedim(1, 0).flatten(1)
        torch.testing.assert_close(getattr(small, name).running_mean, values.mean(1), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(
            getattr(small, name).running_var, values.var(1, unbiased=False), rtol=1e-9, atol=1e-12
        )


def test_nothing_is_made_worse_on_held_out_samples() -> None:
    """With fewer positions than inputs the fit cannot generalise: the old weights are kept, with a note."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(3, 40), nn.Tanh(), nn.Linear(40, 2)).double()
    model[2].weight.data[:, 39] = 0
    x = torch.randn(8, 3).double()
    program, groups, chosen, small = setting(model, x, {"0": list(range(39))})
    before = copy.deepcopy(small.state_dict())
    done = repair(small, model, chosen, as_batches([(x, None)], "c"), program=program, groups=groups, ridge=1e-12)
    assert done.refitted == () and [n.where for n in done.notes] == ["2"]
    assert all(torch.equal(v, small.state_dict()[k]) for k, v in before.items())


def test_run_order_is_that_of_execution() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.late, self.early = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            return self.late(self.early(x))

    assert run_order(Backwards(), as_batches([(torch.zeros(2, 3), None)], "c")) == ["early", "late"]


def test_a_module_called_twice_and_a_tied_weight_are_left_alone() -> None:
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
    before = copy.deepcopy(small.state_dict())
    done = repair(small, model, chosen, as_batches([(tokens, None)], "c"), program=program, groups=groups)
    assert done.refitted == () and [n.where for n in done.notes] == ["mix"]
    assert all(torch.equal(v, small.state_dict()[k]) for k, v in before.items())


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
    assert done.refitted == ("down",)
    assert (small(x) - model(x)).detach().square().mean() < 0.5 * before


def test_inputs_that_are_not_finite_are_refused() -> None:
    case = next(c for c in CASES if c.name == "residual")
    model = built(case)
    x = torch.randn(8, 3, 8, 8).double()
    program, groups, chosen, small = setting(model, x, {"a1": [0, 1, 2]})
    small.stem.weight.data[0, 0, 0, 0] = float("inf")
    with pytest.raises(NumericalError, match="'bn'"):
        repair(small, model, chosen, as_batches([(x, None)], "c"), program=program, groups=groups)
