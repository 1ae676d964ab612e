"""Criteria: exact cases, and laws that all of them keep."""

import copy

import pytest
import torch
from torch import nn

from networks import CASES, Case, built
from secateur.criteria.chance import Random
from secateur.criteria.collect import collect
from secateur.criteria.criterion import Criterion, score
from secateur.criteria.gradients import Taylor
from secateur.criteria.magnitude import Magnitude
from secateur.criteria.statistics import GATE_GRADIENTS, Statistics
from secateur.data import as_batches
from secateur.errors import ArgumentError, NumericalError, PlanError
from secateur.graph.groups import find_groups
from secateur.graph.trace import trace
from secateur.types import Group, Slice

DATA_BASED = [Taylor()]
WEIGHT_BASED = [Magnitude(1), Magnitude(2)]
ALL: list[Criterion] = [Random(3), *WEIGHT_BASED, *DATA_BASED]


def mlp(seed: int = 0, hidden: int = 6) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, hidden), nn.Tanh(), nn.Linear(hidden, 3)).double()


def labelled(samples: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(samples, 4, generator=generator).double(), torch.randint(3, (samples,), generator=generator)


def scored(model: nn.Module, criterion: Criterion, batches) -> torch.Tensor:
    groups = find_groups(trace(model, (torch.zeros(1, 4).double(),)))
    return score(groups, collect(model, groups, batches, needs=criterion.needs), criterion)["0"]


def test_taylor_is_the_squared_derivative_by_a_gate() -> None:
    model, (x, y) = mlp(), labelled()
    expected = torch.zeros(6).double()
    for sample, label in zip(x, y, strict=True):
        gate = torch.ones(6, requires_grad=True, dtype=torch.float64)
        hidden = torch.tanh(model[0](sample)) * gate
        loss = nn.functional.cross_entropy(model[2](hidden).unsqueeze(0), label.unsqueeze(0))
        expected += torch.autograd.grad(loss, gate)[0].square()
    torch.testing.assert_close(scored(model, Taylor(), [(x, y)]), expected / len(x))


@pytest.mark.parametrize(
    "case", [c for c in CASES if c.name in {"residual", "LSTM-1", "GRU-2-bidirectional"}], ids=repr
)
def test_taylor_agrees_with_finite_differences_of_masking(case: Case) -> None:
    """Shrinking what consumers see of a unit by a little changes the loss by the gate's derivative."""
    model = built(case)
    group = find_groups(trace(model, (case.inputs(2),)))[0]
    x = case.inputs(1)
    y = torch.tensor([1])
    got = collect(model, [group], [(x, y)], needs={GATE_GRADIENTS}).gates[group.name].squares

    def loss_with(unit: int, factor: float) -> float:
        scaled = copy.deepcopy(model)
        state = dict(scaled.named_parameters())
        for s in [s for s in group.slices if s.masked and s.first <= unit < s.first + len(s.index)]:
            tensor, where = state[s.parameter].data, s.index[unit - s.first]
            tensor.index_copy_(s.dim, where, factor * tensor.index_select(s.dim, where))
        return float(nn.functional.cross_entropy(scaled(x), y).detach())

    step = 1e-5
    for unit in (0, group.size - 1):
        slope = (loss_with(unit, 1 + step) - loss_with(unit, 1 - step)) / (2 * step)
        assert got[unit].item() == pytest.approx(slope**2, rel=1e-4, abs=1e-14)


@pytest.mark.parametrize("p", [1, 2, 3])
def test_magnitude_is_the_norm_of_all_that_a_unit_owns(p: int) -> None:
    model = mlp()
    own = torch.cat([model[0].weight, model[0].bias.unsqueeze(1), model[2].weight.T], dim=1)
    torch.testing.assert_close(scored(model, Magnitude(p), None), own.abs().pow(p).sum(1).pow(1 / p).detach())


@pytest.mark.parametrize("criterion", WEIGHT_BASED + DATA_BASED, ids=repr)
def test_permuting_units_permutes_scores(criterion: Criterion) -> None:
    model, data = mlp(), [labelled()]
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    moved = copy.deepcopy(model)
    moved[0].weight.data, moved[0].bias.data = model[0].weight.data[order], model[0].bias.data[order]
    moved[2].weight.data = model[2].weight.data[:, order]
    torch.testing.assert_close(scored(moved, criterion, data), scored(model, criterion, data)[order])


@pytest.mark.parametrize("criterion", DATA_BASED, ids=repr)
def test_batch_size_and_duplication_do_not_change_scores(criterion: Criterion) -> None:
    model, (x, y) = mlp(), labelled()
    whole = scored(model, criterion, [(x, y)])
    torch.testing.assert_close(scored(model, criterion, list(zip(x.split(5), y.split(5), strict=True))), whole)
    torch.testing.assert_close(scored(model, criterion, [(x, y), (x, y)]), whole)


@pytest.mark.parametrize("criterion", DATA_BASED, ids=repr)
def test_function_preserving_rescaling_does_not_change_scores(criterion: Criterion) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    scaled = copy.deepcopy(model)
    scaled[0].weight.data[2] *= 7
    scaled[0].bias.data[2] *= 7
    scaled[2].weight.data[:, 2] /= 7
    torch.testing.assert_close(scored(scaled, criterion, [labelled()]), scored(model, criterion, [labelled()]))


@pytest.mark.parametrize("criterion", DATA_BASED, ids=repr)
def test_a_unit_that_is_always_zero_scores_lowest(criterion: Criterion) -> None:
    model = mlp()
    model[0].weight.data[4] = 0
    model[0].bias.data[4] = 0
    found = scored(model, criterion, [labelled()])
    assert found[4] == 0 and (found[[0, 1, 2, 3, 5]] > 0).all()


def test_random_is_reproducible_and_depends_on_seed_and_name() -> None:
    groups = find_groups(trace(mlp(), (torch.zeros(1, 4).double(),)))
    first = Random(1)(groups[0], Statistics())
    assert torch.equal(first, Random(1)(groups[0], Statistics()))
    assert not torch.equal(first, Random(2)(groups[0], Statistics()))


def test_collect_leaves_the_model_alone() -> None:
    model = mlp().train()
    model[0].bias.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    scored(model, Taylor(), [labelled()])
    assert model.training and not model[0].bias.requires_grad
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())


