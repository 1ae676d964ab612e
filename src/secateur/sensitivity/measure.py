"""Measure points: data stage by stage on the outside, all points that still want samples within.

So one walk of the program over a batch serves every point (see `replay`), and a point can stop between stages.
"""

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch import Tensor
from torch.utils import _pytree as pytree

from secateur.data import Batch, to_device
from secateur.measures.evaluate import damage, device_of
from secateur.progress import Advance
from secateur.sensitivity.probe import Probe
from secateur.sensitivity.stages import Samples, Stage
from secateur.surgery.plan import Plan, plan_widths
from secateur.types import Evaluation, Floats, Group

SECONDS_BETWEEN_WRITES = 5.0


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
        damage: float64 (samples,), filled in as they are measured; NaN = not measured.
        loss_damage: likewise.
    """

    group: Group
    width: int
    plan: Plan
    key: str
    damage: Floats
    loss_damage: Floats

    @property
    def label(self) -> str:
        """For people who look into a store."""
        return f"{self.group.name} keeps {self.width} of {self.group.width}"

    def missing(self, samples: Samples) -> bool:
        """Whether some of `samples` are not measured."""
        return bool(np.isnan(self.damage[samples]).any())


Stopped = Callable[[Point], bool]


@dataclass(frozen=True)
class Unmeasured:
    """A point that workers could not measure.

    Attributes:
        group: its name.
        width: units kept in a row.
        attempts: with this point alone.
        reason: of the last one.
    """

    group: str
    width: int
    attempts: int
    reason: str

    def __str__(self) -> str:
        return f"{self.group} at width {self.width} ({self.attempts} attempts, {self.reason})"


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
    """

    measured: int = 0
    stored: int = 0
    stopped: int = 0
    replayed: int = 0
    why: str = ""
    unmeasured: tuple[Unmeasured, ...] = ()

    def __add__(self, other: "Tally") -> "Tally":
        """Both together."""
        return Tally(
            self.measured + other.measured,
            self.stored + other.stored,
            self.stopped + other.stopped,
            self.replayed + other.replayed,
            self.why or other.why,
            tuple(dict.fromkeys((*self.unmeasured, *other.unmeasured))),
        )


def make_point(prober: Probe, group: Group, width: int, context: str, store: PointStore | None) -> Point:
    """A point with the samples that the store has."""
    plan = plan_widths(prober.groups, prober.scores, {group.name: width})
    how = "" if group.exact else "|cut"
    key = hashlib.sha256(f"{context}|{group.name}|{plan.keep[group.name].tolist()}{how}".encode()).hexdigest()
    known = store.get(key) if store is not None else None
    samples = len(prober.baseline.metric)
    if known is not None and all(known[name].shape == (samples,) for name in ("damage", "loss_damage")):
        return Point(group, width, plan, key, known["damage"], known["loss_damage"])
    return Point(group, width, plan, key, np.full(samples, np.nan), np.full(samples, np.nan))


