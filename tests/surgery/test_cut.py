"""The law of surgery, for every network of the table: the cut model is the masked model, smaller."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from networks import CASES, Case, built
from secateur.errors import PlanError, SurgeryError
from secateur.graph.groups import find_fixed, find_groups
from secateur.graph.trace import trace
from secateur.measures.cost import measure
from secateur.surgery.cut import cut, cut_model
from secateur.surgery.mask import mask
from secateur.surgery.plan import Plan, plan

SPARSITIES = [0.3, 0.5, 0.9]


def random_plan(groups, sparsity: float, seed: int) -> Plan:
    generator = torch.Generator().manual_seed(seed)
    return plan(groups, {g.name: torch.rand(g.size, generator=generator) for g in groups}, sparsity=sparsity)


@pytest.mark.parametrize("sparsity", SPARSITIES)
@pytest.mark.parametrize("case", CASES, ids=repr)
def test_cut_equals_masked(case: Case, sparsity: float) -> None:
    model = built(case)
    before = copy.deepcopy(model.state_dict())
    program = trace(model, (case.inputs(2),))
    groups = find_groups(program)
    assert any(g.exact for g in groups), "a table entry that cannot be cut tests nothing"
    chosen = random_plan(groups, sparsity, seed=1)
    small, masked = cut(model, chosen, program=program), mask(model, chosen, program=program)
    assert type(small) is type(model)
    assert list(small.state_dict()) == list(before)
    for fresh in (case.inputs(3), case.inputs(1)):
        expected = masked(fresh).detach()
        assert (expected - model(fresh)).abs().max() > 1e-6, "the mask must matter, or the test has no power"
        torch.testing.assert_close(small(fresh).detach(), expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))
    small(case.inputs(2)).sum().backward()
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_predicted_cost_is_the_measured_one(case: Case) -> None:
    model = built(case)
    args = (case.inputs(2),)
    program = trace(model, args)
    chosen = random_plan(find_groups(program), 0.5, seed=2)
    measured = measure(cut(model, chosen, program=program), args, latency=False)
    assert chosen.cost(program) == measured


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_each_group_alone(case: Case) -> None:
    model = built(case)
    program = trace(model, (case.inputs(2),))
    # One attribute holds the head size of queries and of values: they cannot be cut one without the other.
    for group in [g for g in find_groups(program) if g.exact and g.granularity != "head_dim"]:
        keep = torch.arange(group.size).reshape(group.rows, -1)[:, 1:].flatten()
        chosen = Plan({group.name: keep}, {group.name: group.size})
        fresh = case.inputs(3)
        expected = mask(model, chosen, program=program)(fresh)
        torch.testing.assert_close(cut(model, chosen, program=program)(fresh), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_a_second_cut_composes(case: Case) -> None:
    model = built(case)
    args = (case.inputs(2),)
    program = trace(model, args)
    first = random_plan(find_groups(program), 0.3, seed=3)
    smaller = cut(model, first, program=program)
    again = trace(smaller, args)
    second = random_plan(find_groups(again), 0.3, seed=4)
    smallest = cut(smaller, second, program=again)
    fresh = case.inputs(3)
    torch.testing.assert_close(
        smallest(fresh), cut(model, first.then(second), program=program)(fresh), rtol=1e-9, atol=1e-9
    )


def test_heads_and_attributes_are_rewritten() -> None:
    case = next(c for c in CASES if c.name == "attention")
    model = built(case)
    program = trace(model, (case.inputs(2),))
    heads = next(g for g in find_groups(program) if g.granularity == "head")
    chosen = Plan({heads.name: torch.tensor([0, 2, 3])}, {heads.name: 4})
    done = cut_model(model, chosen, program=program)
    assert {(r.attribute, r.before, r.after) for r in done.rewrites if r.module == ""} == {("heads", 4, 3)}
    assert done.verified
    assert model.heads == 4


def test_a_size_that_is_written_as_a_number_fixes_what_it_counts() -> None:
    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.down(self.up(x).view(-1, 6))

    program = trace(Written(), (torch.randn(2, 4),))
    assert find_groups(program) == ()
    (fixed,) = (f for f in find_fixed(program) if (f.parameter, f.dim) == ("up.weight", 0))
    assert "gives view its size as a number" in fixed.reason


def test_a_wrong_cut_is_caught_by_verification(monkeypatch: pytest.MonkeyPatch) -> None:
    from secateur.surgery import tensors as module

    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    program = trace(model, (torch.randn(2, 4),))
    chosen = random_plan(find_groups(program), 0.5, seed=0)
    honest = module.gather
    monkeypatch.setattr(module, "gather", lambda tensor, keeps: honest(tensor, keeps).flip(0))
    with pytest.raises(SurgeryError, match="outputs differ"):
        cut(model, chosen, program=program)
    assert cut(model, chosen, program=program, verify=False) is not None


def test_ties_are_kept() -> None:
    case = next(c for c in CASES if c.name == "tied")
    model = built(case)
    program = trace(model, (case.inputs(2),))
    small = cut(model, random_plan(find_groups(program), 0.5, seed=0), program=program)
    assert small.decoder.weight is small.table.weight
    assert len(list(small.parameters())) == len(list(model.parameters()))


def test_a_plan_for_another_model_is_refused() -> None:
    def net(width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 2))

    args = (torch.randn(2, 4),)
    other = random_plan(find_groups(trace(net(8), args)), 0.5, seed=0)
    model = net(6)
    program = trace(model, args)
    with pytest.raises(PlanError, match="6 units in this model, 8 in the plan"):
        cut(model, other, program=program)
    with pytest.raises(PlanError, match="does not have"):
        cut(model, Plan({"nowhere": torch.tensor([0])}, {"nowhere": 2}), program=program)
    with pytest.raises(PlanError, match="traced from another model"):
        cut(net(8), random_plan(find_groups(program), 0.5, seed=0), program=program)


def test_requires_grad_and_memory_format_survive() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).to(memory_format=torch.channels_last)
    model[2].weight.requires_grad_(False)
    program = trace(model, (torch.randn(2, 3, 8, 8),))
    small = cut(model, random_plan(find_groups(program), 0.5, seed=0), program=program)
    assert not small[2].weight.requires_grad and small[0].weight.requires_grad
    assert small[2].weight.is_contiguous(memory_format=torch.channels_last)


class Cloned(TorchDispatchMode):
    """The sizes of all tensors that are cloned."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.clone.default:
            self.sizes.append(args[0].numel())
        return func(*args, **(kwargs or {}))


