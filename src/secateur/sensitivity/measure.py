"""Measure points: data stage by stage on the outside, all points that still want samples within.

So one walk of the program over a batch serves every point (see `replay`), and a point can stop between stages.
"""

import hashlib
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import numpy as np

from secateur.errors import ArgumentError
from secateur.measures.metrics import Metric, paired
from secateur.progress import Advance
from secateur.sensitivity.probe import Probe
from secateur.sensitivity.runners import Runner
from secateur.sensitivity.stages import Samples, Stage
from secateur.sensitivity.values import by_name, like, unseen
from secateur.surgery.plan import Plan, plan_widths
from secateur.types import Evaluation, Floats, Group

SECONDS_BETWEEN_WRITES = 5.0
SHARE_OF_WRITING = 0.05
"""Greatest share of the time that goes into writing points that are not finished."""


class PointStore(Protocol):
    """Where measured points are kept, so that a killed scan resumes."""

    def get(self, key: str) -> Mapping[str, Floats] | None:
        """The arrays under `key`; None if there are none."""

    def put(self, key: str, arrays: Mapping[str, Floats], label: str) -> None:
        """Keep `arrays` under `key`."""


@dataclass(frozen=True, eq=False)
class Point:
    """One group at one width, and what is known of it.

    Attributes:
        group: that loses units.
        width: units kept in a row.
        plan: which ones.
        key: in a store.
        values: what the model gives on each sample without them, filled in as it is measured; NaN = not yet.
    """

    group: Group
    width: int
    plan: Plan
    key: str
    values: Evaluation

    @property
    def label(self) -> str:
        """For people who look into a store."""
        return f"{self.group.name} keeps {self.width} of {self.group.width}"

    @property
    def seen(self) -> int:
        """How many samples are measured."""
        return int((~unseen(self.values)).sum())

    def missing(self, samples: Samples) -> bool:
        """Whether some of `samples` are not measured."""
        return bool(unseen(self.values)[samples].any())


Stopped = Callable[[Point], bool]


@dataclass(frozen=True)
class Unmeasured:
    """A point that could not be measured.

    Attributes:
        group: its name.
        width: units kept in a row.
        attempts: that failed because of it; 0 = it was not tried, as others had failed for this reason.
        reason: of the last one.
        error: that was raised, if it was in this process.
    """

    group: str
    width: int
    attempts: int
    reason: str
    error: Exception | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        times = f"{self.attempts} attempt" + "s" * (self.attempts != 1)
        tried = times if self.attempts else "not tried, as others failed"
        return f"{self.group} at width {self.width} ({tried}: {self.reason})"


@dataclass(frozen=True)
class Tally:
    """What a measurement took.

    Attributes:
        measured: samples times points that were run.
        stored: that a store had.
        stopped: that points did not need, as they stopped early.
        replayed: of those measured, from the first operator that a change reaches.
        why: some were not replayed; else empty.
        unmeasured: points that were given up; they are missing in the curves.
        walked: samples for which some of the program was walked, once for all points together.
    """

    measured: int = 0
    stored: int = 0
    stopped: int = 0
    replayed: int = 0
    why: str = ""
    unmeasured: tuple[Unmeasured, ...] = ()
    walked: int = 0

    def __add__(self, other: "Tally") -> "Tally":
        """Both together."""
        return Tally(
            self.measured + other.measured,
            self.stored + other.stored,
            self.stopped + other.stopped,
            self.replayed + other.replayed,
            self.why or other.why,
            tuple(dict.fromkeys((*self.unmeasured, *other.unmeasured))),
            self.walked + other.walked,
        )


def make_point(prober: Probe, group: Group, width: int, context: str, store: PointStore | None) -> Point:
    """A point with the samples that the store has."""
    plan = plan_widths(prober.groups, prober.scores, {group.name: width})
    how = "" if prober.is_masked(group) else "|cut"
    key = hashlib.sha256(f"{context}|{group.name}|{plan.keep[group.name].tolist()}{how}".encode()).hexdigest()
    return Point(group, width, plan, key, like(prober.baseline, store.get(key) if store is not None else None))


def pair(prober: Probe, point: Point, metric: Metric) -> tuple[Floats, Floats]:
    """What the whole model gives by one of the probe's metrics, and what it gives at a point."""
    if metric is prober.metric:
        return prober.baseline.metric, point.values.metric
    return prober.baseline.others[metric.name], point.values.others[metric.name]


def metric_damage(prober: Probe, point: Point, metric: Metric) -> Floats:
    """What is lost at a point by a metric, sample by sample; NaN where it is not measured."""
    return _where_seen(point, metric.damage, *pair(prober, point, metric))


def loss_damage(prober: Probe, point: Point) -> Floats:
    """What the loss gains at a point, sample by sample; NaN where it is not measured."""
    return _where_seen(point, partial(paired, sign=-1), prober.baseline.loss, point.values.loss)


