"""Hand out points to workers that may be lost or hang, and collect what they measure."""

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

from secateur.errors import WorkerError
from secateur.progress import Advance
from secateur.sensitivity.failures import shared_reason, untried
from secateur.sensitivity.measure import Board, Point, PointStore, Tally, Unmeasured, forget
from secateur.sensitivity.probe import Probe
from secateur.sensitivity.racing import Racing
from secateur.sensitivity.run import unsettled
from secateur.sensitivity.silence import TICK_S, Silences
from secateur.sensitivity.values import by_name, overwrite
from secateur.sensitivity.worker import Alive, Done, Failed, Known, Measured, Message, Ready, Task

logger = logging.getLogger(__name__)

TASKS_PER_WORKER = 3


class Crew(Protocol):
    """Workers of one kind; those that are lost are replaced."""

    def give(self, worker: int, task: Task) -> None:
        """Hand a task to a worker that is ready for one."""

    def hear(self, within_s: float) -> tuple[int, Message] | None:
        """The next message, and which worker it is from; None when none came in time.

        Raises:
            WorkerError: there is no worker any more from which one could come.
        """

    def end(self, worker: int) -> None:
        """End a worker that hangs, and start another in its place."""

    def absence(self) -> str:
        """What may keep all workers from getting ready, in words."""


@dataclass(frozen=True)
class Terms:
    """What workers are allowed.

    Attributes:
        workers: how many there are.
        retries: of a point that fails.
        silence_limit_s: see `Silences`.
        patience_s: how long to wait for a first worker when none is at work.
    """

    workers: int
    retries: int
    silence_limit_s: float | None
    patience_s: float


@dataclass(frozen=True, eq=False)
class _Job:
    """Points that go to a worker together, and how often they failed."""

    points: Sequence[Point]
    failures: int = 0


@dataclass(eq=False)
class _Desk:
    """Where points wait for workers and come back, while `points` are filled in.

    Attributes:
        points: all of them.
        known: samples of them.
        retries: of a point that fails.
        store: where to keep what comes back.
        board: shows it.
        waiting: not handed out.
        given: worker -> what it has.
        failed: every failure of a single point, also where it is tried again.
        given_up: key -> a point that cannot be measured.
    """

    points: Sequence[Point]
    known: int
    retries: int
    store: PointStore | None
    board: Board
    waiting: deque[_Job]
    given: dict[int, _Job] = field(default_factory=dict)
    failed: list[Unmeasured] = field(default_factory=list)
    given_up: dict[str, Unmeasured] = field(default_factory=dict)

    def take(self, worker: int, found: Measured) -> None:
        """What is known by now of a point."""
        point = self.given[worker].points[found.position]
        before = point.seen
        fill_in(point, found, self.store)
        self.known += point.seen - before
        self.board.show(point.seen - before)

    def close(self, worker: int, tally: Tally) -> None:
        """A worker is done with its points, but for those that it could not measure."""
        job = self.given.pop(worker)
        reasons = {(one.group, one.width): one for one in tally.unmeasured}
        for point in job.points:
            one = reasons.get((point.group.name, point.width))
            if one is None:
                self.board.finish([point], point.seen)
            elif one.attempts:
                self._failed(_Job([point], job.failures if len(job.points) == 1 else 0), one.reason)
            else:
                self.waiting.append(_Job([point]))

    def reclaim(self, worker: int, reason: str) -> None:
        """A worker failed; what it had is halved until the point that fails stands alone."""
        if worker not in self.given:
            return
        job = self.given.pop(worker)
        if len(job.points) > 1:
            self.waiting.extend(_Job(part) for part in parts_of(job.points, 2))
        else:
            self._failed(job, reason)

    def doubt(self) -> str | None:
        """Why all points are likely to fail, if nothing is measured and those that were tried failed alike."""
        return None if self.known else shared_reason(self.failed, self.points)

    def give_up_rest(self, reason: str) -> None:
        """Try no more."""
        for job in self.waiting:
            for point in job.points:
                self._give_up(point, untried(point, reason))
        self.waiting.clear()

    def _failed(self, job: _Job, reason: str) -> None:
        (point,) = job.points
        one = Unmeasured(point.group.name, point.width, job.failures + 1, reason)
        self.failed.append(one)
        if job.failures < self.retries:
            self.waiting.append(_Job(job.points, job.failures + 1))
        else:
            self._give_up(point, one)

    def _give_up(self, point: Point, why: Unmeasured) -> None:
        self.given_up[point.key] = why
        self.board.lose([point], point.seen)
        forget(point)


