"""Latency: medians of interleaved timings, and no verdict where the spreads overlap."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.benchmark import Timer

from secateur.graph.trace import in_eval_mode


@dataclass(frozen=True)
class Latency:
    """Timings of one call.

    Attributes:
        median_s: median seconds.
        low_s: first quartile.
        high_s: third quartile.
        blocks: number of timed blocks.
    """

    median_s: float
    low_s: float
    high_s: float
    blocks: int

    @property
    def iqr_s(self) -> float:
        """Interquartile range in seconds."""
        return self.high_s - self.low_s


def time_models(
    models: Sequence[nn.Module],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    *,
    blocks: int = 15,
    block_s: float = 0.02,
) -> list[Latency]:
    """Time several models on the same inputs, in turn, so that a drift of the machine meets all alike.

    Args:
        models: run in eval mode without gradients, with the threads that torch has now.
        args: positional inputs.
        kwargs: inputs by keyword.
        blocks: timed blocks for each model, after one that is thrown away.
        block_s: seconds that a block lasts at least.
    """
    timers = [_timer(model, args, dict(kwargs or {})) for model in models]
    numbers = [max(1, round(block_s / max(timer.timeit(1).mean, 1e-7))) for timer in timers]
    times: list[list[float]] = [[] for _ in models]
    for _ in range(blocks):
        for taken, timer, number in zip(times, timers, numbers, strict=True):
            taken.append(timer.timeit(number).mean)
    return [_summary(taken) for taken in times]


def verdict(before: Latency, after: Latency) -> str:
    """What the timings allow one to say.

    >>> verdict(Latency(2.0, 1.9, 2.1, 9), Latency(1.0, 0.9, 1.1, 9))
    '2.00x faster'
    >>> verdict(Latency(2.0, 1.5, 2.5, 9), Latency(1.9, 1.6, 2.2, 9))
    'no verdict: the spreads overlap'
    """
    if after.high_s < before.low_s:
        return f"{before.median_s / after.median_s:.2f}x faster"
    if before.high_s < after.low_s:
        return f"{after.median_s / before.median_s:.2f}x slower"
    return "no verdict: the spreads overlap"


def _timer(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Timer:
    def call() -> None:
        with in_eval_mode(model), torch.inference_mode():
            model(*args, **kwargs)

    return Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())


def _summary(times: list[float]) -> Latency:
    low, median, high = statistics.quantiles(times, n=4, method="inclusive")
    return Latency(median, low, high, len(times))
