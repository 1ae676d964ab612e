"""Flow and gradient flow: conservation, closed forms, and the data's order."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call

from criteria.cases import base, labelled, readers
from criteria.oracle import losses
from networks import CASES, built
from secateur.criteria.flow import GraSP, SynFlow
from secateur.criteria.statistics import Statistics
from secateur.errors import ArgumentError, NumericalError
from secateur.graph.groups import find_groups
from secateur.graph.trace import trace


def deep() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)
    )
    nn.init.uniform_(model[1].running_mean, -1, 1)
    nn.init.uniform_(model[1].running_var, 0.5, 2)
    nn.init.uniform_(model[1].weight, -2, 2)
    return model.double().eval()


def test_every_layer_shares_out_the_same_flow_and_a_unit_gets_what_it_gives() -> None:
    model = deep()
    before = copy.deepcopy(model.state_dict())
    flow = SynFlow.of(model, (torch.randn(1, 2, 6, 6),))
    totals = [float(flow.shares[name].sum()) for name in ("0.weight", "1.weight", "3.weight", "6.weight")]
    assert totals == pytest.approx([totals[0]] * 4) and totals[0] > 0
    assert all(bool((shares >= 0).all()) for shares in flow.shares.values())
    torch.testing.assert_close(flow.shares["0.weight"].sum((1, 2, 3)), flow.shares["3.weight"].sum((0, 2, 3)))
    assert all(float(flow.shares[name].abs().sum()) == 0 for name in ("0.bias", "3.bias", "6.bias"))
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())


def test_flow_is_that_of_the_product_of_absolute_weights() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    a, b = model[0].weight.detach().abs(), model[2].weight.detach().abs()
    expected = b.sum(0) * a.sum(1)
    group = find_groups(trace(model, (torch.zeros(1, 3).double(),)))[0]
    flow = SynFlow.of(model, (torch.zeros(1, 3),))
    torch.testing.assert_close(flow(group, Statistics()), expected)
    torch.testing.assert_close(flow.weights("2.weight", Statistics()), b * a.sum(1))


def test_flow_that_leaves_the_range_is_an_error() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    nn.init.zeros_(model[0].weight)
    with pytest.raises(NumericalError, match=r"the flow through the network is 0\.0"):
        SynFlow.of(model, (torch.zeros(1, 2),))


@pytest.mark.parametrize("case", [c for c in CASES if c.name in {"LSTM-1", "attention", "grouped"}], ids=repr)
def test_flow_goes_through_networks_of_all_kinds(case) -> None:
    flow = SynFlow.of(built(case), (case.inputs(1),))
    assert all(bool(shares.isfinite().all()) for shares in flow.shares.values())


def test_grasp_is_weight_times_hessian_times_gradient() -> None:
    model, (x, y) = readers(), labelled()
    weights = {name: p.detach() for name, p in model.named_parameters()}
    sizes = [p.numel() for p in weights.values()]

    def mean_loss(flat: torch.Tensor) -> torch.Tensor:
        parts = flat.split(sizes)
        named = {name: part.reshape(p.shape) for (name, p), part in zip(weights.items(), parts, strict=True)}
        return losses(functional_call(model, named, (x,)), y).mean()

    flat = torch.cat([p.flatten() for p in weights.values()])
    hessian = torch.autograd.functional.hessian(mean_loss, flat)
    gradient = torch.autograd.functional.jacobian(mean_loss, flat)
    expected = (flat * (hessian @ gradient)).split(sizes)
    for batches in ([(x, y)], [(x[:7], y[:7]), (x[7:], y[7:])], [(x, y), (x, y)]):
        found = GraSP.of(model, batches)
        for name, part in zip(weights, expected, strict=True):
            torch.testing.assert_close(found.weights(name, Statistics()), part.reshape(weights[name].shape))
    group, statistics = base()
    own = sum(found.shares[name] for name in ("make.bias", "norm.weight", "norm.bias"))
    own = own + found.shares["make.weight"].sum(1) + found.shares["a.weight"].sum(0) + found.shares["b.weight"].sum(0)
    torch.testing.assert_close(found(group, statistics), own)


def test_another_models_parameter_is_named() -> None:
    with pytest.raises(ArgumentError, match=r"without the parameter 'other'; make it from this one, by SynFlow\.of"):
        SynFlow({}).weights("other", Statistics())
    with pytest.raises(ArgumentError, match=r"by GraSP\.of"):
        GraSP({}).weights("other", Statistics())