def measure(
    prober: Probe,
    points: Sequence[Point],
    stages: Iterable[Stage],
    *,
    store: PointStore | None = None,
    stopped: Stopped = lambda point: False,
    advance: Advance = lambda steps=1, note="": None,
) -> Tally:
    """Fill in the damages of `points`, stage by stage, until each has all samples or is stopped.

    Args:
        prober: of the points' groups.
        points: filled in place.
        stages: of the validation data; none is read that no point needs.
        store: points are kept here every few seconds, and at the end.
        stopped: asked after each stage whether a point has samples enough.
        advance: told of samples times points.
    """
    samples = len(prober.baseline.metric)
    runner = _Runner(prober)
    changed: dict[int, Point] = {}
    stored = sum(int((~np.isnan(p.damage)).sum()) for p in points)
    measured = 0
    alive = [p for p in points if not _is_done(p, stopped)]
    finished = len(points) - len(alive)
    advance(samples * finished, f"{finished} of {len(points)} points")
    last, passed = time.monotonic(), 0
    for stage in stages if alive else ():
        wanting = [p for p in alive if p.missing(stage.samples)]
        runner.run(wanting, stage)
        measured += len(wanting) * len(stage.samples)
        changed |= {id(p): p for p in wanting}
        left = [p for p in alive if not _is_done(p, stopped)]
        passed += len(stage.samples)
        # A point that is done early leaves the rest of its samples undone.
        steps = len(alive) * len(stage.samples) + (len(alive) - len(left)) * (samples - passed)
        advance(steps, _note(points, left, samples))
        is_due = time.monotonic() - last >= SECONDS_BETWEEN_WRITES
        if store is not None and (is_due or len(left) < len(alive)):
            due = list(changed.values()) if is_due else [p for p in changed.values() if p not in left]
            _keep(store, due, changed)
            last = time.monotonic()
        alive = left
        if not alive:
            break
    if store is not None:
        _keep(store, list(changed.values()), changed)
    seen = sum(int((~np.isnan(p.damage)).sum()) for p in points)
    return Tally(measured, stored, samples * len(points) - seen, runner.replayed, runner.why)


def _note(points: Sequence[Point], left: Sequence[Point], samples: int) -> str:
    done = [p for p in points if p not in left]
    saved = samples * len(done) - sum(int((~np.isnan(p.damage)).sum()) for p in done)
    return f"{len(done)} of {len(points)} points" + (f", {saved} samples saved" if saved else "")


def _is_done(point: Point, stopped: Stopped) -> bool:
    return not np.isnan(point.damage).any() or stopped(point)


def _keep(store: PointStore, due: Sequence[Point], changed: dict[int, Point]) -> None:
    for point in due:
        store.put(point.key, {"damage": point.damage, "loss_damage": point.loss_damage}, point.label)
        del changed[id(point)]


class _Runner:
    """Runs points on stages: by replay where it serves, else by the whole model."""

    def __init__(self, prober: Probe) -> None:
        self.prober = prober
        self.replayed = 0
        self.why = prober.why
        self._refusals: dict[Any, str] = {}

    def run(self, points: Sequence[Point], stage: Stage) -> None:
        """Fill in the samples of one stage."""
        exact = [p for p in points if p.group.exact]
        others = [p for p in points if not p.group.exact]
        start = 0
        for batch in stage.batches:
            where = stage.samples[start : start + batch.size]
            start += batch.size
            refusal = self._refusal(batch)
            if refusal:
                self.why = refusal
                self._run_whole(exact, batch, where)
            else:
                for number, after in self.prober.damages([p.plan for p in exact], batch):
                    self._fill(exact[number], after, where)
                self.replayed += len(exact) * batch.size
        for point in others:
            metric, loss = self.prober.damage_on(point.plan, stage.batches, stage.samples)
            point.damage[stage.samples], point.loss_damage[stage.samples] = metric, loss

    def _run_whole(self, points: Sequence[Point], batch: Batch, where: Samples) -> None:
        for point in points:
            metric, loss = self.prober.damage_on(point.plan, [batch], where)
            point.damage[where], point.loss_damage[where] = metric, loss

    def _fill(self, point: Point, after: Evaluation, where: Samples) -> None:
        before, sign = self.prober.baseline, self.prober.metric.sign
        point.damage[where] = damage(before.metric[where], after.metric, sign)
        point.loss_damage[where] = damage(before.loss[where], after.loss, -1)

    def _refusal(self, batch: Batch) -> str:
        """Why batches like this one cannot be replayed; tried once for all of the same shapes."""
        if self.prober.replay is None:
            return self.prober.why
        outline = tuple(
            (tuple(leaf.shape), leaf.dtype) if isinstance(leaf, Tensor) else (type(leaf), repr(leaf))
            for leaf in pytree.tree_leaves((batch.args, batch.kwargs))
        )
        if outline not in self._refusals:
            moved = to_device(batch, device_of(self.prober.model))
            self._refusals[outline] = self.prober.replay.refusal(moved)
        return self._refusals[outline]
