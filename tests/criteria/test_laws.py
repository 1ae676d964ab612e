"""Laws that all criteria keep, on statistics from plain loops."""

import functools
from dataclasses import replace

import pytest
import torch

from criteria.cases import ALL, OF_FUNCTION, OF_OUTPUT, OF_WEIGHTS, base, convolved, labelled, measured, readers
from secateur.criteria.activations import ActivationNorm, ActiveShare, MeanActivation
from secateur.criteria.chance import Random
from secateur.criteria.criterion import Criterion, WeightCriterion, needs_of, score
from secateur.criteria.curvature import KFAC, OBD, HessianTrace
from secateur.criteria.energy import RIA, ActivationVariance, Wanda, WandaGroup
from secateur.criteria.gradients import SNIP, Gradient, SecondOrderTaylor, Taylor
from secateur.criteria.group_obs import GroupOBS
from secateur.criteria.magnitude import LAMP, BatchNormScale, GeometricMedian, Magnitude
from secateur.criteria.obs import OBS
from secateur.criteria.parts import combine
from secateur.criteria.statistics import WEIGHTS, Statistics
from secateur.errors import ArgumentError, PlanError
from secateur.surgery.plan import plan
from secateur.types import Group

ORDER = torch.tensor([3, 0, 5, 1, 4, 2])


@functools.cache
def variant(change: str) -> tuple[Group, Statistics]:
    """The base case, its network or data changed."""
    model, (x, y) = readers(), labelled()
    if change == "twice":
        return measured(model, torch.cat([x, x]), torch.cat([y, y]))
    if change == "permuted":
        for module in (model.make, model.norm):
            for tensor in [*module.parameters(), *module.buffers()]:
                if tensor.ndim:
                    tensor.data = tensor.data[ORDER]
        for reader in (model.a, model.b):
            reader.weight.data = reader.weight.data[:, ORDER]
    if change == "rescaled":
        model.norm.weight.data[2] *= 7
        model.norm.bias.data[2] *= 7
        for reader in (model.a, model.b):
            reader.weight.data[:, 2] /= 7
    if change == "silent":
        model.norm.weight.data[4] = 0
        model.norm.bias.data[4] = 0
    return measured(model, x, y)


@pytest.mark.parametrize("criterion", [c for c in ALL if c != Random(3)], ids=repr)
def test_permuting_units_permutes_scores(criterion: Criterion) -> None:
    torch.testing.assert_close(criterion(*variant("permuted")), criterion(*base())[ORDER])


@pytest.mark.parametrize("criterion", ALL, ids=repr)
def test_duplicating_the_data_leaves_scores(criterion: Criterion) -> None:
    torch.testing.assert_close(criterion(*variant("twice")), criterion(*base()))


@pytest.mark.parametrize("criterion", OF_FUNCTION, ids=repr)
def test_rescaling_a_unit_leaves_the_scores_of_criteria_of_the_function(criterion: Criterion) -> None:
    torch.testing.assert_close(criterion(*variant("rescaled")), criterion(*base()))


@pytest.mark.parametrize("criterion", [c for c in OF_WEIGHTS if c != GeometricMedian()], ids=repr)
def test_rescaling_a_unit_changes_the_scores_of_criteria_of_weights(criterion: Criterion) -> None:
    assert not torch.allclose(criterion(*variant("rescaled")), criterion(*base()))


@pytest.mark.parametrize("criterion", OF_OUTPUT, ids=repr)
def test_a_unit_that_is_always_zero_scores_lowest(criterion: Criterion) -> None:
    found = criterion(*variant("silent"))
    assert found[4] == 0 and bool((found[[0, 1, 2, 3, 5]] > 0).all())


OF_INPUTS = [ActivationVariance(), Wanda(), WandaGroup(), RIA(), OBS()]
OF_READERS = [*OF_INPUTS, KFAC(), OBD(), HessianTrace(), SecondOrderTaylor()]
OF_ALL_SLICES = [Magnitude(), LAMP(), SNIP(), Gradient(), BatchNormScale(), GeometricMedian()]


@pytest.mark.parametrize("criterion", OF_READERS + OF_ALL_SLICES, ids=repr)
def test_scores_of_a_tied_group_are_the_sum_of_those_of_its_slices(criterion: Criterion) -> None:
    group, statistics = base()
    buffers = tuple(s for s in group.slices if not s.trained)
    total = torch.zeros(group.size, dtype=torch.float64)
    for s in group.slices:
        if s.trained and (s.masked or criterion not in OF_READERS):
            found = criterion.measured(replace(group, slices=(s, *buffers)), statistics)
            total += combine(found.parts, group.size, "sum").nan_to_num(nan=0.0)
    torch.testing.assert_close(total, criterion(group, statistics))


@pytest.mark.parametrize("criterion", [MeanActivation(), ActiveShare(), ActivationNorm()], ids=repr)
def test_activations_are_the_same_for_all_readers(criterion: Criterion) -> None:
    group, statistics = base()
    parts = criterion.measured(group, statistics).parts
    assert len(parts) == 2
    torch.testing.assert_close(parts[0].values, parts[1].values)
    torch.testing.assert_close(criterion(group, statistics), parts[0].values)


