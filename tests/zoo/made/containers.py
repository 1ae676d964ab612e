"""Inputs and outputs of every shape: dicts, tuples, dataclasses, named tuples, lists, optional and keyword ones."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree


class Pair(NamedTuple):
    left: Tensor
    right: Tensor


@dataclass
class Batch:
    features: Tensor
    weight: Tensor


@dataclass
class Scores:
    logits: Tensor
    hidden: tuple[Tensor, ...]


pytree.register_dataclass(Batch)
pytree.register_dataclass(Scores)


class Tower(nn.Module):
    def __init__(self, out: int = 3) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 12), nn.Linear(12, 10), nn.Linear(10, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x).relu()).relu())


class Dicts(nn.Module):
    """A dict of modalities in, a dict of heads out."""

    def __init__(self) -> None:
        super().__init__()
        self.towers = nn.ModuleDict({"image": Tower(8), "sound": Tower(5)})
        self.heads = nn.ModuleDict({"class": nn.Linear(13, 4), "age": nn.Linear(13, 1)})

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        joint = torch.cat([tower(inputs[name]) for name, tower in self.towers.items()], dim=-1).relu()
        return {name: head(joint) for name, head in self.heads.items()}


class NamedTuples(nn.Module):
    """A named tuple in and out."""

    def __init__(self) -> None:
        super().__init__()
        self.tower, self.head = Tower(7), nn.Linear(7, 2)

    def forward(self, pair: Pair) -> Pair:
        left, right = self.tower(pair.left), self.tower(pair.right)
        return Pair(self.head(left.tanh()), self.head(left * right))


class Dataclasses(nn.Module):
    """A dataclass in and out, registered with torch's trees."""

    def __init__(self) -> None:
        super().__init__()
        self.tower, self.head = Tower(9), nn.Linear(9, 2)

    def forward(self, batch: Batch) -> Scores:
        hidden = self.tower(batch.features) * batch.weight
        return Scores(self.head(hidden.relu()), (batch.weight * 2,))


class Unregistered:
    """What torch's trees know nothing of."""

    def __init__(self, logits: Tensor, extra: Tensor) -> None:
        self.logits, self.extra = logits, extra


class Nested(nn.Module):
    """Lists within tuples within dicts, an optional input left out, and one by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.tower, self.other, self.head = Tower(8), nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(
        self, inputs: tuple[list[Tensor], dict[str, Tensor]], mask: Tensor | None = None, *, scale: float = 1.0
    ) -> list[tuple[Tensor, Tensor]]:
        (a, b), more = inputs
        shift = self.other(more["more"])
        results = [self.head((self.tower(x) + shift) * scale).relu() for x in (a, b)]
        return [(y, y.sum(-1) if mask is None else mask) for y in results]
