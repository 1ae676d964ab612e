"""Latency: medians of interleaved timings, and no verdict where the spreads overlap."""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.benchmark import Timer

from secateur.graph.trace import in_eval_mode
from secateur.measures.operators import Call
from secateur.progress import NoProgress, Progress

AT_ONCE_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Latency:
    """Timings of one call.

    Attributes:
        median_s: median seconds.
        low_s: first quartile.
        high_s: third quartile.
        blocks: number of timed blocks.
        least_s: seconds in the fastest block.
    """

    median_s: float
    low_s: float
    high_s: float
    blocks: int
    least_s: float = 0.0

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
    return [
        _summary(taken) for taken in _in_turn([_timer(m, args, dict(kwargs or {})) for m in models], blocks, block_s)
    ]


def time_calls(
    calls: Sequence[Call], *, blocks: int = 5, block_s: float = 1e-3, progress: Progress | None = None
) -> list[float | None]:
    """Seconds of single operators, timed in turn: the least of their blocks; None for one that does not run.

    The least, since what other programs take of the machine only adds, and to a short block all or nothing.

    Args:
        calls: not more of them at once than their operands have room for.
        blocks: timed blocks for each call, after one that is thrown away.
        block_s: seconds that a block lasts at least.
        progress: shown while running.
    """
    found: list[float | None] = []
    with (progress or NoProgress()).stage("timing operators", len(calls)) as advance:
        for part in _parts(calls):
            timers = [_prepared(call) for call in part]
            ready = [timer for timer in timers if timer is not None]
            least = iter([min(taken) for taken in _in_turn(ready, blocks, block_s)])
            found += [None if timer is None else next(least) for timer in timers]
            advance(len(part))
    return found


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


def _in_turn(timers: Sequence[Timer], blocks: int, block_s: float) -> list[list[float]]:
    """Seconds of a run, block by block, of each timer; a drift of the machine meets all alike."""
    numbers = [max(1, round(block_s / max(timer.timeit(1).mean, 1e-7))) for timer in timers]
    times: list[list[float]] = [[] for _ in timers]
    for _ in range(blocks):
        for taken, timer, number in zip(times, timers, numbers, strict=True):
            taken.append(timer.timeit(number).mean)
    return times


def _parts(calls: Sequence[Call]) -> Iterator[list[Call]]:
    """The calls, so many at a time as have room together."""
    part: list[Call] = []
    for call in calls:
        if part and sum(other.bytes for other in part) + call.bytes > AT_ONCE_BYTES:
            yield part
            part = []
        part.append(call)
    if part:
        yield part


def _prepared(call: Call) -> Timer | None:
    """The call, ready to be timed; None if it does not run."""
    try:
        with torch.inference_mode():
            run = call.prepared()
            run()
    except Exception:
        return None

    def timed() -> None:
        with torch.inference_mode():
            run()

    return _timed(timed)


def _timed(call: Callable[[], None]) -> Timer:
    return Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())


def _timer(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Timer:
    def call() -> None:
        with in_eval_mode(model), torch.inference_mode():
            model(*args, **kwargs)

    return _timed(call)


def _summary(times: list[float]) -> Latency:
    low, median, high = statistics.quantiles(times, n=4, method="inclusive")
    return Latency(median, low, high, len(times), min(times))