@pytest.mark.parametrize("criterion", ALL, ids=repr)
def test_score_gives_what_the_criterion_gives(criterion: Criterion) -> None:
    group, statistics = base()
    found = score([group], statistics, criterion)
    torch.testing.assert_close(found[group.name], criterion(group, statistics))
    assert list(found) == [group.name] and len(found) == 1 and found.notes == ()
    assert found[group.name].dtype == torch.float64


@pytest.mark.parametrize("criterion", [c for c in ALL if isinstance(c, WeightCriterion)], ids=repr)
def test_single_weights_have_scores_in_the_shape_of_their_parameter(criterion: WeightCriterion) -> None:
    _, statistics = measured(convolved(), *labelled(8, (2, 6, 6)))
    for name in ("make.weight", "read.weight", "head.weight"):
        found = criterion.weights(name, statistics)
        assert found.shape == statistics.weights[name].shape and found.dtype == torch.float64
        assert bool(found.isfinite().all()) and found.unique().numel() > 1


@pytest.mark.parametrize("criterion", ALL, ids=repr)
def test_what_was_not_collected_is_named(criterion: Criterion) -> None:
    group, whole = base()
    bare = tuple(replace(c, moments=None, gram=None, output_gradients=None) for c in whole.consumers)
    if criterion.needs <= {WEIGHTS}:
        criterion(group, Statistics(whole.weights))
        return
    with pytest.raises(ArgumentError, match=r"not collected; pass needs=.*needs to collect"):
        criterion(group, Statistics(whole.weights, consumers=bare))


def test_all_equal_scores_remove_no_more_than_asked() -> None:
    group, statistics = base()
    equal = score([group], statistics, lambda group, statistics: torch.ones(group.size))
    assert plan([group], equal, sparsity=0.5).keep[group.name].tolist() == [0, 1, 2]


def test_combinations() -> None:
    group, statistics = base()
    a, b = (part.values for part in WandaGroup().measured(group, statistics).parts)

    def combined(how):
        return score([group], statistics, WandaGroup(), combination=how)[group.name]

    torch.testing.assert_close(combined("sum"), a + b)
    torch.testing.assert_close(combined("mean"), (a + b) / 2)
    torch.testing.assert_close(combined("max"), torch.maximum(a, b))
    torch.testing.assert_close(combined("norm"), (a**2 + b**2).sqrt())
    torch.testing.assert_close(combined(3), (a**3 + b**3) ** (1 / 3))
    torch.testing.assert_close(
        score([group], statistics, Taylor(), combination="mean")[group.name], Taylor()(group, statistics)
    )
    with pytest.raises(ArgumentError, match=r"combination is 'median'"):
        combined("median")
    with pytest.raises(ArgumentError, match=r"combination is -1"):
        combined(-1)


def test_normalisations() -> None:
    group, statistics = base()
    values = SecondOrderTaylor()(group, statistics)

    def normalised(how):
        return score([group], statistics, SecondOrderTaylor(), normalisation=how)[group.name]

    torch.testing.assert_close(normalised("none"), values)
    torch.testing.assert_close(normalised("mean"), values / values.abs().mean())
    torch.testing.assert_close(normalised("max"), values / values.abs().max())
    # A unit: 5 weights and a bias in `make`, gain and bias of the norm, 3 weights in each of `a` and `b`.
    torch.testing.assert_close(normalised("size"), values / 14)
    torch.testing.assert_close(normalised("standardised"), (values - values.mean()) / values.std(correction=0))
    with pytest.raises(ArgumentError, match=r"normalisation is 'sum'; needed one of none, mean"):
        normalised("sum")
    zero = score([group], statistics, lambda group, _: torch.zeros(group.size), normalisation="standardised")
    assert zero[group.name].tolist() == [0.0] * 6


def test_a_plain_function_is_a_criterion_that_reads_weights() -> None:
    def largest(group, statistics):
        return statistics.weights["make.weight"].abs().amax(1)

    group, statistics = base()
    assert needs_of(largest) == {WEIGHTS} and needs_of(Taylor()) == Taylor().needs
    found = score([group], statistics, largest)[group.name]
    torch.testing.assert_close(found, statistics.weights["make.weight"].abs().amax(1))


def test_a_group_of_which_a_criterion_knows_nothing_is_refused() -> None:
    group, statistics = base()
    without = replace(group, slices=tuple(s for s in group.slices if "norm" not in s.parameter))
    with pytest.raises(PlanError, match=r"BatchNormScale.*says nothing of 6 of the 6 units of group 'make'"):
        score([without], statistics, BatchNormScale())
    unread = replace(group, slices=tuple(s for s in group.slices if not s.masked))
    for criterion in (GroupOBS(), ActiveShare(), KFAC()):
        with pytest.raises(PlanError, match=r"group 'make'.*by another criterion"):
            score([unread], statistics, criterion)
