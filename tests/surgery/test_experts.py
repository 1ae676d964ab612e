"""Experts as units: what is chosen by rank is flagged, and experts that are never chosen go without a trace."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from secateur.graph.groups import find_groups
from secateur.graph.trace import trace
from secateur.surgery.cut import cut
from secateur.surgery.plan import plan

EXPERTS, CHOSEN = 6, 2


class Indexed(nn.Module):
    """The weights of the chosen experts are gathered."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = EXPERTS
        self.router = nn.Linear(5, EXPERTS)
        self.up, self.down = nn.Parameter(torch.randn(EXPERTS, 7, 5)), nn.Parameter(torch.randn(EXPERTS, 5, 7))

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.router(x).softmax(-1).topk(CHOSEN, dim=-1)
        return torch.einsum("nk,nki->ni", weights, self.mixed(x, chosen))

    def mixed(self, x: Tensor, chosen: Tensor) -> Tensor:
        hidden = torch.einsum("nkhi,ni->nkh", self.up[chosen], x).relu()
        return torch.einsum("nkih,nkh->nki", self.down[chosen], hidden)


class Spread(Indexed):
    """All experts run; those that are chosen are let through."""

    def mixed(self, x: Tensor, chosen: Tensor) -> Tensor:
        every = torch.einsum("eih,neh->nei", self.down, torch.einsum("ehi,ni->neh", self.up, x).relu())
        return torch.einsum("nke,nei->nki", functional.one_hot(chosen, self.experts).to(x.dtype), every)


class Looked(Indexed):
    """The chosen experts' biases are rows of an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Embedding(EXPERTS, 5)

    def mixed(self, x: Tensor, chosen: Tensor) -> Tensor:
        return super().mixed(x, chosen) + self.bias(chosen)


@pytest.mark.parametrize("kind", [Indexed, Spread, Looked])
def test_experts_that_are_never_chosen_go_without_a_trace(kind: type[Indexed]) -> None:
    torch.manual_seed(0)
    model = kind().double().eval()
    with torch.no_grad():
        model.router.bias[[1, 4]] = -1e4
    program = trace(model, (torch.randn(3, 5).double(),))
    groups = find_groups(program)
    (experts,) = (g for g in groups if g.granularity == "expert")
    assert (experts.size, experts.minimum, experts.exact) == (EXPERTS, CHOSEN, False)
    assert "another takes its place" in experts.note
    scores = {experts.name: torch.tensor([3.0, 0.0, 3.0, 3.0, 0.0, 3.0])}
    small = cut(model, plan([experts], scores, sparsity={experts.name: 1 / 3}), program=program)
    assert small.up.shape == (EXPERTS - 2, 7, 5)
    x = torch.randn(9, 5).double()
    torch.testing.assert_close(small(x), model(x), rtol=1e-12, atol=1e-12)


def test_no_fewer_experts_stay_than_are_chosen() -> None:
    program = trace(Indexed(), (torch.randn(3, 5),))
    (experts,) = (g for g in find_groups(program) if g.granularity == "expert")
    kept = plan([experts], {experts.name: torch.rand(EXPERTS)}, sparsity={experts.name: 0.9}).keep[experts.name]
    assert len(kept) == CHOSEN
