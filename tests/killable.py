"""Scans that are the same in every process, for tests that end one in the middle."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from secateur.allocation.contenders import Contenders
from secateur.graph.costs import costs
from secateur.graph.groups import find_groups
from secateur.graph.trace import trace
from secateur.sensitivity.measure import PointStore
from secateur.sensitivity.racing import Racing
from secateur.sensitivity.result import Scan
from secateur.sensitivity.scan import scan
from secateur.types import Budget, Curves

SAMPLES = 120


SPARSITIES = (0.3, 0.5, 0.8)


def job(samples: int = SAMPLES, gain: float = 1.0) -> tuple[Any, ...]:
    """A program with six groups, the groups, their scores and data; with more gain, groups matter more."""
    torch.manual_seed(0)
    layers = [layer for _ in range(6) for layer in (nn.Linear(12, 12), nn.Tanh())]
    model = nn.Sequential(*layers, nn.Linear(12, 4)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(gain)
    x = torch.randn(samples, 12)
    data = [(part, model(part).detach().argmax(-1)) for part in x.split(40)]
    program = trace(model, (x[:2],))
    groups = find_groups(program)
    return program, groups, {group.name: torch.arange(float(group.size)) for group in groups}, data


def scanned(store: PointStore | None = None, *, workers: int = 1) -> Scan:
    """Six groups at three sparsities."""
    return scan(*job(), sparsities=SPARSITIES, workers=workers, store=store)


class Contending:
    """A race, and what asks for more samples after it; counts how often it does."""

    racing = Racing((0.2,), error=0.2, stage=50)

    def __init__(self, given: Sequence[Any]) -> None:
        self.asks = Contenders(costs(given[0], given[1]), [Budget(macs=0.6), Budget(macs=0.8)], share=0.98)
        self.rounds = 0

    def __call__(self, curves: Curves) -> dict[tuple[str, int], int]:
        self.rounds += 1
        return self.asks(curves)


def deepened(
    store: PointStore | None = None, *, then: Callable[[Contending], Any] = lambda asks: None, **options: Any
) -> Scan:
    """A raced scan of 970 samples, deepened; `then` is told what will be asked."""
    given = job(970, gain=3.0)
    asks = Contending(given)
    then(asks)
    return scan(*given, sparsities=SPARSITIES, racing=asks.racing, deepen=asks, store=store, **options)