def _where_seen(point: Point, damage: Callable[[Floats, Floats], Floats], before: Floats, after: Floats) -> Floats:
    seen = ~unseen(point.values)
    found = np.full(len(seen), np.nan)
    if seen.any():
        found[seen] = damage(before[seen], after[seen])
    return found


@dataclass
class Board:
    """What is shown while points are measured.

    Attributes:
        points: how many there are.
        samples: of each.
        advance: told of samples times points.
        done: points that have what they need.
        saved: samples times points that those did not need.
    """

    points: int
    samples: int
    advance: Advance
    done: int = 0
    saved: int = 0

    def finish(self, points: Sequence[Point], passed: int) -> None:
        """These have all they need; `passed` samples of each were shown before."""
        self.done += len(points)
        self.saved += sum(self.samples - point.seen for point in points)
        self.show(len(points) * (self.samples - passed))

    def lose(self, points: Sequence[Point], passed: int) -> None:
        """These cannot be measured."""
        self.done += len(points)
        self.show(len(points) * (self.samples - passed))

    def show(self, steps: int) -> None:
        """So many samples times points more."""
        saved = f", {self.saved:,} samples saved" if self.saved else ""
        self.advance(steps, f"{self.done} of {self.points} points{saved}")


def measure(
    points: Sequence[Point],
    stages: Iterable[Stage],
    runner: Runner,
    board: Board,
    *,
    store: PointStore | None = None,
    stopped: Stopped = lambda point: False,
) -> Tally:
    """Fill in `points`, stage by stage, until each has all samples or is stopped.

    A point whose own run raises is set aside, as if nothing of it were known, and the others go on.

    Args:
        points: filled in place.
        stages: of the validation data; none is read that no point needs.
        runner: runs the model.
        board: shows what is done.
        store: points are kept here every few seconds, and at the end.
        stopped: asked after each stage whether a point has samples enough.

    Raises:
        ArgumentError: what was asked for cannot be measured, whatever the point.
    """
    changed: dict[int, Point] = {}
    stored = sum(point.seen for point in points)
    measured = 0
    alive = [p for p in points if not _is_done(p, stopped)]
    board.finish([p for p in points if p not in alive], 0)
    lost: dict[int, Unmeasured] = {}
    last, pause, passed = time.monotonic(), SECONDS_BETWEEN_WRITES, 0
    for stage in stages if alive else ():
        wanting = [p for p in alive if p.missing(stage.samples)]
        board.show((len(alive) - len(wanting)) * len(stage.samples))
        # Without a point that wants it, a stage is not walked.
        failed = runner([(p.plan, p.values) for p in wanting], stage, board.show) if wanting else {}
        lost |= {id(wanting[at]): unmeasured(wanting[at], error) for at, error in failed.items()}
        measured += (len(wanting) - len(failed)) * len(stage.samples)
        changed |= {id(p): p for p in wanting}
        left = [p for p in alive if id(p) not in lost and not _is_done(p, stopped)]
        passed += len(stage.samples)
        board.finish([p for p in alive if p not in left and id(p) not in lost], passed)
        board.lose([wanting[at] for at in failed], passed)
        now = time.monotonic()
        is_due = now - last >= pause
        if store is not None and (is_due or len(left) < len(alive)):
            due = list(changed.values()) if is_due else [p for p in changed.values() if p not in left]
            _keep(store, due, changed)
            last = time.monotonic()
            pause = max(SECONDS_BETWEEN_WRITES, (last - now) / SHARE_OF_WRITING)
        alive = left
        if not alive:
            break
    if store is not None:
        _keep(store, list(changed.values()), changed)
    for point in points:
        if id(point) in lost:
            forget(point)
    total = sum(len(p.values.loss) for p in points if id(p) not in lost)
    seen = sum(p.seen for p in points)
    return Tally(
        measured, stored, total - seen, runner.replayed, runner.why, tuple(lost.values()), walked=runner.walked
    )


def unmeasured(point: Point, error: Exception) -> Unmeasured:
    """A point that raised.

    Raises:
        ArgumentError: it is one; then it is not the point's.
    """
    if isinstance(error, ArgumentError):
        raise error
    # The frames of its traceback would keep the activations of a batch for as long as the result of the scan lives.
    error.add_note("".join(traceback.format_exception(error)))
    error.__traceback__ = error.__cause__ = error.__context__ = None
    return Unmeasured(point.group.name, point.width, 1, reason_of(error), error)


def reason_of(error: BaseException) -> str:
    """An error in one line, for people.

    >>> reason_of(ValueError("too wide"))
    'ValueError: too wide'
    """
    return f"{type(error).__name__}: {error}".strip().splitlines()[0]


def forget(point: Point) -> None:
    """Nothing is known of a point any more: half of one would pass for one that a race has ended."""
    for values in by_name(point.values).values():
        values.fill(np.nan)


def _is_done(point: Point, stopped: Stopped) -> bool:
    return not unseen(point.values).any() or stopped(point)


def _keep(store: PointStore, due: Sequence[Point], changed: dict[int, Point]) -> None:
    for point in due:
        store.put(point.key, by_name(point.values), point.label)
        del changed[id(point)]
