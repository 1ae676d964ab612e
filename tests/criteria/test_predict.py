"""Predicted damages against their definitions."""

import pytest
import torch
from torch import nn

import secateur as sc


@pytest.fixture(scope="module")
def setting():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double().eval()
    x = torch.randn(60, 6).double()
    program = sc.trace(model, (x[:2],))
    groups = sc.find_groups(program, multiple_of=2)
    obs = sc.GroupOBS()
    statistics = sc.collect(model, groups, [(x, model(x).argmax(1))], needs=obs.needs | sc.Taylor().needs)
    return groups, statistics, obs


def test_scores_of_units_that_go_are_added_up(setting) -> None:
    (group,), statistics, _ = setting
    scores = sc.Taylor()(group, statistics).sort().values
    found = sc.predict([group], statistics, sc.Taylor())[group.name]
    assert list(found) == [2, 4, 6]
    assert all(value == pytest.approx(float(scores[: 8 - width].sum())) for width, value in found.items())
    order = {group.name: -torch.arange(8.0)}
    other = sc.predict([group], statistics, sc.Taylor(), scores=order)[group.name]
    own = sc.Taylor()(group, statistics)
    assert other[6] == pytest.approx(float(own[6:].sum()))


def test_a_criterion_with_a_curve_gives_it(setting) -> None:
    (group,), statistics, obs = setting
    errors = obs.curve(group, statistics).errors
    assert sc.predict([group], statistics, obs) == {group.name: {2: errors[6], 4: errors[4], 6: errors[2]}}


def test_units_of_several_rows_go_together() -> None:
    torch.manual_seed(0)
    layers = nn.Conv2d(2, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1, groups=2), nn.ReLU(), nn.Conv2d(4, 3, 1)
    model = nn.Sequential(*layers).double().eval()
    x = torch.randn(20, 2, 3, 3).double()
    groups = [g for g in sc.find_groups(sc.trace(model, (x[:2],))) if (g.rows, g.size) == (2, 8)]
    obs = sc.GroupOBS()
    statistics = sc.collect(model, groups, [x], needs=obs.needs)
    errors = obs.curve(groups[0], statistics).errors
    found = sc.predict(groups[:1], statistics, obs)[groups[0].name]
    assert list(found) == list(range(groups[0].minimum, 4))
    assert found == {width: errors[2 * (4 - width)] for width in found}
