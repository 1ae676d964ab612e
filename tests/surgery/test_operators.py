"""Operators that stand between two layers: what goes through them is cut exactly, or not at all."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from secateur.graph import infer
from secateur.graph.groups import find_fixed, find_groups
from secateur.graph.rules.table import rule_for
from secateur.graph.trace import trace
from secateur.graph.typing import operator_name
from secateur.surgery.cut import cut
from secateur.surgery.mask import mask
from secateur.surgery.plan import plan

Between = Callable[[Tensor, Tensor], Tensor]


class Bottleneck(nn.Module):
    def __init__(self, between: Between) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 3)
        self.between, self.gain = between, nn.Parameter(torch.rand(8) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.between(self.up(x), self.gain))


def write_rows(x: Tensor, gain: Tensor) -> Tensor:
    written = x.clone()
    written[torch.tensor([0, 2])] = gain
    written[torch.tensor([[1], [3]]), :] = (x[:2] * gain).unsqueeze(1)
    return written


EXACT: dict[str, Between] = {
    "multiply": torch.multiply,
    "divide": torch.divide,
    "subtract": torch.subtract,
    "absolute": lambda x, gain: torch.absolute(x) * torch.special.expit(gain),
    "compared": lambda x, gain: x * (torch.greater(x, gain) & torch.less_equal(x, 2.0)).double(),
    "rsub": lambda x, gain: torch.rsub(x, gain) + torch.floor_divide(x, gain),
    "aminmax": lambda x, gain: x * torch.aminmax(x, dim=0)[1],
    "median": lambda x, gain: x + torch.median(x, 0)[0],
    "quantile": lambda x, gain: x + torch.quantile(x, 0.5, dim=0),
    "index_put": write_rows,
    "nanmean": lambda x, gain: x * torch.nanmean(x, 0),
}


@pytest.mark.parametrize("name", EXACT)
def test_what_works_unit_by_unit_is_exact(name: str) -> None:
    torch.manual_seed(0)
    model = Bottleneck(EXACT[name]).double().eval()
    program = trace(model, (torch.randn(5, 4).double(),))
    (group,) = find_groups(program)
    assert (group.size, group.exact) == (8, True)
    chosen = plan([group], {group.name: torch.rand(8)}, sparsity=0.5)
    x = torch.randn(5, 4).double()
    small, masked = cut(model, chosen, program=program)(x), mask(model, chosen, program=program)(x)
    torch.testing.assert_close(small, masked, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(masked, model(x))


@pytest.mark.parametrize("take", [torch.var_mean, torch.std_mean])
def test_what_is_recomputed_over_the_units_is_flagged(take: Callable[..., tuple[Tensor, Tensor]]) -> None:
    model = Bottleneck(lambda x, gain: x * take(x, -1, keepdim=True)[0]).double().eval()
    (group,) = find_groups(trace(model, (torch.randn(5, 4).double(),)))
    assert (group.size, group.exact, group.note) == (8, False, f"{take.__name__} is taken over it")


def test_a_rule_that_breaks_costs_units_and_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ValueError("no such thing")

    monkeypatch.setattr(
        infer, "rule_for", lambda node: broken if operator_name(node) == "aten.tanh" else rule_for(node)
    )
    program = trace(Bottleneck(lambda x, gain: x.tanh() * gain).eval(), (torch.randn(5, 4),))
    assert find_groups(program) == ()
    assert any("the rule of aten.tanh does not fit this call (no such thing)" in f.reason for f in find_fixed(program))


def test_a_forward_pass_that_draws_is_verified_with_the_same_draws() -> None:
    torch.manual_seed(0)
    model = Bottleneck(lambda x, gain: x * torch.rand(x.shape[0], 1, dtype=x.dtype) * gain).double().eval()
    program = trace(model, (torch.randn(5, 4).double(),))
    (group,) = find_groups(program)
    before = torch.random.get_rng_state()
    chosen = plan([group], {group.name: torch.arange(8.0)}, sparsity=0.5)
    small = cut(model, chosen, program=program)
    assert small.up.out_features == 4
    assert torch.equal(torch.random.get_rng_state(), before)


def test_places_where_a_tensor_is_split_are_no_chosen_positions() -> None:
    def between(x: Tensor, gain: Tensor) -> Tensor:
        first, rest = torch.tensor_split(x * gain, (1,), dim=0)
        return torch.cat([first.relu(), rest])

    (group,) = find_groups(trace(Bottleneck(between).eval(), (torch.randn(5, 4),)))
    assert (group.size, group.exact) == (8, True)
