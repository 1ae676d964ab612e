"""What `prune` takes away at the caller's wish: branches, experts, what needs a graph; how wide things stay."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

import secateur as sc
from secateur.pipeline.scope import Scope, followed
from secateur.surgery.plan import plan_widths

EXPERTS, CHOSEN = 6, 2


class Mixture(nn.Module):
    """The weights of the two best experts are gathered for each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(8, EXPERTS)
        self.up, self.down = (nn.Parameter(0.3 * torch.randn(EXPERTS, *shape)) for shape in ((12, 8), (8, 12)))

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.router(x).softmax(-1).topk(CHOSEN, dim=-1)
        hidden = torch.einsum("nkhi,ni->nkh", self.up[chosen], x).relu()
        return torch.einsum("nk,nkih,nkh->ni", weights, self.down[chosen], hidden)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(x).relu())


class Net(nn.Module):
    """The blocks are registered before the stem, so the stream is named after the first block."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Block(), Block(), Block())
        self.mixture = Mixture()
        self.stem, self.head = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.blocks(x + self.mixture(x)))


class Written(Net):
    """The width of the stream is written as a number."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).view(-1, 8)
        return self.head(self.blocks(x))


def batches(samples: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    x = torch.randn(samples, 4, generator=torch.Generator().manual_seed(seed))
    y = (x[:, 0] * x[:, 1] + 0.3 * x[:, 2] > 0).long()
    return list(zip(x.split(50), y.split(50), strict=True))


def trained(kind: type[Net] = Net) -> Net:
    torch.manual_seed(0)
    net = kind()
    optimizer = torch.optim.AdamW(net.parameters(), 1e-2)
    for _ in range(8):
        for x, y in batches(400, 1):
            optimizer.zero_grad()
            functional.cross_entropy(net(x), y).backward()
            optimizer.step()
    return net.eval()


DATA = {"train": batches(400, 1), "validation": batches(300, 2), "test": batches(300, 3)}
ARGS = (torch.randn(6, 4, generator=torch.Generator().manual_seed(4)),)
QUICK = {"sparsities": (0.3, 0.6), "folds": 2, "calibration_samples": 40, "controls": ()}
TWO_ROUNDS = {"retrain": sc.Retraining(epochs=1, learning_rate=1e-3), "rounds": 2}
BRANCHES = [f"blocks.{k}.down:branch" for k in range(3)]


@pytest.fixture(scope="module")
def net() -> Net:
    return trained()


@pytest.fixture(scope="module")
def shallow(net: Net) -> sc.Result:
    """More than half must go, and no width may shrink much: only branches can give that."""
    return sc.prune(
        net, ARGS, **DATA, **QUICK, **TWO_ROUNDS, budget=sc.Budget(macs=0.65), branches=True, minimum={"*.up": 14},
        ignore=["mixture"],
    )  # fmt: skip


def accuracy(model: nn.Module, data: list[tuple[Tensor, Tensor]]) -> Tensor:
    with torch.no_grad():
        return torch.cat([(model(x).argmax(1) == y).double() for x, y in data])


def cut_alone(model: nn.Module, group: str, scores: dict[str, Tensor], width: int) -> nn.Module:
    program = sc.trace(model, ARGS)
    groups = sc.find_groups(program, branches=True)
    return sc.cut(model, plan_widths(groups, scores, {group: width}), program=program)


def test_branches_go_where_only_they_meet_the_budget(net: Net, shallow: sc.Result) -> None:
    gone = [name for name in BRANCHES if len(shallow.plan.keep[name]) == 0]
    assert 1 <= len(gone) < 3
    kinds = {type(block.down).__name__ for block in shallow.model.blocks}
    assert kinds == {"Removed", "Linear"}
    before, after = (sc.measure(m, ARGS, latency=False) for m in (net, shallow.model))
    assert after.macs <= 0.65 * before.macs and after == shallow.plan.cost(sc.trace(net, ARGS))
    rows = {row.group: (row.before, row.after) for row in shallow.report_data.widths}
    assert [name for name in BRANCHES if rows[name] == (1, 0)] == gone
    assert ("residual branches", "may go as a whole") in shallow.report_data.asked
    small = sc.cut(net, shallow.plan, program=sc.trace(net, ARGS))
    assert {k: v.shape for k, v in small.state_dict().items()} == {
        k: v.shape for k, v in shallow.model.state_dict().items()
    }


def test_a_certificate_is_about_the_model_without_the_branch(net: Net, shallow: sc.Result) -> None:
    drop = (accuracy(net, DATA["test"]) - accuracy(shallow.model, DATA["test"])).mean()
    assert shallow.certificate is not None and shallow.certificate.drop == pytest.approx(float(drop))


def test_the_curve_of_a_branch_is_the_damage_of_cutting_it(net: Net, shallow: sc.Result) -> None:
    for name in BRANCHES:
        curve = shallow.curves[name]
        assert (curve.widths, curve.sparsities) == ((1, 0), (0.0, 1.0))
        lost = accuracy(net, DATA["validation"]) - accuracy(
            cut_alone(net, name, {name: torch.ones(1)}, 0), DATA["validation"]
        )
        np.testing.assert_array_equal(curve.damage[1], lost.numpy())


def test_widths_keep_their_limits_in_every_round(shallow: sc.Result) -> None:
    widths = {name: len(kept) for name, kept in shallow.plan.keep.items()}
    assert all(width >= 14 for name, width in widths.items() if name.endswith(".up"))
    assert not any(name.startswith("mixture") for name in widths)


def test_widths_are_multiples_of_what_is_asked(net: Net) -> None:
    how = {**DATA, **QUICK, "budget": sc.Budget(macs=0.75), "ignore": ["mixture"]}
    result = sc.prune(net, ARGS, **how, multiple_of={"blocks.*.up": 4})
    widths = {name: len(kept) for name, kept in result.plan.keep.items() if name.endswith(".up")}
    assert widths and min(widths.values()) < 16 and all(width % 4 == 0 for width in widths.values())
    with pytest.raises(sc.ArgumentError, match=r"'blocks\.9\.up'"):
        sc.prune(net, ARGS, **how, multiple_of={"blocks.9.up": 4})


@pytest.mark.parametrize("control", ["random", "uniform-magnitude"])
def test_controls_may_remove_branches_too(net: Net, control: str) -> None:
    how = {**QUICK, "controls": (control,)}
    result = sc.prune(net, ARGS, **DATA, **how, budget=sc.Budget(macs=0.45), branches=True, minimum={"*.up": 14})
    ours, naive = result.report_data.controls
    assert naive.name == control and 0.5 * ours.macs < naive.macs <= ours.macs


def test_experts_go_like_any_unit(net: Net) -> None:
    how = {**DATA, **QUICK, **TWO_ROUNDS, "ignore": ["stem", "blocks"], "minimum": {"*:channel": 12}}
    result = sc.prune(net, ARGS, **how, budget=sc.Budget(params=0.72))
    left = len(result.plan.keep["mixture.up:expert"])
    assert CHOSEN <= left < EXPERTS
    assert result.model.mixture.router.out_features == len(result.model.mixture.down) == left
    rows = {row.group: (row.granularity, row.after) for row in result.report_data.widths}
    assert rows["mixture.up:expert"] == ("expert", left)
    assert result.certificate is not None
    drop = (accuracy(net, DATA["test"]) - accuracy(result.model, DATA["test"])).mean()
    assert result.certificate.drop == pytest.approx(float(drop))


def test_the_curve_of_experts_is_the_damage_of_cutting_them(net: Net) -> None:
    """Masked, an expert would still be chosen, and give nothing; cut, another takes its place."""
    program = sc.trace(net, ARGS)
    (group,) = (g for g in sc.find_groups(program) if g.granularity == "expert")
    scores = {group.name: torch.tensor([3.0, 1.0, 6.0, 2.0, 5.0, 4.0])}
    curve = sc.scan(program, [group], scores, DATA["validation"], sparsities=(0.3, 0.6))[group.name]
    assert curve.widths == (6, 5, 3)
    for level, width in enumerate(curve.widths):
        lost = accuracy(net, DATA["validation"]) - accuracy(
            cut_alone(net, group.name, scores, width), DATA["validation"]
        )
        np.testing.assert_array_equal(curve.damage[level], lost.numpy())
    assert curve.damage[2].any()


def test_what_is_not_exact_stays_unless_it_is_named(net: Net) -> None:
    result = sc.prune(net, ARGS, **DATA, **QUICK, budget=sc.Budget(macs=0.7), inexact=())
    assert "mixture.up:expert" not in result.curves
    (reason,) = (row.reason for row in result.report_data.left_alone if row.where == "group mixture.up:expert")
    assert "another takes its place" in reason and "inexact=[...]" in reason


def test_groups_are_found_again_when_the_branch_that_named_them_is_gone(net: Net) -> None:
    scope = Scope(branches=True, multiple_of={"blocks.0.down": 2}, minimum={"blocks.1*": 5})
    program = sc.trace(net, ARGS)
    dense = {group.name: group for group in scope.groups(program)}
    assert dense["blocks.0.down"].size == 8
    assert followed(list(dense.values()), dense).keys() == dense.keys()
    first = plan_widths(
        list(dense.values()), {n: torch.arange(g.size) for n, g in dense.items()}, {BRANCHES[0]: 0, "blocks.0.down": 6}
    )
    small = sc.cut(net, first, program=program)
    again = sc.trace(small, ARGS)
    later = followed(scope.later_groups(again), dense)
    assert later.keys() == dense.keys() - {"blocks.0.up", BRANCHES[0]}
    stream = later["blocks.0.down"]
    assert (stream.name, stream.size, stream.multiple_of) == ("blocks.1.down", 6, 2)
    assert (later["blocks.1.up"].minimum, later["blocks.2.up"].minimum) == (5, 1)
    second = plan_widths([stream], {stream.name: torch.arange(6)}, {stream.name: 4})
    whole = first.then(second.renamed({group.name: name for name, group in later.items()}))
    assert whole.keep["blocks.0.down"].tolist() == [4, 5, 6, 7]
    twice, once = sc.cut(small, second, program=again), sc.cut(net, whole, program=program)
    torch.testing.assert_close(twice(ARGS[0]), once(ARGS[0]))


def test_layers_of_a_stack_end_at_widths_of_their_own() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.GRU(2, 8, num_layers=2, batch_first=True), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(x.view(-1, 2, 2))[0][:, -1])

    torch.manual_seed(0)
    how = {**DATA, **QUICK, **TWO_ROUNDS, "budget": sc.Budget(macs=0.6), "minimum": {"rnn.l0": 7}}
    result = sc.prune(Recurrent(), ARGS, **how, split_stacks=True)
    widths = {name: len(kept) for name, kept in result.plan.keep.items()}
    assert widths.keys() == {"rnn.l0", "rnn.l1"} and widths["rnn.l0"] >= 7 > widths["rnn.l1"]
    assert ("layers of recurrent stacks", "may end at different widths") in result.report_data.asked
    with pytest.raises(sc.ArgumentError, match=r"rnn\.l0"):
        sc.prune(Recurrent(), ARGS, **how)


