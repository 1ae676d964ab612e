"""Measure points in this process, until they have all samples or a race is over."""

from collections.abc import Sequence

import numpy as np

from secateur.progress import Advance
from secateur.sensitivity.measure import Point, PointStore, Tally, measure
from secateur.sensitivity.probe import Probe
from secateur.sensitivity.racing import Racing, Side, side
from secateur.sensitivity.stages import Samples, as_it_comes, drawn, quarter_of_free_memory
from secateur.types import Floats


def run_points(
    prober: Probe,
    points: Sequence[Point],
    racing: Racing | None,
    boundaries: Sequence[float],
    store: PointStore | None,
    advance: Advance,
) -> Tally:
    """Fill in points; with `racing` each stops when it is clear of all `boundaries`."""
    if racing is None:
        return measure(prober, points, as_it_comes(prober.data), store=store, advance=advance)
    order = racing.order(len(prober.baseline.metric))
    memory = quarter_of_free_memory() if racing.memory_bytes is None else racing.memory_bytes
    stages = drawn(prober.data, order, racing.stage, memory)

    def stopped(point: Point) -> bool:
        return _is_clear(prober, point, racing, order, boundaries)

    return measure(prober, points, stages, store=store, stopped=stopped, advance=advance)


def unsettled(
    prober: Probe, points: Sequence[Point], racing: Racing | None, boundaries: Sequence[float]
) -> list[Point]:
    """Those of `points` that want more samples."""
    wanting = [point for point in points if np.isnan(point.damage).any()]
    if racing is None:
        return wanting
    order = racing.order(len(prober.baseline.metric))
    return [point for point in wanting if not _is_clear(prober, point, racing, order, boundaries)]


def _is_clear(prober: Probe, point: Point, racing: Racing, order: Samples, boundaries: Sequence[float]) -> bool:
    return all(_side(prober, point, racing, order, boundary) is not None for boundary in boundaries)


def _side(prober: Probe, point: Point, racing: Racing, order: Samples, boundary: float) -> Side | None:
    values, bounds = _drawn_values(prober, point, racing, order)
    return side(values, boundary, len(order), bounds=bounds, error=racing.error) if len(values) else None


def is_within(prober: Probe, point: Point, racing: Racing, boundary: float) -> bool:
    """Whether a point lies within a boundary, as far as its samples tell."""
    order = racing.order(len(prober.baseline.metric))
    found = _side(prober, point, racing, order, boundary)
    values, _ = _drawn_values(prober, point, racing, order)
    # Without any value it could not be measured.
    return found == "below" or (found is None and len(values) > 0 and values.mean() <= boundary)


def _drawn_values(
    prober: Probe, point: Point, racing: Racing, order: Samples
) -> tuple[Floats, tuple[float, float] | None]:
    """The damages in the order in which they were drawn, and their least and greatest possible value."""
    values = (point.damage if racing.on == "metric" else point.loss_damage)[order]
    unknown = np.isnan(values)
    values = values[: int(np.argmax(unknown))] if unknown.any() else values
    if racing.clip is not None:
        return values.clip(-racing.clip, racing.clip), (-racing.clip, racing.clip)
    bounds = prober.metric.bounds if racing.on == "metric" else None
    return values, None if bounds is None else (bounds[0] - bounds[1], bounds[1] - bounds[0])
