"""Which axes keep units of their own in each outer unit: told by hand, and held to the law."""

import pytest
import torch
from torch import Tensor, nn

from secateur.criteria.magnitude import Magnitude
from secateur.criteria.statistics import Statistics
from secateur.graph.groups import find_groups
from secateur.graph.trace import trace
from secateur.surgery.cut import cut
from secateur.surgery.mask import mask
from secateur.surgery.plan import Plan, plan
from secateur.surgery.tensors import removed_marks, zero_marked
from secateur.types import Group

HEADS, WIDTH = 4, 6


class Heads(nn.Module):
    """Self-attention over (batch, positions, 8); what is done to queries and keys is left to kinds of it."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.key_width, self.width = HEADS, WIDTH, WIDTH
        self.query, self.key, self.value = (nn.Linear(8, HEADS * WIDTH) for _ in range(3))
        self.gain = nn.Parameter(torch.rand(WIDTH) + 0.5)
        self.gains = nn.Parameter(torch.rand(HEADS, 1, WIDTH) + 0.5)
        self.mixing = nn.Parameter(torch.rand(HEADS, HEADS))
        self.out = nn.Linear(HEADS * WIDTH, 8)

    def split(self, x: Tensor, width: int) -> Tensor:
        return x.view(x.shape[0], x.shape[1], self.heads, width).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        query, key = (self.split(layer(x), self.key_width) for layer in (self.query, self.key))
        value = self.split(self.value(x), self.width)
        weights = (self.turned(query) @ self.turned(key).transpose(-1, -2)).softmax(-1)
        mixed = self.joined(weights @ value)
        return self.out(mixed.transpose(1, 2).reshape(x.shape[0], x.shape[1], self.heads * self.width))

    def turned(self, x: Tensor) -> Tensor:
        return x

    def joined(self, x: Tensor) -> Tensor:
        return x


class OwnGains(Heads):
    def turned(self, x: Tensor) -> Tensor:
        return x * self.gains


class SharedGain(Heads):
    def turned(self, x: Tensor) -> Tensor:
        return x * self.gain


class MixedHeads(Heads):
    def joined(self, x: Tensor) -> Tensor:
        return torch.einsum("hk,bknd->bhnd", self.mixing, x) + x


class SoftHeads(Heads):
    def joined(self, x: Tensor) -> Tensor:
        return x * x.softmax(1)


class NeighbouringHeads(Heads):
    def joined(self, x: Tensor) -> Tensor:
        return x + x.sum(1, keepdim=True)


class Grouped(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 12, 1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 18, 3, groups=3), nn.ReLU(),
            nn.Conv2d(18, 6, 1, groups=3), nn.Flatten(), nn.LazyLinear(4),
        )  # fmt: skip


def groups_of(model: nn.Module, x: Tensor) -> dict[str, Group]:
    return {group.name: group for group in find_groups(trace(model, (x,)))}


@pytest.mark.parametrize(
    ("kind", "key_rows", "value_rows"),
    [
        (Heads, 4, 4),
        (OwnGains, 4, 4),
        (SharedGain, 1, 4),
        (MixedHeads, 4, 1),
        (SoftHeads, 4, 1),
        (NeighbouringHeads, 4, 1),
    ],
)
def test_head_dimensions_are_told_apart_unless_heads_meet(kind: type[Heads], key_rows: int, value_rows: int) -> None:
    found = groups_of(kind(), torch.randn(2, 5, 8))
    inner = {g.slices[0].parameter: (g.rows, g.size) for g in found.values() if g.width == WIDTH}
    assert sorted(inner.values()) == sorted([(key_rows, key_rows * WIDTH), (value_rows, value_rows * WIDTH)])
    assert inner["value.weight"] == (value_rows, value_rows * WIDTH)


@pytest.mark.parametrize("kind", [Heads, OwnGains, SharedGain, Grouped])
@pytest.mark.parametrize("seed", range(3))
def test_a_cut_with_other_units_in_each_outer_unit_equals_the_mask(kind: type[nn.Module], seed: int) -> None:
    torch.manual_seed(seed)
    x = torch.randn(2, 3, 7, 7) if kind is Grouped else torch.randn(2, 5, 8)
    model = kind()
    model(x)
    model = model.double().eval()
    program = trace(model, (x.double(),))
    groups = find_groups(program)
    assert any(group.nesting for group in groups)
    first = plan(groups, {g.name: torch.rand(g.size) for g in groups}, sparsity=0.4)
    small = cut(model, first, program=program)
    fresh = torch.randn(3, *x.shape[1:]).double()
    torch.testing.assert_close(small(fresh), mask(model, first, program=program)(fresh), rtol=1e-9, atol=1e-9)

    again = trace(small, (x.double(),))
    left = find_groups(again)
    second = plan(left, {g.name: torch.rand(g.size) for g in left}, sparsity=0.3)
    twice, once = cut(small, second, program=again), cut(model, first.then(second), program=program)
    assert {k: v.shape for k, v in once.state_dict().items()} == {k: v.shape for k, v in twice.state_dict().items()}
    torch.testing.assert_close(twice(fresh), once(fresh), rtol=1e-9, atol=1e-9)


def test_grouped_convolutions_keep_other_channels_in_each_group() -> None:
    model = Grouped()
    x = torch.randn(2, 3, 7, 7)
    model(x)
    found = groups_of(model, x)
    assert {name: (g.rows, g.size) for name, g in found.items()} == {
        "0:channel_group": (1, 3), "0:channel": (3, 12), "3": (3, 18), "5": (3, 6),
    }  # fmt: skip


@pytest.mark.parametrize("kind", [Heads, Grouped])
def test_the_score_of_a_unit_is_that_of_the_elements_that_go_with_it(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 7, 7) if kind is Grouped else torch.randn(2, 5, 8)
    model = kind()
    model(x)
    groups = find_groups(trace(model.eval(), (x,)))
    state = {name: tensor.detach().double() for name, tensor in model.named_parameters()}
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for group in groups:
        scores = Magnitude(1)(group, Statistics(weights=state))
        for unit in range(0, group.size, 5):
            kept = torch.tensor([k for k in range(group.size) if k != unit])
            marks = removed_marks([group], Plan({group.name: kept}, {group.name: group.size}), shapes)
            gone = sum(
                float((state[name] - zero_marked(state[name], [mark])).abs().sum())
                for name, found in marks.items()
                if name in state
                for mark in found
            )
            assert float(scores[unit]) == pytest.approx(gone, rel=1e-9), (group.name, unit)


class Viewed(nn.Module):
    """Attention that reshapes its heads back to the width that it read off its input."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.qkv, self.out, self.head = (
            nn.Linear(5, 12),
            nn.Linear(12, 36),
            nn.Linear(12, 12),
            nn.Linear(12, 4),
        )
        self.heads, self.width = 3, 4

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, self.width).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = torch.softmax(q @ k.transpose(-1, -2), -1) @ v
        return self.head(x + self.out(mixed.transpose(1, 2).reshape(b, n, c)))


def test_a_stream_is_as_wide_as_the_heads_that_go_back_to_it() -> None:
    model = Viewed().double().eval()
    program = trace(model, (torch.randn(2, 6, 5).double(),))
    groups = find_groups(program)
    # One row of heads for the attention, one for the stream: equally many, not the same ones.
    assert sorted((g.size, g.rows, g.exact) for g in groups) == [(6, 2, True), (24, 6, True)]
    chosen = plan(groups, {g.name: torch.rand(g.size) for g in groups}, sparsity=0.4)
    small = cut(model, chosen, program=program)
    assert (small.heads, small.width, small.stem.out_features) == (2, 3, 6)
    x = torch.randn(3, 6, 5).double()
    torch.testing.assert_close(small(x), mask(model, chosen, program=program)(x), rtol=1e-9, atol=1e-12)
