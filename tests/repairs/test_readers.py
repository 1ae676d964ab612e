"""Who reads a parameter, on programs that can be read by eye."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from secateur.graph.trace import Program, trace
from secateur.repairs.readers import feeds_batch_norm, is_own_bias, is_read_otherwise


class Uses(nn.Module):
    """One weight and one bias, used in the way that is asked for."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.weight, self.bias = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(4))
        self.other, self.norm = nn.Parameter(torch.randn(4, 4)), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.linear(x, self.weight, self.bias)
        again = {
            "once": lambda: y,
            "twice": lambda: functional.linear(y, self.weight),
            "turned": lambda: y @ self.weight.T[:, :2],
            "swapped": lambda: y @ self.weight.view(4, 4).swapaxes(0, 1).mT,
            "multiplied": lambda: y @ self.weight,
            "scaled": lambda: y * self.weight.sum(0),
            "looked up": lambda: y + self.weight[torch.arange(4)][0],
            "bias elsewhere": lambda: functional.linear(y, self.other, self.bias),
            "bias added": lambda: y + self.bias,
            "normed": lambda: self.norm(y),
            "normed twice": lambda: self.norm(y) + functional.batch_norm(y, None, None, training=True),
            "normed and added": lambda: self.norm(y) + y,
            "normed later": lambda: self.norm(y.relu()),
        }
        return again[self.how]()


def program(how: str) -> Program:
    return trace(Uses(how).eval(), (torch.randn(3, 4),))


@pytest.mark.parametrize(
    ("how", "otherwise"),
    [
        ("once", False),
        ("twice", False),
        ("turned", False),
        ("swapped", False),
        ("multiplied", False),
        ("scaled", True),
        ("looked up", True),
    ],
)
def test_whether_anything_but_a_linear_map_reads_a_weight(how: str, otherwise: bool) -> None:
    assert is_read_otherwise(program(how), "weight") is otherwise


@pytest.mark.parametrize(
    ("how", "own"), [("once", True), ("twice", True), ("bias elsewhere", False), ("bias added", False)]
)
def test_a_bias_is_the_layers_own_where_the_weight_is_read_too(how: str, own: bool) -> None:
    assert is_own_bias(program(how), "weight", "bias") is own


@pytest.mark.parametrize(
    ("how", "feeds"),
    [
        ("once", False),
        ("normed", True),
        ("normed twice", True),
        ("normed and added", False),
        ("normed later", False),
        ("bias elsewhere", False),
    ],
)
def test_whether_batch_norms_alone_read_a_layer(how: str, feeds: bool) -> None:
    assert feeds_batch_norm(program(how), "weight") is feeds
    assert not feeds_batch_norm(program(how), "no such parameter")
