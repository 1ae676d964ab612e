"""Measure points in this process, until they have all samples or a race is over."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from secateur.progress import Advance
from secateur.sensitivity.measure import Board, Point, PointStore, Stopped, Tally, loss_damage, measure, metric_damage
from secateur.sensitivity.probe import Probe
from secateur.sensitivity.racing import Racing, Side, side
from secateur.sensitivity.runners import Alone, Together
from secateur.sensitivity.stages import Samples, Stage, as_it_comes, drawn, quarter_of_free_memory
from secateur.sensitivity.values import unseen
from secateur.types import Floats


def run_points(
    prober: Probe,
    points: Sequence[Point],
    racing: Racing | None,
    boundaries: Sequence[float],
    store: PointStore | None,
    advance: Advance,
) -> Tally:
    """Fill in points; with `racing` each stops when it is clear of all `boundaries`.

    Points that silence units go through the data together; each other one by itself, with a model of its own.
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
    total = measure(masked, stages(), Together(prober), board, store=store, stopped=stopped)
    for point in points:
        if not prober.is_masked(point.group):
            total += _alone(prober, point, stages, board, store, stopped)
    return total


def _alone(
    prober: Probe,
    point: Point,
    stages: Callable[[], Iterator[Stage]],
    board: Board,
    store: PointStore | None,
    stopped: Stopped,
) -> Tally:
    """Fill in a point that is measured by a model of its own, which is not made where nothing is left to measure."""
    if not unseen(point.values).any() or stopped(point):
        return measure([point], (), Together(prober), board, stopped=stopped)
    what = (
        "groups that are not exact are cut"
        if prober.after is None
        else f"points are measured after {prober.after.name}"
    )
    with prober.without(point.plan) as model:
        return measure([point], stages(), Alone(prober, model, what), board, store=store, stopped=stopped)


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
    return all(_side(prober, point, racing, order, boundary) is not None for boundary in boundaries)


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
    if racing.clip is not None:
        return values.clip(-racing.clip, racing.clip), (-racing.clip, racing.clip)
    bounds = prober.metric.bounds if is_metric else None
    return values, None if bounds is None else (bounds[0] - bounds[1], bounds[1] - bounds[0])
