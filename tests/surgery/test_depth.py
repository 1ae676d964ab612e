"""Whole residual branches: found, masked, taken out, priced, saved."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from secateur.errors import SurgeryError
from secateur.graph.groups import find_groups
from secateur.graph.trace import Program, trace
from secateur.measures.cost import measure
from secateur.storage.saved_model import load_model, save_model
from secateur.surgery.cut import cut
from secateur.surgery.depth import Removed
from secateur.surgery.mask import mask
from secateur.surgery.plan import Plan, plan


class Weighted(nn.Module):
    """Gives a tuple, as attention does."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = nn.Linear(6, 9), nn.Linear(9, 6)

    def forward(self, *, hidden: Tensor) -> tuple[Tensor, Tensor]:
        inner = self.inner(hidden).relu()
        return self.out(inner), inner


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mixer = nn.LayerNorm(6), Weighted()
        self.up, self.down = nn.Linear(6, 12), nn.Linear(12, 6)
        self.scale = nn.Parameter(torch.rand(6))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mixer(hidden=self.norm(x))[0] * self.scale
        return x + self.down(torch.relu(self.up(x)))


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks, self.head = nn.Linear(4, 6), nn.Sequential(Block(), Block()), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)))


class Shared(nn.Module):
    """One layer in two branches; a branch that is used twice; one without parameters; a sum that is no residual."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.twice, self.side = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.plain = nn.BatchNorm1d(4, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.layer(x)
        x = x + self.layer(x.relu())
        x = x + self.plain(x)
        y = self.twice(x)
        x = (x + y) * y
        return self.side(x) + self.side(x.tanh())


NAMES = ["blocks.0.mixer:branch", "blocks.0.down:branch", "blocks.1.mixer:branch", "blocks.1.down:branch"]


def built(kind: type[nn.Module] = Stack) -> nn.Module:
    torch.manual_seed(0)
    return kind().double().eval()


def example(batch: int = 2) -> Tensor:
    return torch.randn(batch, 4, generator=torch.Generator().manual_seed(batch)).double()


def test_branches_are_found_on_request() -> None:
    program = trace(built(), (example(),))
    assert not any(g.granularity == "branch" for g in find_groups(program))
    assert [g.name for g in find_groups(program, branches=True) if g.granularity == "branch"] == NAMES
    assert [g.name for g in find_groups(program, ["blocks.0"], branches=True) if g.granularity == "branch"] == NAMES[2:]


def test_what_serves_something_else_is_no_branch() -> None:
    program = trace(built(Shared), (example(),))
    assert not any(g.granularity == "branch" for g in find_groups(program, branches=True))


@pytest.mark.parametrize("gone", [NAMES[:1], NAMES[1:2], NAMES[:2], NAMES[1:]])
def test_a_branch_goes_and_nothing_but_it(gone: list[str], tmp_path: Path) -> None:
    model = built()
    program = trace(model, (example(),))
    groups = find_groups(program, branches=True)
    exact = [g for g in groups if g.exact and (g.granularity != "branch" or g.name in gone)]
    sparsity = {g.name: 1.0 if g.granularity == "branch" else 0.4 for g in exact}
    chosen = plan(groups, {g.name: torch.rand(g.size) for g in groups}, sparsity=sparsity)
    small = cut(model, chosen, program=program)
    x = example(5)
    torch.testing.assert_close(small(x), mask(model, chosen, program=program)(x), rtol=1e-9, atol=1e-12)
    assert not torch.allclose(small(x), model(x))
    assert chosen.cost(program) == measure(small, (example(),), latency=False)
    assert sum(isinstance(m, Removed) for m in small.modules()) == 2 * len(gone)
    assert set(small.state_dict()) < set(model.state_dict())

    assert Plan.from_json(chosen.to_json()) == chosen
    save_model(small, tmp_path, original=model, plan=chosen)
    assert torch.equal(load_model(built, tmp_path)(x), small(x))

    again = trace(small, (example(),))
    left = find_groups(again, branches=True)
    assert {g.name for g in left if g.granularity == "branch"} == set(NAMES) - set(gone)
    later = plan(left, {g.name: torch.rand(g.size) for g in left}, sparsity=0.5)
    torch.testing.assert_close(
        cut(small, later, program=again)(x), mask(small, later, program=again)(x), rtol=1e-9, atol=1e-12
    )


class Rewidening(nn.Module):
    """The silent module is given no tensor of the shape that it gives."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.up, self.down = nn.Linear(4, 4), nn.Linear(4, 9), nn.Linear(9, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return x + self.down(self.up(x))[:, ::2]


