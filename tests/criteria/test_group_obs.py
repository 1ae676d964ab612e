"""Group OBS against least squares on the data, and against brute force over orders."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from criteria.cases import base, convolved, labelled, measured, readers
from criteria.oracle import design_of, inputs_and_outputs, statistics_of
from secateur.capture.gram import Gram, gram_of
from secateur.criteria.criterion import score
from secateur.criteria.group_obs import GroupOBS
from secateur.criteria.inverse import whitened
from secateur.criteria.obs import OBS
from secateur.criteria.statistics import Statistics
from secateur.criteria.sweep import map_of, sweep
from secateur.errors import ArgumentError, NumericalError
from secateur.surgery.plan import plan
from secateur.types import Group, Slice

DTYPE = torch.float64


@pytest.fixture(params=[1, 2, 64], autouse=True)
def delay(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Changes of the matrices are collected: for one column, for a few, and for more than there are."""
    monkeypatch.setattr("secateur.criteria.sweep.DELAY", request.param)


def least_squares_error(layer: nn.Module, inputs: torch.Tensor, removed: set[int], taps: int) -> float:
    """Mean squared error of a layer's outputs when the other channels, and the bias, make up for those removed."""
    design = design_of(layer, inputs).detach()
    total = 0.0
    matrices = layer.weight.detach().reshape(design.shape[1], -1, design.shape[2])
    for g in range(design.shape[1]):
        first = g * design.shape[2] // taps
        kept = [j for j in range(design.shape[2]) if first + j // taps not in removed]
        known = torch.cat([design[:, g, kept], torch.ones(len(design), 1, dtype=DTYPE)], dim=1)
        outputs = design[:, g] @ matrices[g].T
        # The smallest solution: taps at the border of small images are not independent.
        fit = known @ (torch.linalg.pinv(known) @ outputs)
        total += float((outputs - fit).square().sum(1).mean())
    return total


@pytest.mark.parametrize("weighting", ["none", "variance"])
def test_the_curve_of_several_readers_is_that_of_least_squares_on_the_data(weighting) -> None:
    model, (x, _) = readers(), labelled()
    layers = [model.a, model.b]
    inputs = inputs_and_outputs(model, model.a, x)[0]
    spread = [float((inputs @ layer.weight.detach().T).var(0, correction=0).sum()) for layer in layers]
    found = GroupOBS(damping=0, weighting=weighting).curve(*base())
    for count in range(7):
        removed = set(found.order[:count].tolist())
        by = spread if weighting == "variance" else [1.0, 1.0]
        expected = sum(least_squares_error(a, inputs, removed, 1) / s for a, s in zip(layers, by, strict=True))
        assert float(found.errors[count]) == pytest.approx(expected, abs=1e-10)
    assert weighting == "none" or float(found.errors[-1]) == pytest.approx(2)


@pytest.mark.parametrize("groups", [1, 2])
def test_the_curve_of_a_convolution_is_that_of_least_squares_on_the_data(groups: int) -> None:
    model, (x, y) = convolved(groups=groups), labelled(40, (2, 6, 6))
    group, statistics = measured(model, x, y) if groups == 1 else grouped(model, x)
    inputs = inputs_and_outputs(model, model.read, x)[0]
    found = GroupOBS(damping=0, weighting="none").curve(group, statistics)
    for count in range(7):
        removed = set(found.order[:count].tolist())
        expected = least_squares_error(model.read, inputs, removed, 9)
        assert float(found.errors[count]) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def grouped(model: nn.Module, x: torch.Tensor) -> tuple[Group, Statistics]:
    """Channels of a grouped convolution, each for itself: group g of it reads channels 3g, 3g + 1, 3g + 2."""
    slices = tuple(
        Slice("read.weight", 1, torch.tensor([[unit % 3]]), unit, True, within=(0, rows[None]))
        for unit in range(6)
        for rows in [torch.arange(2) + 2 * (unit // 3)]
    )
    group = Group("make", 6, slices)
    return group, statistics_of(model, [], x, torch.zeros(len(x), dtype=torch.int64), with_hessian=False)


def test_each_removal_is_the_cheapest_there_is() -> None:
    model, (x, _) = readers(), labelled()
    inputs = inputs_and_outputs(model, model.a, x)[0]
    found = GroupOBS(damping=0, weighting="none").curve(*base())

    def error(removed: set[int]) -> float:
        return sum(least_squares_error(layer, inputs, removed, 1) for layer in (model.a, model.b))

    removed: set[int] = set()
    for unit in found.order.tolist():
        costs = {other: error({*removed, other}) for other in range(6) if other not in removed}
        assert min(costs, key=lambda k: costs[k]) == unit
        removed.add(unit)


def test_damping_is_a_ridge_on_standardised_inputs() -> None:
    group, statistics = base()
    reader = next(c for c in statistics.consumers if c.place.name == "a.weight")
    only = replace(statistics, consumers=(reader,))
    found = GroupOBS(damping=0.3, weighting="none").curve(group, only)
    mean = reader.gram.mean()[0]
    covariance = mean[:-1, :-1] - mean[:-1, -1:] @ mean[-1:, :-1]
    damped = covariance + 0.3 * torch.diag(covariance.diagonal())
    weight = statistics.weights["a.weight"]
    for count in range(1, 7):
        gone = found.order[:count]
        inverse = torch.linalg.inv(damped)
        own = weight[:, gone]
        expected = torch.trace(own @ torch.linalg.inv(inverse[gone][:, gone]) @ own.T)
        torch.testing.assert_close(found.errors[count], expected)


def test_gradients_weigh_the_error_of_each_output() -> None:
    group, statistics = base()
    reader = next(c for c in statistics.consumers if c.place.name == "a.weight")
    only = replace(statistics, consumers=(reader,))
    found = GroupOBS(damping=0.1, weighting="gradients").curve(group, only)
    mean = reader.gram.mean()[0]
    covariance = mean[:-1, :-1] - mean[:-1, -1:] @ mean[-1:, :-1]
    inverse = torch.linalg.inv(covariance + 0.1 * torch.diag(covariance.diagonal()))
    weight, moments = statistics.weights["a.weight"], reader.output_gradients[0] / statistics.samples
    for count in range(1, 7):
        gone = found.order[:count]
        own = weight[:, gone]
        quadratic = own @ torch.linalg.inv(inverse[gone][:, gone]) @ own.T
        torch.testing.assert_close(found.errors[count], (moments * quadratic).sum() / 2)


def test_scores_are_the_errors_at_which_units_go() -> None:
    group, statistics = base()
    found, scores = GroupOBS().curve(group, statistics), GroupOBS()(group, statistics)
    assert scores.argsort(stable=True).tolist() == found.order.tolist()
    assert bool((found.errors.diff() >= 0).all()) and found.errors[0] == 0
    for width in range(1, 6):
        kept = plan([group], {group.name: scores}, sparsity=1 - width / 6).keep[group.name]
        assert kept.tolist() == sorted(found.order[6 - width :].tolist())


def test_of_two_units_that_do_the_same_one_goes_first_and_the_other_stays() -> None:
    model, (x, y) = readers(), labelled()
    for tensor in [*model.make.parameters(), *model.norm.parameters(), *model.norm.buffers()]:
        if tensor.ndim:
            tensor.data[1] = tensor.data[4]
    for reader in (model.a, model.b):
        reader.weight.data *= 3
    found = GroupOBS(damping=1e-6).curve(*measured(model, x, y))
    assert found.order[0].item() in {1, 4} and found.errors[1] < 1e-4
    other = 5 - found.order[0].item()
    assert found.errors[found.order.tolist().index(other) + 1] > 1e-3


def test_dependent_inputs_are_damped_more_and_that_is_noted() -> None:
    model, (x, y) = readers(), labelled(4)
    group, statistics = measured(model, x, y)
    found = score([group], statistics, GroupOBS(damping=0))
    assert [note.where for note in found.notes] == ["make", "make"]
    assert "damping raised from 0 to 1e-08: inputs of 'a.weight' are dependent" in found.notes[0].text
    assert bool(found["make"].isfinite().all())
    assert score([group], statistics, GroupOBS()).notes == ()


def test_constant_inputs_go_first_at_no_cost() -> None:
    model, (x, y) = readers(), labelled()
    model.norm.weight.data[3], model.norm.bias.data[3] = 0.0, 2.0
    model.norm.weight.data[0], model.norm.bias.data[0] = 0.0, 0.0
    found = GroupOBS().curve(*measured(model, x, y))
    assert found.order[:2].tolist() == [0, 3] and found.errors[:3].tolist() == [0, 0, 0]
    assert found.errors[3] > 0


def test_what_varies_less_than_its_sums_are_exact_is_constant() -> None:
    x = torch.tensor([[1.0, 1000.0], [-1.0, 1000.001], [2.0, 999.999], [-2.0, 1000.0]], dtype=DTYPE)
    assert whitened(gram_of(x[:, None, None]), 0.01, "w", 4).scale[0, 1] == 0


def broken(total: torch.Tensor) -> tuple[Group, Statistics]:
    group, statistics = base()
    return group, replace(
        statistics, consumers=tuple(replace(c, gram=Gram(total[None], 10)) for c in statistics.consumers)
    )


@pytest.mark.parametrize("criterion", [GroupOBS(), OBS()], ids=repr)
def test_moments_that_are_none_are_refused(criterion) -> None:
    wrong = torch.full((7, 7), 50.0, dtype=DTYPE).fill_diagonal_(10.0)
    wrong[-1, :] = wrong[:, -1] = 0.0
    wrong[-1, -1] = 10.0
    with pytest.raises(NumericalError, match=r"'\w.weight' \(6 columns, 30 calibration samples.*damping of 1"):
        criterion(*broken(wrong))
    with pytest.raises(NumericalError, match=r"inputs of '\w.weight' are not finite \(30 calibration samples\)"):
        criterion(*broken(torch.full((7, 7), torch.nan, dtype=DTYPE)))


def test_units_that_nothing_reads_cost_what_masking_them_changes() -> None:
    """Rows that masking zeroes, as those of queries and keys."""
    model, (x, _) = readers(), labelled()
    group = Group("make", 6, (Slice("make.weight", 0, torch.arange(6).unsqueeze(1), masked=True),))
    outputs = x @ model.make.weight.detach().T
    found = GroupOBS(weighting="none")(group, base()[1])
    costs = outputs.var(0, correction=0)
    order = costs.argsort()
    torch.testing.assert_close(found[order], costs[order].cumsum(0))


def test_columns_of_other_units_make_up_for_those_that_go() -> None:
    """Only half of the columns can go, the others stay."""
    _, statistics = base()
    half = Group("half", 3, (Slice("a.weight", 1, torch.tensor([[5], [1], [2]]), masked=True),))
    model, (x, _) = readers(), labelled()
    inputs = inputs_and_outputs(model, model.a, x)[0]
    found = GroupOBS(damping=0, weighting="none").curve(half, statistics)
    for count in range(4):
        removed = {[5, 1, 2][unit] for unit in found.order[:count].tolist()}
        assert float(found.errors[count]) == pytest.approx(least_squares_error(model.a, inputs, removed, 1), abs=1e-10)


def test_units_of_several_columns_each_unlike_the_others() -> None:
    """Two columns for one unit, one for the next."""
    _, statistics = base()
    slices = (
        Slice("a.weight", 1, torch.tensor([[0], [1]]), masked=True),
        Slice("a.weight", 1, torch.tensor([[3]]), first=1, masked=True),
    )
    model, (x, _) = readers(), labelled()
    inputs = inputs_and_outputs(model, model.a, x)[0]
    found = GroupOBS(damping=0, weighting="none").curve(Group("odd", 2, slices), statistics)
    columns = {0: {0}, 1: {1, 3}}
    first = found.order[0].item()
    expected = [least_squares_error(model.a, inputs, gone, 1) for gone in (columns[first], {0, 1, 3})]
    assert found.errors[1:].tolist() == pytest.approx(expected)


def test_a_wrong_option_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"damping must lie in \[0, 1\]"):
        GroupOBS(damping=-0.1)
    with pytest.raises(ArgumentError, match="weighting must be"):
        GroupOBS(weighting="fisher")  # type: ignore[arg-type]


def test_a_wide_layer_is_eliminated_as_with_plain_algebra(delay: None) -> None:
    """Against the definition, with as many removals as need several updates of what is left."""
    torch.manual_seed(0)
    mixed = torch.randn(150, 150, dtype=DTYPE)
    moments = mixed @ mixed.T / 150 + 0.1 * torch.eye(150, dtype=DTYPE)
    weight = torch.randn(20, 150, dtype=DTYPE)
    # Units of two columns, of one and of none; the last columns are of no unit.
    units = torch.cat([torch.arange(50), torch.arange(60), torch.full((40,), -1)])
    order, errors = sweep([map_of(weight, torch.linalg.inv(moments), units)], torch.zeros(61, dtype=DTYPE))
    assert sorted(order.tolist()) == list(range(61)) and order[0] == 60 and errors[1] == 0
    for count in (1, 7, 31, 40, 61):
        kept = ~torch.isin(units, order[:count])
        left = moments[~kept][:, ~kept]
        if bool(kept.any()):
            cross = moments[~kept][:, kept]
            left = left - cross @ torch.linalg.solve(moments[kept][:, kept], cross.T)
        gone = weight[:, ~kept]
        torch.testing.assert_close(errors[count], torch.trace(gone @ left @ gone.T), rtol=1e-9, atol=1e-9)