def test_what_is_missing_is_named() -> None:
    model = mlp()
    groups = find_groups(trace(model, (torch.zeros(1, 4).double(),)))
    with pytest.raises(ArgumentError, match="calibration=batches"):
        collect(model, groups, None, needs=Taylor().needs)
    with pytest.raises(ArgumentError, match="needs=Taylor"):
        score(groups, Statistics(), Taylor())
    with pytest.raises(ArgumentError, match="statistic 'curvature'"):
        collect(model, groups, [labelled()], needs={"curvature"})


def test_a_loss_that_is_not_finite_names_the_sample() -> None:
    model, (x, y) = mlp(), labelled()
    groups = find_groups(trace(model, (torch.zeros(1, 4).double(),)))

    def loss(outputs, targets):
        return torch.where(targets == y[7], torch.nan, outputs.sum(1))

    first = int((y == y[7]).nonzero()[0])
    with pytest.raises(NumericalError, match=f"calibration sample {first} is nan"):
        collect(model, groups, as_batches([(x, y)], "calibration"), needs=Taylor().needs, loss=loss)


def test_a_criterion_of_the_wrong_length_or_with_nan_is_refused() -> None:
    groups = find_groups(trace(mlp(), (torch.zeros(1, 4).double(),)))

    class Own:
        needs: frozenset[str] = frozenset()

        def __init__(self, values: torch.Tensor) -> None:
            self.values = values

        def __call__(self, group, statistics) -> torch.Tensor:
            return self.values

    assert score(groups, Statistics(), Own(torch.arange(6.0)))["0"].tolist() == [0, 1, 2, 3, 4, 5]
    with pytest.raises(PlanError, match=r"shape \(5,\).*needed \(6,\)"):
        score(groups, Statistics(), Own(torch.zeros(5)))
    with pytest.raises(NumericalError, match="NaN"):
        score(groups, Statistics(), Own(torch.full((6,), torch.nan)))


def test_taylor_of_experts_is_the_squared_derivative_by_a_gate_on_all_their_weights() -> None:
    """Experts that are chosen, not summed over, have no consumer that hears of all of them."""

    class Mixture(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.router, self.up = nn.Linear(4, 3), nn.Parameter(torch.randn(3, 2, 4))

        def forward(self, x: torch.Tensor, gate: torch.Tensor | None = None) -> torch.Tensor:
            gate = torch.ones(3).double() if gate is None else gate
            logits = nn.functional.linear(x, self.router.weight * gate[:, None], self.router.bias * gate)
            weight, chosen = logits.softmax(-1).max(-1)
            return torch.einsum("nhi,ni->nh", (self.up * gate[:, None, None])[chosen], x) * weight[:, None]

    torch.manual_seed(0)
    model = Mixture().double()
    x, y = labelled()
    expected = torch.zeros(3).double()
    for sample, label in zip(x, y % 2, strict=True):
        gate = torch.ones(3, requires_grad=True, dtype=torch.float64)
        loss = nn.functional.cross_entropy(model(sample[None], gate), label[None])
        expected += torch.autograd.grad(loss, gate)[0].square()
    slices = tuple(Slice(name, 0, torch.arange(3)[:, None]) for name in ("router.weight", "router.bias", "up"))
    experts = Group("up", 3, slices, granularity="expert", exact=False)
    found = collect(model, [experts], [(x, y % 2)], needs=Taylor().needs)
    torch.testing.assert_close(Taylor()(experts, found), expected / len(x))
