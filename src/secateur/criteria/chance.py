"""Chance: what every criterion has to beat."""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.criteria.statistics import Statistics
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
        return torch.rand(group.size, generator=self._generator(group.name), dtype=torch.float64)

    def weights(self, parameter: str, statistics: Statistics) -> Tensor:
        """Scores in [0, 1), float64, in the parameter's shape."""
        shape = statistics.weights[parameter].shape
        return torch.rand(shape, generator=self._generator(parameter), dtype=torch.float64)

    def _generator(self, name: str) -> torch.Generator:
        digest = hashlib.sha256(f"{self.seed}:{name}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
