"""Cut graphs: what the model's own forward pass cannot follow, held to the law of surgery."""

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.utils import _pytree as pytree

import secateur as sc
from secateur.errors import ArgumentError, SavedModelError, SurgeryError
from secateur.surgery import cut as cutting
from secateur.surgery.cut import cut_model


class Written(nn.Module):
    """Sizes written as numbers: views, a split, a normalised shape; a constant that is no part of the state."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(8, 24) for _ in range(3))
        self.out = nn.Linear(24, 8)
        self.up, self.down = nn.Linear(8, 12), nn.Linear(7, 8)
        self.head = nn.Linear(8, 3)
        self.register_buffer("scale", torch.linspace(1, 2, 8), persistent=False)
        self.shift = torch.linspace(0, 1, 8)

    def forward(self, x: Tensor, mask: Tensor | None = None, *, loud: bool = True) -> dict[str, Any]:
        batch, steps, _ = x.shape
        parts = (layer(x).view(batch, steps, 4, 6).transpose(1, 2) for layer in (self.query, self.key, self.value))
        mixed = functional.scaled_dot_product_attention(*parts, attn_mask=mask)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, steps, 24))
        a, b = self.up(x * self.scale + self.shift).split([7, 5], dim=-1)
        x = x + self.down(a.relu()) + b.sum(-1, keepdim=True)
        return {"y": self.head(x), "more": [a.shape[0], None, 2.5 if loud else 1.5]}


class Torchs(nn.Module):
    """Torch's own attention function, which derives the size of its heads from the width."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.attention = nn.Linear(5, 24), Mixing()
        self.up, self.down = nn.Linear(24, 30), nn.Linear(30, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        return self.down(self.up(x + self.attention(x.transpose(0, 1)).transpose(0, 1)).relu())


class Mixing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(72, 24) * 0.2), nn.Parameter(torch.randn(72))
        self.out = nn.Linear(24, 24)

    def forward(self, x: Tensor) -> Tensor:
        held = (self.weight, self.bias, None, None, False, 0.0, self.out.weight, self.out.bias)
        return functional.multi_head_attention_forward(x, x, x, 24, 4, *held, training=False, need_weights=False)[0]


@dataclasses.dataclass
class Pair:
    """An input and an output that torch learns to take apart."""

    left: Tensor
    right: Tensor


torch.export.register_dataclass(Pair, serialized_type_name="test_program.Pair")


