"""The criteria: one small frozen dataclass each, with its paper."""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.criteria.statistics import GATE_GRADIENTS, WEIGHTS, Statistics, sum_over_group
from secateur.errors import ArgumentError
from secateur.types import Group


@dataclass(frozen=True)
class Random:
    """Uniform scores: the control that every other criterion has to beat.

    The scores depend on the seed and the group's name only, so they do not change with the order of
    groups.
    """

    seed: int = 0

    @property
    def needs(self) -> frozenset[str]:
        """Nothing."""
        return frozenset()

    def __call__(self, group: Group, statistics: Statistics) -> Tensor:
        """Scores in [0, 1), float64 (units,)."""
        digest = hashlib.sha256(f"{self.seed}:{group.name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        return torch.rand(group.size, generator=generator, dtype=torch.float64)


@dataclass(frozen=True)
class Magnitude:
    """p-norm of all weights of a unit, over everything that is tied to it.

    Source: Li et al. 2017, arXiv:1608.08710 (p = 1, the producer's filter); summed over coupled
    layers as in Fang et al. 2023, arXiv:2301.12900.

    Args:
        p: 1 for the sum of absolute values, 2 for the Euclidean norm; any p > 0.
    """

    p: float = 1.0

    def __post_init__(self) -> None:
        if not self.p > 0:
            raise ArgumentError(f"Magnitude(p={self.p}): p must be positive")

    @property
    def needs(self) -> frozenset[str]:
        """Weights."""
        return frozenset({WEIGHTS})

    def __call__(self, group: Group, statistics: Statistics) -> Tensor:
        """Scores >= 0, float64 (units,)."""
        names = {s.parameter for s in group.slices if s.trained}
        powers = {name: statistics.weights[name].double().abs() ** self.p for name in names}
        return sum_over_group(group, powers) ** (1 / self.p)


@dataclass(frozen=True)
class Taylor:
    """Mean over samples of the squared first-order change of the loss when the unit is removed.

    The change is the derivative by a gate on what consumers see of the unit: the sum of gradient times
    weight over the consumers' slices. It is taken for each sample before it is squared, so the size of
    a batch does not change the score.

    Source: Molchanov et al. 2019, arXiv:1906.10771 (group-summed, squared).
    """

    @property
    def needs(self) -> frozenset[str]:
        """Gradients, which take labels and one backward pass for each sample."""
        return frozenset({GATE_GRADIENTS})

    def __call__(self, group: Group, statistics: Statistics) -> Tensor:
        """Scores >= 0, float64 (units,)."""
        if group.name not in statistics.gates:
            raise ArgumentError(
                f"Taylor needs gradients, which were not collected for group {group.name!r}; "
                "pass needs=Taylor().needs to collect"
            )
        return statistics.gates[group.name].squares / max(statistics.samples, 1)