@dataclass(frozen=True, eq=False)
class Dispatcher:
    """Hands out points.

    A point that raises is tried `retries` times more. A task whose worker is lost or says nothing for too long is
    halved until the point that is to blame stands alone, which is tried as often. Then it is given up; what is known of
    all other points is kept.

    Attributes:
        prober: of the points.
        muster: starts the workers; called when there is something to measure.
        terms: what they are allowed.
        idle: the workers that wait for a task.
        silences: of those that have one.
    """

    prober: Probe
    muster: Callable[[], Crew]
    terms: Terms
    idle: set[int] = field(default_factory=set)

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
            WorkerError: all workers are lost, or none gets ready.
        """
        stored = sum(point.seen for point in points)
        board = Board(len(points), len(self.prober.baseline.loss), advance)
        wanting = unsettled(self.prober, points, racing, boundaries)
        board.finish([point for point in points if point not in wanting], 0)
        board.show(sum(point.seen for point in wanting))
        jobs = deque(_Job(part) for part in parts_of(wanting, self.terms.workers * TASKS_PER_WORKER))
        desk = _Desk(points, stored, self.terms.retries, store, board, jobs)
        replayed = Tally()
        while desk.waiting or desk.given:
            doubt = desk.doubt()
            if doubt is None:
                self._hand_out(desk, racing, boundaries)
            elif not desk.given:
                desk.give_up_rest(doubt)
                break
            for worker, message in self._heard(desk.given):
                replayed += self._act(desk, worker, message)
        seen = sum(point.seen for point in points)
        return Tally(
            measured=desk.known - stored,
            stored=stored,
            stopped=(len(points) - len(desk.given_up)) * len(self.prober.baseline.loss) - seen,
            replayed=replayed.replayed,
            why=replayed.why,
            walked=replayed.walked,
            unmeasured=tuple(desk.given_up[point.key] for point in points if point.key in desk.given_up),
        )

    @cached_property
    def crew(self) -> Crew:
        """The workers."""
        return self.muster()

    @cached_property
    def silences(self) -> Silences:
        """How long each worker at work was not heard."""
        return Silences(self.terms.silence_limit_s)

    def _hand_out(self, desk: _Desk, racing: Racing | None, boundaries: Sequence[float]) -> None:
        for worker in sorted(self.idle)[: len(desk.waiting)]:
            desk.given[worker] = job = desk.waiting.popleft()
            self.idle.remove(worker)
            self.crew.give(worker, Task([Known.of(point) for point in job.points], racing, boundaries))

    def _heard(self, given: Mapping[int, _Job]) -> list[tuple[int, Message]]:
        """The next message, and the end of workers that hang."""
        started = time.monotonic()
        heard = self.crew.hear(TICK_S if given else self.terms.patience_s)
        self.silences.listened(time.monotonic() - started, given)
        if heard is None and not given:
            raise WorkerError(
                f"no worker was ready within patience_s={self.terms.patience_s:g}: {self.crew.absence()}; points in "
                "the store are kept"
            )
        found = [] if heard is None else [heard]
        for worker, _ in found:
            self.silences.heard(worker)
        allowed_s = self.silences.allowed_s
        for worker in self.silences.hung():
            self.crew.end(worker)
            found.append((worker, Failed(f"a worker said nothing for {allowed_s:g} s (silence_limit_s)", lost=True)))
        return found

    def _act(self, desk: _Desk, worker: int, message: Message) -> Tally:
        """Do what a message asks for; gives what it says of replay."""
        match message:
            case Alive():
                pass
            case Ready():
                self.idle.add(worker)
            case Measured():
                desk.take(worker, message)
            case Done():
                desk.close(worker, message.tally)
                self.idle.add(worker)
                return message.tally
            case Failed():
                if message.lost:
                    logger.warning("%s; what it was measuring is measured again", message.reason)
                desk.reclaim(worker, message.reason)
                (self.idle.discard if message.lost else self.idle.add)(worker)
        return Tally()


def fill_in(point: Point, found: Measured, store: PointStore | None) -> None:
    """Take what is known of a point, and keep it."""
    overwrite(point.values, found.arrays)
    if store is not None:
        store.put(point.key, by_name(point.values), point.label)


def parts_of(points: Sequence[Point], count: int) -> list[Sequence[Point]]:
    """At most `count` runs of points of about equal length; neighbours share the start of their program.

    >>> parts_of("abcde", 2), parts_of("", 2)
    (['abc', 'de'], [])
    """
    size = max(1, -(-len(points) // count))
    return [points[start : start + size] for start in range(0, len(points), size)]
