"""Hand out points to workers that may be lost, and collect what they measure."""

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

from secateur.progress import Advance
from secateur.sensitivity.measure import Point, PointStore, Tally, Unmeasured
from secateur.sensitivity.probe import Probe
from secateur.sensitivity.racing import Racing
from secateur.sensitivity.run import unsettled
from secateur.sensitivity.values import by_name, like, overwrite
from secateur.sensitivity.worker import Done, Failed, Known, Measured, Message, Ready, Task

logger = logging.getLogger(__name__)

TASKS_PER_WORKER = 3


class Crew(Protocol):
    """Workers of one kind; those that are lost are replaced."""

    def give(self, worker: int, task: Task) -> None:
        """Hand a task to a worker that is ready for one."""

    def hear(self) -> tuple[int, Message]:
        """The next message, and which worker it is from; waits for it.

        Raises:
            WorkerError: there is no worker any more from which one could come.
        """


@dataclass(frozen=True, eq=False)
class _Job:
    """Points that go to a worker together, and how often they failed."""

    points: Sequence[Point]
    failures: int = 0


@dataclass(frozen=True, eq=False)
class Dispatcher:
    """Hands out points.

    A task that fails is halved until the point that fails stands alone. That is tried `retries` times more, and then
    given up; what is known of all other points is kept.

    Attributes:
        prober: of the points.
        muster: starts the workers; called when there is something to measure.
        workers: how many there are.
        retries: of a point that fails alone.
        idle: the workers that wait for a task.
        given_up: key -> a point that cannot be measured; it is not tried again.
    """

    prober: Probe
    muster: Callable[[], Crew]
    workers: int
    retries: int
    idle: set[int] = field(default_factory=set)
    given_up: dict[str, Unmeasured] = field(default_factory=dict)

    def __call__(
        self,
        points: Sequence[Point],
        racing: Racing | None,
        boundaries: Sequence[float],
        store: PointStore | None,
        advance: Advance,
    ) -> Tally:
        """Fill in points; see `run_points`. The store is written to by this process.

        Raises:
            WorkerError: all workers are lost.
        """
        stored = sum(point.seen for point in points)
        wanting = unsettled(self.prober, points, racing, boundaries)
        advance(len(self.prober.baseline.loss) * (len(points) - len(wanting)), f"{len(wanting)} points to measure")
        tried = [point for point in wanting if point.key not in self.given_up]
        waiting = deque(_Job(part) for part in _parts(tried, self.workers * TASKS_PER_WORKER))
        given: dict[int, _Job] = {}
        replayed = Tally()
        while waiting or given:
            for worker in sorted(self.idle)[: len(waiting)]:
                given[worker] = job = waiting.popleft()
                self.idle.remove(worker)
                self.crew.give(worker, Task([Known.of(point) for point in job.points], racing, boundaries))
            worker, message = self.crew.hear()
            match message:
                case Ready():
                    self.idle.add(worker)
                case Measured():
                    _fill(given[worker].points[message.position], message, store, advance)
                case Done():
                    replayed += message.tally
                    for point in given.pop(worker).points:
                        advance(len(point.values.loss) - point.seen, point.group.name)
                    self.idle.add(worker)
                case Failed():
                    if message.lost:
                        logger.warning("%s; what it was measuring is measured again", message.reason)
                    if worker in given:
                        waiting.extend(self._again(given.pop(worker), message.reason, advance))
                    (self.idle.discard if message.lost else self.idle.add)(worker)
        seen = sum(point.seen for point in points)
        given_up = sum(point.key in self.given_up for point in points)
        return Tally(
            measured=seen - stored,
            stored=stored,
            stopped=(len(points) - given_up) * len(self.prober.baseline.loss) - seen,
            replayed=replayed.replayed,
            why=replayed.why,
            walked=replayed.walked,
            unmeasured=tuple(self.given_up[point.key] for point in points if point.key in self.given_up),
        )

    @cached_property
    def crew(self) -> Crew:
        """The workers."""
        return self.muster()

    def _again(self, job: _Job, reason: str, advance: Advance) -> list[_Job]:
        """What to do instead of a job that failed."""
        if len(job.points) > 1:
            return [_Job(part) for part in _parts(job.points, 2)]
        if job.failures < self.retries:
            return [_Job(job.points, job.failures + 1)]
        (point,) = job.points
        self.given_up[point.key] = Unmeasured(point.group.name, point.width, job.failures + 1, reason)
        logger.warning("%s was given up after %d attempts: %s", point.label, job.failures + 1, reason)
        advance(len(point.values.loss) - point.seen, point.group.name)
        # Half a point would pass for one that a race has ended.
        overwrite(point.values, by_name(like(self.prober.baseline)))
        return []


def _fill(point: Point, found: Measured, store: PointStore | None, advance: Advance) -> None:
    before = point.seen
    overwrite(point.values, found.arrays)
    if store is not None:
        store.put(point.key, by_name(point.values), point.label)
    advance(point.seen - before, point.group.name)


def _parts(points: Sequence[Point], count: int) -> list[Sequence[Point]]:
    """At most `count` runs of points of about equal length; neighbours share the start of their program.

    >>> _parts("abcde", 2), _parts("", 2)
    (['abc', 'de'], [])
    """
    size = max(1, -(-len(points) // count))
    return [points[start : start + size] for start in range(0, len(points), size)]
