"""Measure points in this process, until they have all samples or a race is over."""

from collections.abc import Iterator, Sequence
from contextlib import closing

import numpy as np

from secateur.progress import Advance
from secateur.sensitivity.activation_cache import ActivationCache
from secateur.sensitivity.after import name_of
from secateur.sensitivity.failures import across_groups, shared_reason, untried
from secateur.sensitivity.measure import Board, Point, PointStore, Tally, loss_damage, measure, metric_damage
from secateur.sensitivity.memory import quarter_of_free_memory
from secateur.sensitivity.probe import Probe
from secateur.sensitivity.racing import Racing, Side, side
from secateur.sensitivity.runners import Alone, Together
from secateur.sensitivity.stages import Samples, Stage, as_it_comes, drawn
from secateur.sensitivity.values import unseen
from secateur.types import Floats


def run_points(
    prober: Probe,
    points: Sequence[Point],
    racing: Racing | None,
    boundaries: Sequence[float],
    store: PointStore | None,
    advance: Advance,
    *,
    cache: ActivationCache | None = None,
) -> Tally:
    """Fill in points; with `racing` each stops when it is clear of all `boundaries`.

    Points that silence units go through the data together, from the activations that `cache` has; each other one by
    itself, with a model of its own. Those that raise are named in the tally, and nothing is known of them.
    """
    samples = len(prober.baseline.loss)
    order = racing.order(samples) if racing is not None else np.arange(samples)
    board = Board(len(points), samples, advance)

    def stages() -> Iterator[Stage]:
        if racing is None:
            return as_it_comes(prober.data)
        memory = quarter_of_free_memory() if racing.memory_bytes is None else racing.memory_bytes
        return drawn(prober.data, order, racing.stage, memory)

    def stopped(point: Point) -> bool:
        return racing is not None and _is_clear(prober, point, racing, order, boundaries)

    masked = [point for point in points if prober.is_masked(point.group)]
    total = measure(
        masked, stages(), Together(prober, cache or ActivationCache(prober, 0)), board, store=store, stopped=stopped
    )
    after = name_of(prober.after)
    why = f"points are measured after {after}" if after else "groups that are not exact are cut"
    # Each may take long, so that all fail alike should show early.
    for point in across_groups([point for point in points if not prober.is_masked(point.group)]):
        reason = None if total.measured + total.stored else shared_reason(total.unmeasured, points)
        if reason is not None:
            board.lose([point], 0)
            total += Tally(unmeasured=(untried(point, reason),))
            continue
        with closing(Alone(prober, why)) as runner:
            total += measure([point], stages(), runner, board, store=store, stopped=stopped)
    return total


def unsettled(
    prober: Probe, points: Sequence[Point], racing: Racing | None, boundaries: Sequence[float]
) -> list[Point]:
    """Those of `points` that want more samples."""
    wanting = [point for point in points if unseen(point.values).any()]
    if racing is None:
        return wanting
    order = racing.order(len(prober.baseline.loss))
    return [point for point in wanting if not _is_clear(prober, point, racing, order, boundaries)]


def _is_clear(prober: Probe, point: Point, racing: Racing, order: Samples, boundaries: Sequence[float]) -> bool:
    return point.seen >= racing.least and all(
        _side(prober, point, racing, order, boundary) is not None for boundary in boundaries
    )


def _side(prober: Probe, point: Point, racing: Racing, order: Samples, boundary: float) -> Side | None:
    values, bounds = _drawn_values(prober, point, racing, order)
    if not len(values):
        return None
    return side(
        values, boundary, len(order), bounds=bounds, error=racing.error, indifference=racing.indifference
    )  # fmt: skip


def is_within(prober: Probe, point: Point, racing: Racing, boundary: float) -> bool:
    """Whether a point lies within a boundary, as far as its samples tell."""
    order = racing.order(len(prober.baseline.loss))
    found = _side(prober, point, racing, order, boundary)
    values, _ = _drawn_values(prober, point, racing, order)
    # Without any value it could not be measured.
    return found == "below" or (found is None and len(values) > 0 and values.mean() <= boundary)


def _drawn_values(
    prober: Probe, point: Point, racing: Racing, order: Samples
) -> tuple[Floats, tuple[float, float] | None]:
    """The damages in the order in which they were drawn, and their least and greatest possible value."""
    is_metric = racing.on == "metric"
    values = (metric_damage(prober, point, prober.metric) if is_metric else loss_damage(prober, point))[order]
    unknown = np.isnan(values)
    values = values[: int(np.argmax(unknown))] if unknown.any() else values
    bounds = _bounds(prober, racing)
    return values if racing.clip is None or bounds is None else values.clip(*bounds), bounds


def is_bounded(prober: Probe, racing: Racing) -> bool:
    """Whether the damages that race are bounded, so that the error rate of the race is exact."""
    return _bounds(prober, racing) is not None


def _bounds(prober: Probe, racing: Racing) -> tuple[float, float] | None:
    """Least and greatest possible damage."""
    if racing.clip is not None:
        return -racing.clip, racing.clip
    bounds = prober.metric.bounds if racing.on == "metric" else None
    return None if bounds is None else (bounds[0] - bounds[1], bounds[1] - bounds[0])
