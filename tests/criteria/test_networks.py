"""Criteria on statistics that `collect` gathered, of networks of all kinds."""

import functools

import pytest
import torch
from torch import Tensor

from criteria.cases import ALL, labelled, measured, readers
from networks import CASES, built
from secateur.criteria.collect import collect
from secateur.criteria.criterion import Criterion, score
from secateur.criteria.group_obs import GroupOBS
from secateur.criteria.maps import makers, readers as readers_of
from secateur.criteria.statistics import NEEDS, Statistics
from secateur.errors import PlanError
from secateur.graph.groups import find_groups
from secateur.graph.trace import trace
from secateur.types import Group

BY_NAME = {case.name: case for case in CASES}
NAMES = ["residual", "grouped", "LSTM-1", "GRU-2-bidirectional", "attention"]


def squares(outputs: Tensor, targets: Tensor) -> Tensor:
    """A loss that fits any outputs."""
    return (outputs.flatten(1) - targets.unsqueeze(1)).square().mean(1)


@functools.cache
def collected(name: str) -> tuple[list[Group], Statistics]:
    case = BY_NAME[name]
    model, x = built(case), case.inputs(12)
    groups = find_groups(trace(model, (case.inputs(2),)))
    y = torch.linspace(-1, 1, 12, dtype=torch.float64)
    return groups, collect(
        model, groups, [(x[:5], y[:5]), (x[5:], y[5:])], needs=NEEDS, loss=squares, hessian_vectors=2
    )


@pytest.mark.parametrize("criterion", ALL, ids=repr)
@pytest.mark.parametrize("name", NAMES)
def test_every_group_is_scored_or_refused_by_name(name: str, criterion: Criterion) -> None:
    groups, statistics = collected(name)
    refused = []
    for group in groups:
        try:
            found = score([group], statistics, criterion)[group.name]
        except PlanError as error:
            refused.append((group, str(error)))
            continue
        assert found.shape == (group.size,) and bool(found.isfinite().all())
    assert all(repr(group.name) in text and type(criterion).__name__ in text for group, text in refused)
    assert len(refused) < len(groups) or type(criterion).__name__ == "BatchNormScale"


@pytest.mark.parametrize("criterion", ALL, ids=repr)
def test_batch_size_leaves_scores(criterion: Criterion) -> None:
    group, plain = measured(readers(), *labelled())
    x, y = labelled()
    for sizes in ([30], [7, 23]):
        batches = list(zip(x.split(sizes), y.split(sizes), strict=True))
        found = collect(readers(), [group], batches, needs=NEEDS, hessian_vectors=None)
        torch.testing.assert_close(criterion(group, found), criterion(group, plain))


def test_hidden_units_are_read_by_their_own_layer_and_by_the_next() -> None:
    groups, statistics = collected("LSTM-1")
    hidden = next(g for g in groups if g.granularity == "hidden")
    names = {lines.consumer.place.name for lines in readers_of(hidden, statistics)}
    assert names == {"rnn.weight_hh_l0", "head.weight"}
    found = GroupOBS(damping=0.01, weighting="none").curve(hidden, statistics)
    first = int(found.order[0])
    expected = 0.0
    for name in names:
        gram = next(c.gram for c in statistics.consumers if c.place.name == name)
        mean = gram.mean()[0]
        covariance = mean[:-1, :-1] - mean[:-1, -1:] @ mean[-1:, :-1]
        inverse = torch.linalg.inv(covariance + 0.01 * torch.diag(covariance.diagonal()))
        expected += float(statistics.weights[name][:, first].square().sum() / inverse[first, first])
    assert float(found.errors[1]) == pytest.approx(expected, rel=1e-6)


def test_dimensions_of_queries_and_keys_cost_what_makes_them() -> None:
    """Nothing reads them by a weight; group OBS scores them all the same."""
    groups, statistics = collected("attention")
    for group in groups:
        assert readers_of(group, statistics) or makers(group, statistics) or not group.exact, group.name