class Functional(nn.Module):
    """Plain parameters, tied ones, and functional calls; dataclass in, dataclass out."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(10, 6))
        self.blocks = nn.ModuleDict({"a": nn.Linear(10, 6), "b": nn.Linear(4, 4)})
        self.again = self.blocks["a"].weight

    def forward(self, pair: Pair) -> Pair:
        hidden = functional.linear(pair.left, self.first).reshape(-1, 2, 5).relu().reshape(-1, 10)
        back = functional.linear(hidden, self.again)
        return Pair(self.blocks["a"](hidden) + pair.right, back)


Inputs = tuple[tuple[Any, ...], dict[str, Any]]
CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Inputs]]] = {
    "written": (Written, lambda n: ((torch.randn(n, 5, 8),), {"loud": False})),
    "torchs": (Torchs, lambda n: ((torch.randn(n, 5, 5),), {})),
    "functional": (Functional, lambda n: ((Pair(torch.randn(n, 6), torch.randn(n, 6)),), {})),
}


def made(name: str) -> tuple[nn.Module, Callable[[int], Inputs]]:
    torch.manual_seed(0)
    build, inputs = CASES[name]
    return build().eval(), inputs


def random_plan(groups: Any, sparsity: float, seed: int = 1) -> sc.Plan:
    generator = torch.Generator().manual_seed(seed)
    return sc.plan(groups, {g.name: torch.rand(g.size, generator=generator) for g in groups}, sparsity=sparsity)


def same(given: Any, expected: Any) -> None:
    """Equal structure, equal leaves."""
    a, b = pytree.tree_flatten(given), pytree.tree_flatten(expected)
    assert a[1] == b[1]
    for x, y in zip(a[0], b[0], strict=True):
        if isinstance(y, Tensor):
            torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)
        else:
            assert x == y


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.9])
def test_cut_graph_equals_masked(name: str, sparsity: float) -> None:
    model, inputs = made(name)
    before = copy.deepcopy(model.state_dict())
    args, kwargs = inputs(2)
    program = sc.trace(model, args, kwargs)
    chosen = random_plan(sc.find_groups(program, fallback="graph"), sparsity)
    done = cut_model(model, chosen, program=program)
    assert done.way == "graph" and done.verified and isinstance(done.model, fx.GraphModule)
    assert list(done.model.state_dict()) == list(before)
    masked = sc.mask(model, chosen, program=program)
    for batch in (2, 3, 1):
        fresh, named = inputs(batch)
        same(done.model(*fresh, **named), masked(*fresh, **named))
    moved = [(a - b).abs().max() for a, b in zip(*(tensors(m(*args, **kwargs)) for m in (masked, model)), strict=True)]
    assert max(moved) > 1e-3, "the mask must matter, or the test has no power"
    sum(t.sum() for t in tensors(done.model(*args, **kwargs))).backward()
    assert all(p.grad is not None for n, p in done.model.named_parameters() if not n.startswith("blocks.b"))
    assert all(torch.equal(model.state_dict()[key], tensor) for key, tensor in before.items())
    measured = sc.measure(done.model, args, kwargs, latency=False)
    assert measured == chosen.cost(program)


def tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def test_a_plan_remembers_how_its_groups_were_found() -> None:
    model, inputs = made("written")
    program = sc.trace(model, *inputs(2))
    own, more = (random_plan(sc.find_groups(program, fallback=way), 0.5) for way in ("error", "graph"))
    assert (own.fallback, more.fallback, own.then(more).fallback, more.then(own).fallback) == (
        "error", "graph", "graph", "graph",
    )  # fmt: skip
    read = sc.Plan.from_json(more.to_json())
    assert read == more and read.fallback == "graph" and read != dataclasses.replace(read, fallback="error")
    older = json.loads(own.to_json())
    del older["fallback"]
    assert sc.Plan.from_json(json.dumps(older)) == own
    with pytest.raises(sc.PlanError, match=r"fallback is 'none'; .*\['error', 'graph'\]"):
        sc.Plan.from_json(json.dumps(older | {"fallback": "none"}))


@pytest.mark.parametrize("name", CASES)
def test_a_graph_copies_compiles_and_exports(name: str) -> None:
    model, inputs = made(name)
    args, kwargs = inputs(2)
    program = sc.trace(model, args, kwargs)
    chosen = random_plan(sc.find_groups(program, fallback="graph"), 0.5)
    graph = sc.cut(model, chosen, program=program, fallback="graph")
    expected = graph(*args, **kwargs)
    twin = copy.deepcopy(graph)
    assert list(twin.state_dict()) == list(graph.state_dict())
    same(twin(*args, **kwargs), expected)
    same(torch.compile(graph, backend="eager")(*args, **kwargs), expected)
    exported = torch.export.export(graph, args, kwargs).module()
    same(tensors(exported(*args, **kwargs)), tensors(expected))


@pytest.mark.parametrize("name", CASES)
def test_a_graph_is_cut_again(name: str) -> None:
    model, inputs = made(name)
    args, kwargs = inputs(2)
    program = sc.trace(model, args, kwargs)
    first = random_plan(sc.find_groups(program, fallback="graph"), 0.3)
    graph = sc.cut(model, first, program=program, fallback="graph")
    again = sc.trace(graph, args, kwargs)
    second = random_plan(sc.find_groups(again, fallback="graph"), 0.4, seed=2)
    smallest = cut_model(graph, second, program=again, fallback="graph")
    assert smallest.verified
    at_once = sc.cut(model, first.then(second), program=program, fallback="graph")
    fresh, named = inputs(3)
    same(smallest.model(*fresh, **named), at_once(*fresh, **named))


@pytest.mark.parametrize("name", CASES)
def test_a_saved_graph_comes_back(name: str, tmp_path: Path) -> None:
    model, inputs = made(name)
    args, kwargs = inputs(2)
    program = sc.trace(model, args, kwargs)
    first = random_plan(sc.find_groups(program, fallback="graph"), 0.3)
    graph = sc.cut(model, first, program=program, fallback="graph")
    again = sc.trace(graph, args, kwargs)
    second = random_plan(sc.find_groups(again, fallback="graph"), 0.4, seed=2)
    for small, whole in ((graph, first), (sc.cut(graph, second, program=again, fallback="graph"), first.then(second))):
        sc.save(small, tmp_path, original=model, plan=whole)
        torch.manual_seed(9)
        loaded = sc.load(lambda: CASES[name][0]().eval(), tmp_path)
        assert isinstance(loaded, fx.GraphModule) and list(loaded.state_dict()) == list(small.state_dict())
        fresh, named = inputs(3)
        same(loaded(*fresh, **named), small(*fresh, **named))
        assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), small.parameters(), strict=True))
        with pytest.raises(SavedModelError, match=r"another architecture|factory gives"):
            sc.load(lambda: nn.Linear(2, 2), tmp_path)


def test_tied_parameters_stay_one() -> None:
    model, inputs = made("functional")
    program = sc.trace(model, *inputs(2))
    chosen = random_plan(sc.find_groups(program, fallback="graph"), 0.5)
    graph = sc.cut(model, chosen, program=program, fallback="graph")
    assert graph.again is graph.blocks.a.weight
    assert len(list(graph.parameters())) == len(list(model.parameters()))


def test_a_module_that_can_follow_stays_what_it_is() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    program = sc.trace(model, (torch.randn(2, 4),))
    groups = sc.find_groups(program, fallback="graph")
    done = cut_model(model, random_plan(groups, 0.5), program=program, fallback="graph")
    assert done.way == "module" and type(done.model) is nn.Sequential and done.verified


class Halved(nn.Module):
    """A size that is half an attribute which another place needs whole."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 12
        self.left, self.right, self.down = nn.Linear(4, 12), nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        left = self.left(x).view(-1, self.width).relu().sum(-1, keepdim=True)
        return self.down(self.right(x).view(-1, self.width // 2).relu() + left)


@pytest.mark.parametrize(
    ("build", "shape", "group", "words"),
    [
        (CASES["torchs"][0], (2, 5, 5), "attention:head", "'attention', operator aten.view.default: .* 4"),
        (CASES["torchs"][0], (2, 5, 5), "attention:head_dim", "'attention', operator aten."),
        (Halved, (2, 4), "right", "'', operator aten.view.default: .*size 12, .*attributes width gives"),
        (CASES["written"][0], (2, 5, 8), "query:head", "'', operator aten.view.default: .* the number 4"),
    ],
)
def test_without_a_fallback_the_error_names_place_and_remedy(
    build: Callable[[], nn.Module], shape: tuple[int, ...], group: str, words: str
) -> None:
    model = build().eval()
    program = sc.trace(model, (torch.randn(shape),))
    groups = sc.find_groups(program, fallback="graph")
    chosen = sc.plan(groups, {g.name: torch.rand(g.size) for g in groups}, sparsity={group: 0.5})
    with pytest.raises(SurgeryError, match=f'module {words}.*fallback="graph"'):
        sc.cut(model, chosen, program=program, fallback="error")
    assert cut_model(model, chosen, program=program).way == "graph"


class Compared(nn.Module):
    """Sizes that are compared: cut alone, the module would silently take the other branch."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.down = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 3)
        self.other = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.left(x).relu(), self.right(x).relu()
        is_even = left.shape[-1] == right.shape[-1]
        return self.down(left) + (self.other(right) if is_even else self.other(right) * 2)


@pytest.mark.parametrize("verify", [True, False])
def test_a_module_that_would_take_another_branch_becomes_a_graph(verify: bool) -> None:
    torch.manual_seed(0)
    model = Compared().eval()
    x = torch.randn(2, 4)
    program = sc.trace(model, (x,))
    chosen = sc.Plan({"left": torch.tensor([0, 2, 3])}, {"left": 6})
    done = cut_model(model, chosen, program=program, fallback="graph", verify=verify)
    assert done.way == "graph"
    same(done.model(x), sc.mask(model, chosen, program=program, fallback="graph")(x))


def test_other_shapes_and_values_than_those_proven_are_refused() -> None:
    model, inputs = made("written")
    args, kwargs = inputs(2)
    program = sc.trace(model, args, kwargs)
    chosen = random_plan(sc.find_groups(program, fallback="graph"), 0.5)
    graph = sc.cut(model, chosen, program=program, fallback="graph")
    with pytest.raises(ArgumentError, match="input 'loud' is True; this graph was made for False"):
        graph(*args, loud=True)
    with pytest.raises(ArgumentError, match=r"'x' has shape \(2, 5, 8, 1\); this graph was made for \(any, any, 8\)"):
        graph(args[0].unsqueeze(-1), loud=False)
    unproven = sc.cut(model, chosen, program=program, fallback="graph", verify=False)
    with pytest.raises(ArgumentError, match=r"made for \(2, 5, 8\)"):
        unproven(*inputs(3)[0], loud=False)


class Fixed(nn.Module):
    """A batch size written as a number: the graph is right for no other."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.up(x).view(-1, 6).relu()
        return self.down(hidden) * float(x.shape[0])


def test_a_number_worked_out_from_the_batch_binds_the_graph_to_it() -> None:
    torch.manual_seed(0)
    model = Fixed().eval()
    program = sc.trace(model, (torch.randn(2, 4),))
    chosen = random_plan(sc.find_groups(program, fallback="graph"), 0.5)
    done = cut_model(model, chosen, program=program, fallback="graph")
    assert done.free == frozenset()
    with pytest.raises(ArgumentError, match=r"has shape \(4, 4\); this graph was made for \(2, 4\)"):
        done.model(torch.randn(4, 4))


class Routed(nn.Module):
    """Control flow that depends on values: a graph would follow the example for ever."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.up(x).view(-1, 6)
        return self.down(hidden.relu() if hidden.sum() > 0 else hidden.tanh())


def test_a_recording_gives_no_graph() -> None:
    model = Routed().eval()
    program = sc.trace(model, (torch.randn(2, 4),))
    assert program.recorded
    chosen = random_plan(sc.find_groups(program, fallback="graph"), 0.5)
    with pytest.raises(SurgeryError, match="could not be exported but only recorded"):
        sc.cut(model, chosen, program=program, fallback="graph")


class Normed(nn.Module):
    """A residual stream under layer norm: removal changes the statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.norm = nn.Linear(4, 8), nn.LayerNorm(8)
        self.up, self.down, self.head = nn.Linear(8, 12), nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        return self.head(x + self.down(self.up(self.norm(x)).relu()))


def test_groups_that_are_not_exact_are_held_to_the_cut_program(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = Normed().eval()
    program = sc.trace(model, (torch.randn(2, 4),))
    groups = sc.find_groups(program)
    (stream,) = (g for g in groups if not g.exact)
    chosen = sc.plan(groups, {stream.name: torch.rand(8)}, sparsity={stream.name: 0.5})
    assert cut_model(model, chosen, program=program).verified
    honest = cutting.rewrite_known

    def careless(small: nn.Module, found: Any) -> Any:
        small.norm.eps = 0.1
        return honest(small, found)

    monkeypatch.setattr(cutting, "rewrite_known", careless)
    with pytest.raises(SurgeryError, match="outputs differ"):
        cut_model(model, chosen, program=program)


class Rounding(nn.Module):
    """Computes in float32 whatever it is given, as many norms do."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(64, 48), nn.Linear(48, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x).to(torch.float32).square().to(x.dtype))


def test_models_that_round_inside_are_verified_as_far_as_they_go() -> None:
    torch.manual_seed(0)
    model = Rounding().double().eval()
    program = sc.trace(model, (torch.randn(8, 64).double(),))
    assert cut_model(model, random_plan(sc.find_groups(program), 0.5), program=program).verified