def test_a_branch_that_cannot_be_imitated_is_refused() -> None:
    model = built(Rewidening)
    program = trace(model, (example(),))
    (branch,) = (g for g in find_groups(program, branches=True) if g.granularity == "branch")
    chosen = plan([branch], {branch.name: torch.ones(1)}, sparsity={branch.name: 1.0})
    with pytest.raises(SurgeryError, match="keep the branch"):
        cut(model, chosen, program=program)


class Written(nn.Module):
    """A block that writes its width as a number, so that only a graph can follow; its sum is written to."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.BatchNorm1d(6), nn.Linear(6, 12), nn.Linear(12, 6)
        self.scale = nn.Parameter(torch.rand(6))

    def forward(self, x: Tensor) -> Tensor:
        y = x + self.down(self.up(self.norm(x)).view(-1, 12).tanh()) * self.scale
        return y.tanh_() * x


class Numbers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(4, 6), nn.Linear(6, 3)
        self.blocks = nn.Sequential(Written(), Written(), Written())

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)))


def shortened(program: Program, branch: str, width: str) -> Plan:
    groups = find_groups(program, branches=True, fallback="graph")
    return plan(groups, {g.name: torch.rand(g.size) for g in groups}, sparsity={branch: 1.0, width: 0.5})


def plan_of_branch(program: Program, name: str) -> Plan:
    groups = find_groups(program, branches=True, fallback="graph")
    return plan(groups, {name: torch.ones(1)}, sparsity={name: 1.0})


def test_branches_go_out_of_graphs_round_by_round(tmp_path: Path) -> None:
    model, x = built(Numbers), example(5)
    program = trace(model, (example(),))
    first = shortened(program, "blocks.1.down:branch", "blocks.0.up")
    with pytest.raises(SurgeryError, match="fallback"):
        cut(model, first, program=program, fallback="error")
    graph = cut(model, first, program=program)
    torch.testing.assert_close(graph(x), mask(model, first, program=program)(x), rtol=1e-9, atol=1e-12)
    assert first.cost(program) == measure(graph, (example(),), latency=False)
    assert set(model.state_dict()) - set(graph.state_dict()) == {
        key for key in model.state_dict() if key.startswith(("blocks.1.norm", "blocks.1.up", "blocks.1.down"))
    }

    again = trace(graph, (example(),))
    second = shortened(again, "blocks.0.down:branch", "blocks.2.up")
    smaller, whole = cut(graph, second, program=again), first.then(second)
    torch.testing.assert_close(smaller(x), mask(graph, second, program=again)(x), rtol=1e-9, atol=1e-12)
    assert torch.equal(cut(model, whole, program=program)(x), smaller(x))
    save_model(smaller, tmp_path, original=model, plan=whole)
    loaded = load_model(lambda: Numbers().eval(), tmp_path)
    assert list(loaded.state_dict()) == list(smaller.state_dict()) and torch.equal(loaded(x), smaller(x))
    with pytest.raises(SurgeryError, match=r"'blocks.0.down' is not called by itself"):
        cut(graph, plan_of_branch(again, "blocks.0.down:branch"), program=again, fallback="error")


class Widening(Numbers):
    """The stream has one position where the branch has six."""

    def forward(self, x: Tensor) -> Tensor:
        a, b, _ = self.blocks
        x = self.stem(x)
        x = x + b.down(b.up(x).view(-1, 12).tanh())
        x = x.mean(-1, keepdim=True)
        return self.head(x + a.up(a.down(x.expand(-1, 12)))[:, :6])


def test_a_branch_that_widens_its_stream_stays_in_a_graph() -> None:
    model = built(Widening)
    program = trace(model, (example(),))
    chosen = shortened(program, "blocks.0.up:branch", "blocks.1.up")
    with pytest.raises(SurgeryError, match=r"it is added to from \(2, 1\).* into \(2, 6\).*: keep the branch"):
        cut(model, chosen, program=program)
