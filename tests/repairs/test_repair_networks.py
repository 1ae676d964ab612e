"""Repair over many networks: it never fails, keeps to what the cut left, and comes closer to the dense model."""

import copy

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from networks import CASES, built

IN_GRAPHS = {"residual", "grouped", "LSTM-2-bidirectional", "attention"}


def plan_of(program: sc.Program, sparsity: float = 0.4, **how: bool) -> sc.Plan:
    groups = sc.find_groups(program, **how)
    generator = torch.Generator().manual_seed(5)
    scores = {g.name: torch.rand(g.size, generator=generator) for g in groups}
    return sc.plan([g for g in groups if g.exact and g.size > 1], scores, sparsity=sparsity)


def error(small: nn.Module, dense: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return float((small(x) - dense(x)).square().mean() / dense(x).square().mean())


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_every_network_comes_closer_to_the_dense_one(case) -> None:
    model = built(case)
    torch.manual_seed(1)
    x, fresh = case.inputs(160), case.inputs(80)
    program = sc.trace(model, (x[:2],))
    plan = plan_of(program)
    small = sc.cut(model, plan, program=program)
    shapes = {name: t.shape for name, t in small.state_dict().items()}
    before = error(small, model, fresh)
    dense = {name: t.clone() for name, t in model.state_dict().items()}
    done = sc.repair(small, model, plan, [x[:60], x[60:]], program=program)
    assert all(torch.equal(t, model.state_dict()[name]) for name, t in dense.items())
    assert {name: t.shape for name, t in small.state_dict().items()} == shapes
    assert all(c.after < c.before for c in done.changes)
    # Of the tied network only the layer before the table can be fitted.
    assert error(small, model, fresh) < (1.0 if case.name == "tied" else 0.9) * before


class Encoder(nn.Module):
    """Attention of torch's own, layer norms, and a table of embeddings that is not tied."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 16)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True, norm_first=True) for _ in range(2)
        )
        self.head = nn.Linear(16, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def test_heads_and_feed_forward_units_of_an_encoder_are_made_up_for() -> None:
    torch.manual_seed(2)
    model = Encoder().double().eval()
    tokens, fresh = torch.randint(11, (60, 9)), torch.randint(11, (30, 9))
    program = sc.trace(model, (tokens[:2],))
    plan = plan_of(program)
    assert {g.granularity for g in sc.find_groups(program) if g.name in plan.keep} >= {"head", "neuron"}
    small = sc.cut(model, plan, program=program)
    before = error(small, model, fresh)
    done = sc.repair(small, model, plan, [(tokens, None)], program=program)
    assert any("out_proj" in where for where in done.refitted)
    assert error(small, model, fresh) < 0.6 * before


class Blocks(nn.Module):
    """Residual branches that can go as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 12)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(12), nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 12)) for _ in range(3)
        )
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def test_what_comes_after_a_removed_branch_makes_up_for_it() -> None:
    torch.manual_seed(3)
    model = Blocks().double().eval()
    x, fresh = torch.randn(2, 200, 6).double()
    program = sc.trace(model, (x[:2],))
    groups = sc.find_groups(program, branches=True)
    branch = next(g for g in groups if g.granularity == "branch" and "1" in g.name)
    plan = sc.Plan({branch.name: torch.tensor([], dtype=torch.int64)}, {branch.name: 1})
    small = sc.cut(model, plan, program=program)
    before = error(small, model, fresh)
    done = sc.repair(small, model, plan, [x], program=program)
    assert all(not c.where.startswith("blocks.1") for c in done.changes)
    assert error(small, model, fresh) < 0.7 * before


def test_layers_of_different_widths_are_repaired() -> None:
    class Stacked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.LSTM(5, 12, num_layers=2, batch_first=True), nn.Linear(12, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(x)[0])

    torch.manual_seed(4)
    model = Stacked().double()
    x, fresh = torch.randn(2, 40, 10, 5).double().cumsum(2) / 3
    program = sc.trace(model, (x[:2],))
    groups = sc.find_groups(program, split_stacks=True)
    assert len(groups) == 2
    kept = {groups[0].name: torch.arange(9), groups[1].name: torch.arange(5)}
    plan = sc.Plan(kept, {g.name: g.size for g in groups})
    small = sc.cut(model, plan, program=program)
    before = error(small, model, fresh)
    done = sc.repair(small, model, plan, [x], program=program)
    assert sum(c.kind == "recurrent" for c in done.changes) == 2
    assert error(small, model, fresh) < 0.6 * before


def test_all_that_can_be_done_for_a_tied_decoder_is_its_bias() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.mix = nn.Embedding(9, 10), nn.Linear(10, 10)
            self.decoder = nn.Linear(10, 9)
            self.decoder.weight = self.table.weight

        def forward(self, tokens: Tensor) -> Tensor:
            return self.decoder(torch.relu(self.mix(self.table(tokens))))

    torch.manual_seed(5)
    model = Tied().double()
    nn.init.normal_(model.mix.bias, 1.0)
    tokens = torch.randint(9, (200, 4))
    program = sc.trace(model, (tokens[:2],))
    groups = [g for g in sc.find_groups(program)]
    keep = {g.name: torch.arange(g.size // 2) for g in groups}
    plan = sc.Plan(keep, {g.name: g.size for g in groups})
    small = sc.cut(model, plan, program=program)
    done = sc.repair(small, model, plan, [tokens], program=program, reach="cut", rows_per_column=1000)
    assert ("decoder.bias", "bias") in {(c.where, c.kind) for c in done.changes}
    with torch.no_grad():
        shift = (small(tokens) - model(tokens)).mean((0, 1))
    torch.testing.assert_close(shift, torch.zeros_like(shift), atol=1e-9, rtol=0)


@pytest.mark.filterwarnings("ignore:The tensor attributes .* were assigned during export")
@pytest.mark.parametrize("case", [c for c in CASES if c.name in IN_GRAPHS], ids=repr)
def test_cut_graphs_are_seen_and_repaired_as_modules_are(case) -> None:
    model = built(case)
    torch.manual_seed(1)
    x, fresh = case.inputs(160), case.inputs(80)
    program = sc.trace(model, (x[:2],))
    plan = plan_of(program)
    module = sc.cut(model, plan, program=program)
    graph = graph_of(module, x[:2])
    before = error(graph, model, fresh)
    done = [sc.repair(small, model, plan, [x[:60], x[60:]], program=program) for small in (module, graph)]
    assert [(c.where, c.kind) for c in done[0].changes] == [(c.where, c.kind) for c in done[1].changes]
    assert error(graph, model, fresh) < (1.0 if case.name == "tied" else 0.9) * before
    torch.testing.assert_close(graph(fresh), module(fresh), rtol=1e-6, atol=1e-8)


def graph_of(module: nn.Module, example: Tensor) -> nn.Module:
    """The module as the graph of its exported program, for any batch size; its tensors are copies."""
    copied = copy.deepcopy(module)
    free = {0: torch.export.Dim("batch", min=2)}
    exported = torch.export.export(copied, (example,), dynamic_shapes=(free,), strict=False).module()
    # Modules of torch.export refuse `eval()`; plain graph modules, such as cut graphs, do not.
    return torch.fx.GraphModule(exported, exported.graph)
