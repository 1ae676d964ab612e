"""Cosines of residual branches, by hand."""

import copy
import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from criteria.cases import labelled
from secateur.criteria.criterion import score
from secateur.criteria.depth import BlockCosine
from secateur.criteria.statistics import Statistics
from secateur.errors import ArgumentError
from secateur.graph.groups import find_groups
from secateur.graph.trace import trace


class Blocks(nn.Module):
    """Three residual branches, added in three ways."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(5, 6)
        self.norm = nn.LayerNorm(6)
        self.a = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6))
        self.b = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 6), nn.Dropout(0.5))
        self.c = nn.Linear(6, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.a(self.norm(x))
        x = torch.add(self.b(x), x)
        x += self.c(torch.tanh(x)) * 0.5
        return self.head(torch.relu(x))


def blocks() -> Blocks:
    torch.manual_seed(0)
    return Blocks().double().eval()


def test_block_cosine_is_the_turn_of_the_stream() -> None:
    model, (x, y) = blocks(), labelled()
    groups = find_groups(trace(model, (x[:2],)), branches=True)
    branches = [group for group in groups if group.granularity == "branch"]
    assert [group.name for group in branches] == ["a:branch", "b:branch", "c:branch"]
    before = copy.deepcopy(model.state_dict())
    found = BlockCosine.of(model, groups, [(x[:11], y[:11]), (x[11:], y[11:])])
    with torch.no_grad():
        streams = [model.stem(x)]
        streams.append(streams[0] + model.a(model.norm(streams[0])))
        streams.append(streams[1] + model.b(streams[1]))
        streams.append(streams[2] + 0.5 * model.c(torch.tanh(streams[2])))
    pairs = itertools.pairwise(streams)
    expected = [1 - functional.cosine_similarity(a, b, dim=1).mean() for a, b in pairs]
    scores = score(branches, Statistics(), found)
    torch.testing.assert_close(torch.cat([scores[group.name] for group in branches]), torch.stack(expected))
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())


def test_a_branch_that_gives_zeros_scores_zero() -> None:
    model, (x, y) = blocks(), labelled()
    nn.init.zeros_(model.a[2].weight)
    nn.init.zeros_(model.a[2].bias)
    groups = find_groups(trace(model, (x[:2],)), branches=True)
    found = BlockCosine.of(model, groups, [(x, y)])
    assert found.turned["a:branch"] == pytest.approx(0, abs=1e-12) and found.turned["b:branch"] > 1e-3


def test_other_groups_are_named() -> None:
    model, (x, y) = blocks(), labelled()
    groups = find_groups(trace(model, (x[:2],)), branches=True)
    found = BlockCosine.of(model, groups, [(x, y)])
    other = next(group for group in groups if group.granularity != "branch")
    with pytest.raises(ArgumentError, match=f"{other.name!r} is none of them"):
        found(other, Statistics())


class Attending(nn.Module):
    """A transformer's layer, its branches as modules, with learned scales."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)
        self.feed = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
        self.gain = nn.Parameter(torch.full((8,), 0.3))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        x = x + self.attend(y, y, y, need_weights=False)[0]
        x = x + self.gain * self.feed(x)
        return self.head(x.mean(1))


def test_attention_is_a_branch_too() -> None:
    torch.manual_seed(0)
    model, x = Attending().double().eval(), torch.randn(4, 5, 8, dtype=torch.float64)
    groups = find_groups(trace(model, (x[:2],)), branches=True)
    branches = [group.name for group in groups if group.granularity == "branch"]
    found = BlockCosine.of(model, groups, [(x, torch.zeros(4, dtype=torch.int64))])
    with torch.no_grad():
        y = model.norm(x)
        streams = [x, x + model.attend(y, y, y)[0]]
        streams.append(streams[1] + model.gain * model.feed(streams[1]))
    pairs = itertools.pairwise(streams)
    expected = [float(1 - functional.cosine_similarity(a.flatten(1), b.flatten(1), dim=1).mean()) for a, b in pairs]
    assert branches == list(found.turned) and len(branches) == 2
    assert list(found.turned.values()) == pytest.approx(expected)
