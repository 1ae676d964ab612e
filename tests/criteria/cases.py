"""Small networks, and all criteria with what is promised of each."""

import functools

import torch
from torch import Tensor, nn

from criteria.oracle import statistics_of
from secateur.criteria.activations import ActivationNorm, ActiveShare, MeanActivation
from secateur.criteria.chance import Random
from secateur.criteria.curvature import KFAC, OBD, HessianTrace
from secateur.criteria.energy import RIA, ActivationVariance, Wanda, WandaGroup
from secateur.criteria.gradients import SNIP, FisherGate, Gradient, SecondOrderTaylor, Taylor
from secateur.criteria.group_obs import GroupOBS
from secateur.criteria.magnitude import LAMP, BatchNormScale, GeometricMedian, Magnitude
from secateur.criteria.obs import OBS
from secateur.criteria.statistics import Statistics
from secateur.graph.groups import find_groups
from secateur.graph.trace import trace
from secateur.types import Group

# Depend on the function that the network computes, not on how weights share out its scale.
OF_FUNCTION = [
    ActiveShare(),
    ActivationVariance(),
    Wanda(),
    WandaGroup(),
    SNIP(),
    Taylor(),
    Taylor("absolute"),
    FisherGate(),
    SecondOrderTaylor(),
    OBD(),
    OBD("fisher"),
    HessianTrace(),
    KFAC(),
    OBS(),
    GroupOBS(),
    GroupOBS(weighting="none"),
    GroupOBS(weighting="gradients"),
]
OF_WEIGHTS = [
    Magnitude(),
    Magnitude(2),
    LAMP(),
    BatchNormScale(),
    GeometricMedian(),
    MeanActivation(),
    ActivationNorm(),
    RIA(),
    Gradient(),
]
ALL = [Random(3), MeanActivation(signed=True), *OF_FUNCTION, *OF_WEIGHTS]
# Of outputs: a unit that is always zero scores lowest. A predicted rise of the loss may be lower still.
OF_OUTPUT = [
    MeanActivation(),
    ActivationNorm(),
    RIA(),
    *(criterion for criterion in OF_FUNCTION if criterion != SecondOrderTaylor()),
]


class Readers(nn.Module):
    """Units that two layers read, behind a batch norm and ReLU."""

    def __init__(self, hidden: int = 6) -> None:
        super().__init__()
        self.make = nn.Linear(5, hidden)
        self.norm = nn.BatchNorm1d(hidden)
        self.a = nn.Linear(hidden, 3)
        self.b = nn.Linear(hidden, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.norm(self.make(x)))
        return self.a(h) * torch.sigmoid(self.b(h))


class Convolved(nn.Module):
    """Channels that a grouped convolution reads."""

    def __init__(self, groups: int = 1) -> None:
        super().__init__()
        self.make = nn.Conv2d(2, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.read = nn.Conv2d(6, 4, 3, padding=1, stride=2, groups=groups)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.read(torch.relu(self.norm(self.make(x))))).mean((2, 3)))


def readers(seed: int = 0, hidden: int = 6) -> Readers:
    torch.manual_seed(seed)
    return _seasoned(Readers(hidden))


def convolved(seed: int = 0, groups: int = 1) -> Convolved:
    torch.manual_seed(seed)
    return _seasoned(Convolved(groups))


def _seasoned(model: nn.Module) -> nn.Module:
    """Batch norms as after training."""
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.uniform_(layer.bias, 0.0, 0.5)
            layer.running_mean.uniform_(-0.2, 0.2)
            layer.running_var.uniform_(0.5, 1.5)
    return model.double().eval()


def labelled(samples: int = 30, shape: tuple[int, ...] = (5,)) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(samples, *shape, generator=generator, dtype=torch.float64)
    return x, torch.randint(3, (samples,), generator=generator)


@functools.cache
def found_groups(kind: type[nn.Module]) -> tuple[Group, ...]:
    """Groups of a network of this kind: they do not depend on its weights."""
    if kind is Readers:
        return tuple(find_groups(trace(readers(), (torch.zeros(2, 5, dtype=torch.float64),))))
    return tuple(find_groups(trace(convolved(), (torch.zeros(2, 2, 6, 6, dtype=torch.float64),))))


def measured(model: nn.Module, x: Tensor, y: Tensor, name: str = "make") -> tuple[Group, Statistics]:
    """The group of that name, and all statistics."""
    groups = [g for g in found_groups(type(model)) if g.name == name]
    return groups[0], statistics_of(model, groups, x, y)


@functools.cache
def base() -> tuple[Group, Statistics]:
    """Two readers, as they are."""
    return measured(readers(), *labelled())
