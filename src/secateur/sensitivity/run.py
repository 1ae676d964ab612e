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
        return all(_side(prober, point, racing, order, boundary) is not None for boundary in boundaries)

    return measure(prober, points, stages, store=store, stopped=stopped, advance=advance)


def _side(prober: Probe, point: Point, racing: Racing, order: Samples, boundary: float) -> Side | None:
    values, bounds = _drawn_values(prober, point, racing, order)
    return side(values, boundary, len(order), bounds=bounds, error=racing.error) if len(values) else None


def is_within(prober: Probe, point: Point, racing: Racing, boundary: float) -> bool:
    """Whether a point lies within a boundary, as far as its samples tell."""
    order = racing.order(len(prober.baseline.metric))
    found = _side(prober, point, racing, order, boundary)
    return found == "below" or (found is None and _drawn_values(prober, point, racing, order)[0].mean() <= boundary)


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
