"""What a worker does: open what it was sent, then measure the points of one task after the other."""

import pickle
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from secateur.errors import ArgumentError
from secateur.graph.trace import trace
from secateur.sensitivity.activation_cache import ActivationCache
from secateur.sensitivity.measure import Point, Tally, make_point
from secateur.sensitivity.parcel import Parcel, pack
from secateur.sensitivity.probe import Probe, probe
from secateur.sensitivity.racing import Racing
from secateur.sensitivity.run import run_points
from secateur.sensitivity.silence import BEAT_S
from secateur.sensitivity.values import by_name, overwrite
from secateur.types import Floats


@dataclass(frozen=True, eq=False)
class Known:
    """A point, as it is sent to a worker.

    Attributes:
        group: its name.
        width: units kept in a row.
        arrays: what is measured already, by name; None = nothing.
    """

    group: str
    width: int
    arrays: Mapping[str, Floats] | None

    @staticmethod
    def of(point: Point) -> "Known":
        """What a worker needs to know of a point."""
        return Known(point.group.name, point.width, by_name(point.values) if point.seen else None)


@dataclass(frozen=True, eq=False)
class Task:
    """Points to measure in one go; neighbours share the start of their program."""

    points: Sequence[Known]
    racing: Racing | None
    boundaries: Sequence[float]


@dataclass(frozen=True)
class Ready:
    """A worker waits for a task."""


@dataclass(frozen=True)
class Alive:
    """A worker measures; sent while there is nothing else to tell."""


@dataclass(frozen=True, eq=False)
class Measured:
    """What is known by now of a point; sent every few seconds, and when it has samples enough.

    Attributes:
        position: of the point in its task.
        arrays: its values by name; NaN where nothing is measured yet.
    """

    position: int
    arrays: Mapping[str, Floats]


@dataclass(frozen=True)
class Done:
    """All points of the task have been sent, but for those that are named in the tally as not measured."""

    tally: Tally


@dataclass(frozen=True)
class Failed:
    """The task ended before all points were measured.

    Attributes:
        reason: in words.
        lost: the worker is gone too.
    """

    reason: str
    lost: bool = False


Message = Ready | Alive | Measured | Done | Failed


def packed_parts(prober: Probe, pickler: type[pickle.Pickler] = pickle.Pickler) -> Parcel:
    """All that a worker needs to measure what `prober` does.

    Raises:
        ArgumentError: the probe has no program, or holds something that cannot be sent.
    """
    parts = _parts_of(prober)
    try:
        return pack(parts, pickler)
    except Exception as error:
        raise ArgumentError(
            f"{_unsendable(parts, pickler)} cannot be sent to workers ({error}); use functions and classes of a "
            "module, not lambdas or what is defined within a function, or workers=1"
        ) from error


def _unsendable(parts: Mapping[str, Any], pickler: type[pickle.Pickler]) -> str:
    for name, part in parts.items():
        try:
            pack(part, pickler)
        except Exception:
            return name
    return "the probe"


def _parts_of(prober: Probe) -> dict[str, Any]:
    if prober.program is None:
        raise ArgumentError("workers trace the model for themselves, which needs its program; pass program=")
    return {
        "the model": prober.program.model,
        "the example inputs": (prober.program.args, dict(prober.program.kwargs)),
        "the groups": prober.groups,
        "the scores": dict(prober.scores),
        "the validation data": prober.data,
        "the metric": prober.metric,
        "the loss": prober.loss,
        "the baseline": prober.baseline,
        "the other metrics": prober.others,
        "what is done after a cut": prober.after,
    }


def probe_of(parts: Mapping[str, Any]) -> Probe:
    """The probe of which these are the parts; the model is traced anew."""
    model, (args, kwargs), groups, scores, data, metric, loss, baseline, others, after = parts.values()
    program = trace(model, args, kwargs)
    return probe(
        model, groups, scores, data, metric=metric, loss=loss, baseline=baseline, program=program, others=others,
        after=after,
    )  # fmt: skip


def work(prober: Probe, cache: ActivationCache, task: Task, send: Callable[[Alive | Measured], None]) -> Tally:
    """Measure the points of a task, sending what is known of each as it becomes known."""
    groups = {group.name: group for group in prober.groups}
    points = [_point(prober, groups, known, position) for position, known in enumerate(task.points)]
    tally = run_points(prober, points, task.racing, task.boundaries, _Outbox(send), _Pulse(send), cache=cache)
    # Errors are not always such as can be sent.
    return replace(tally, unmeasured=tuple(replace(one, error=None) for one in tally.unmeasured))


def _point(prober: Probe, groups: Mapping[str, Any], known: Known, position: int) -> Point:
    point = replace(make_point(prober, groups[known.group], known.width, "", None), key=str(position))
    if known.arrays is not None:
        overwrite(point.values, known.arrays)
    return point


@dataclass
class _Pulse:
    """Tells now and then that the measurement goes on; called by it, so that one that hangs is silent."""

    send: Callable[[Alive], None]
    last: float = field(default_factory=time.monotonic)

    def __call__(self, steps: int = 1, note: str = "") -> None:
        now = time.monotonic()
        if now - self.last >= BEAT_S:
            self.send(Alive())
            self.last = now


@dataclass(frozen=True)
class _Outbox:
    """A store that sends what is put into it."""

    send: Callable[[Measured], None]

    def get(self, key: str) -> Mapping[str, Floats] | None:
        return None

    def put(self, key: str, arrays: Mapping[str, Floats], label: str) -> None:
        self.send(Measured(int(key), {name: array.copy() for name, array in arrays.items()}))