def test_a_graph_takes_the_place_of_a_module_that_cannot_follow(tmp_path: Path) -> None:
    net = trained(Written)
    with torch.no_grad():
        # Two units of the stream and one branch do nothing: they go first.
        for maker in (net.stem, *(block.down for block in net.blocks)):
            maker.weight[:2], maker.bias[:2] = 0, 0
        net.blocks[1].down.weight[:], net.blocks[1].down.bias[:] = 0, 0
    how = {**DATA, **QUICK, "budget": sc.Budget(macs=0.6), "branches": True, "minimum": {"*.up": 15}}
    own = sc.prune(net, ARGS, **how)
    assert type(own.model) is Written and own.model.stem.out_features == 8
    how |= {"run_dir": tmp_path / "run", **TWO_ROUNDS}
    result = sc.prune(net, ARGS, **how, fallback="graph")
    assert isinstance(result.model, fx.GraphModule)
    assert result.plan.keep["blocks.0.down"].tolist() == [2, 3, 4, 5, 6, 7]
    assert [len(result.plan.keep[name]) for name in BRANCHES] == [1, 0, 1]
    assert result.plan.fallback == "graph"
    assert any("the result is a graph" in warning for warning in result.report_data.warnings)
    before, after = (sc.measure(m, ARGS, latency=False) for m in (net, result.model))
    assert after.macs <= 0.6 * before.macs and after == result.plan.cost(sc.trace(net, ARGS))
    result.report(tmp_path / "report.html")
    result.save(tmp_path / "pruned")
    loaded = sc.load(lambda: Written().eval(), tmp_path / "pruned")
    assert torch.equal(loaded(DATA["test"][0][0]), result.model(DATA["test"][0][0]))
    again = sc.prune(net, ARGS, **how, fallback="graph")
    assert again.plan == result.plan and again.report_data.rounds == result.report_data.rounds
    with pytest.raises(sc.StoreError, match=r"a run with fallback='graph'.*this one has fallback='error'"):
        sc.prune(net, ARGS, **how)