def test_without_verification_only_what_stays_is_copied_and_nothing_is_run() -> None:
    model = nn.Sequential(nn.Linear(4, 60), nn.ReLU(), nn.Linear(60, 50), nn.ReLU(), nn.Linear(50, 2))
    program = trace(model, (torch.randn(2, 4),))
    chosen = random_plan(find_groups(program), 0.5, seed=0)
    model.register_forward_pre_hook(lambda *_: pytest.fail("the model was run"))
    with Cloned() as cloned:
        small = cut(model, chosen, program=program, verify=False)
    assert [p.shape for p in small.parameters()] == [(30, 4), (30,), (25, 30), (25,), (2, 25), (2,)]
    assert cloned.sizes == [2], "the last bias is all that is copied as it is"


def test_nothing_is_shared_with_the_original() -> None:
    model = nn.LSTM(4, 6, batch_first=True)
    program = trace(model, (torch.randn(2, 3, 4),))
    for chosen in (Plan({}, {}), random_plan(find_groups(program), 0.5, seed=0)):
        small = cut(model, chosen, program=program)
        assert not {p.data_ptr() for p in small.parameters()} & {p.data_ptr() for p in model.parameters()}
        assert {id(p) for p in small._flat_weights} == {id(p) for p in small.parameters()}


def test_a_model_without_values_can_be_cut() -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.ReLU(), nn.Conv2d(6, 2, 3)).to("meta")
    program = trace(model, (torch.zeros(2, 4, 8, 8, device="meta"),))
    chosen = random_plan(find_groups(program), 0.5, seed=0)
    small = cut(model, chosen, program=program, verify=False)
    assert small(torch.zeros(2, 4, 8, 8, device="meta")).shape == (2, 2, 4, 4)
    assert len(small[0].weight) < 6
