"""Go on after a race, round by round, with the points that are worth more samples."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from secateur.errors import ArgumentError
from secateur.progress import Advance, Progress
from secateur.sensitivity.curves import Levels, metric_curves
from secateur.sensitivity.executor import Measure
from secateur.sensitivity.failures import Patient
from secateur.sensitivity.measure import Point, PointStore, Tally
from secateur.sensitivity.probe import Probe
from secateur.sensitivity.racing import Racing
from secateur.types import Curves

Place = tuple[str, int]
"""Group name and width of a point."""

Deepen = Callable[[Curves], Mapping[Place, int]]
"""Curves so far -> samples that points should have; none where all have enough."""

SECONDS_BETWEEN_COUNTS = 0.2


def deepened(
    prober: Probe,
    levels: Levels,
    tally: Tally,
    deepen: Deepen,
    racing: Racing,
    measure: Measure,
    *,
    store: PointStore | None,
    progress: Progress,
) -> Tally:
    """Measure what `deepen` asks for until it asks for no more; each round, what has the fewest samples.

    Args:
        prober: of the points.
        levels: the points, after the race; filled in further.
        tally: of the race.
        deepen: asked before each round.
        racing: by which the points were raced.
        measure: that of the executor.
        store: points are kept here.
        progress: shows a stage for each round.

    Returns:
        The tally of race and rounds together.

    Raises:
        ArgumentError: a point is asked for that there is not.
    """
    points = {(name, point.width): point for name, own in levels.items() for point in own}
    number = 0
    while wanting := _wanting(points, deepen(metric_curves(prober, levels, prober.metric))):
        number += 1
        least = min(wanting.values())
        chosen = [points[place] for place in wanting if points[place].seen < least]
        goal = sum(_drawn_until(point, least, racing.stage) - point.seen for point in chosen)
        with progress.stage("sensitivity, deepened", goal) as advance:
            count = _Count(chosen, sum(point.seen for point in chosen), goal, f"round {number}", advance)
            rule = replace(racing, least=least)
            run = Patient(list(points.values()), partial(_run, measure, rule, store, count))
            tally = _added(tally, run(chosen, racing.boundaries), points.values())
            count.show()
    return tally


def _wanting(points: Mapping[Place, Point], asked: Mapping[Place, int]) -> dict[Place, int]:
    """What is asked for beyond what is known, all samples at most; not of points that could not be measured."""
    if not isinstance(asked, Mapping):
        raise ArgumentError(f"deepen= gave {asked!r}; needed {{(group name, width): samples}}, empty when all is known")
    if unknown := sorted(asked.keys() - points.keys()):
        raise ArgumentError(f"deepen= asks for {unknown[0]}, a group and width that are not among the points")
    most = {place: min(samples, len(points[place].values.loss)) for place, samples in asked.items()}
    return {place: samples for place, samples in most.items() if 0 < points[place].seen < samples}


def _drawn_until(point: Point, least: int, stage: int) -> int:
    """Samples that a point has when it stops: whole stages."""
    return min(-(-least // stage) * stage, len(point.values.loss))


def _run(
    measure: Measure,
    racing: Racing,
    store: PointStore | None,
    advance: Advance,
    points: Sequence[Point],
    boundaries: Sequence[float],
) -> Tally:
    return measure(points, racing, boundaries, store, advance)


def _added(tally: Tally, more: Tally, points: Iterable[Point]) -> Tally:
    """Of the race and of a round, in which what was known before is nothing that a store had."""
    return replace(
        tally + more,
        stored=tally.stored,
        stopped=sum(len(point.values.loss) - point.seen for point in points if point.seen),
    )


@dataclass
class _Count:
    """Shows how many samples points have got, as a race tells of those that they will not need too.

    Attributes:
        points: that are measured.
        before: samples that they had.
        goal: how many more they will have.
        name: of the round.
        advance: told of them.
        shown: how many it was told of.
        last: when they were counted.
    """

    points: Sequence[Point]
    before: int
    goal: int
    name: str
    advance: Advance
    shown: int = 0
    last: float = 0.0

    def __call__(self, steps: int = 1, note: str = "") -> None:
        """Something was measured; counting takes time too."""
        if time.monotonic() - self.last >= SECONDS_BETWEEN_COUNTS:
            self.show()

    def show(self) -> None:
        """Show what there is now."""
        found = sum(point.seen for point in self.points) - self.before
        steps = max(0, min(found, self.goal) - self.shown)
        self.advance(steps, f"{self.name}, {len(self.points)} points")
        self.shown += steps
        self.last = time.monotonic()
