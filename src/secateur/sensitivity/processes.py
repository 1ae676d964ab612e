"""Measure points in several processes, each with a model and data of its own."""

import contextlib
import multiprocessing
import pickle
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from secateur.errors import ArgumentError
from secateur.graph.trace import trace
from secateur.progress import Advance
from secateur.sensitivity.measure import Point, PointStore, Tally, make_point
from secateur.sensitivity.probe import Probe, probe
from secateur.sensitivity.racing import Racing
from secateur.sensitivity.run import run_points
from secateur.types import Floats

TASKS_PER_WORKER = 3

Known = tuple[str, int, Floats, Floats]
"""Group, width, and what is known of its damage and its loss damage."""

_prober: list[Probe] = []
"""That of a worker; empty in the process that starts workers."""


@dataclass(frozen=True, eq=False)
class Workers:
    """Processes that wait for points.

    Attributes:
        pool: of the processes.
        count: how many.
    """

    pool: ProcessPoolExecutor
    count: int

    @staticmethod
    @contextlib.contextmanager
    def start(prober: Probe, count: int) -> Iterator["Workers"]:
        """Start processes that measure what `prober` does; they end with the context.

        Raises:
            ArgumentError: the probe has no program, or holds something that cannot be sent.
        """
        if prober.program is None:
            raise ArgumentError("workers trace the model for themselves, which needs its program; pass program=")
        program = prober.program
        parts = {
            "the model": program.model,
            "the example inputs": (program.args, dict(program.kwargs)),
            "the groups": prober.groups,
            "the scores": dict(prober.scores),
            "the validation data": prober.data,
            "the metric": prober.metric,
            "the loss": prober.loss,
            "the baseline": prober.baseline,
        }
        sent = tuple(_pickled(name, part) for name, part in parts.items())
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(count, mp_context=context, initializer=_set_up, initargs=sent) as pool:
            yield Workers(pool, count)

    def run(
        self,
        racing: Racing | None,
        store: PointStore | None,
        advance: Advance,
        points: Sequence[Point],
        boundaries: Sequence[float],
    ) -> Tally:
        """Fill in points; see `run_points`. The store is written to by this process, as parts of the points arrive.

        Raises:
            ArgumentError: a worker died.
        """
        total = Tally()
        tasks = {
            self.pool.submit(_measure, [_known(point) for point in own], racing, boundaries): own
            for own in _parts(points, self.count * TASKS_PER_WORKER)
        }
        try:
            for task in as_completed(tasks):
                arrays, tally = task.result()
                total += tally
                for point, (damage, loss_damage) in zip(tasks[task], arrays, strict=True):
                    is_new = int(np.isnan(point.damage).sum()) > int(np.isnan(damage).sum())
                    point.damage[:], point.loss_damage[:] = damage, loss_damage
                    if store is not None and is_new:
                        store.put(point.key, {"damage": damage, "loss_damage": loss_damage}, point.label)
                    advance(len(damage), point.group.name)
        except BrokenProcessPool as error:
            raise ArgumentError(
                "a worker process died (out of memory, or a script without `if __name__ == '__main__':`); "
                "points in the store are kept: try fewer workers"
            ) from error
        finally:
            for task in tasks:
                task.cancel()
        return total


def _pickled(name: str, part: Any) -> bytes:
    try:
        return pickle.dumps(part)
    except Exception as error:
        raise ArgumentError(
            f"{name} cannot be sent to worker processes ({error}); use functions and classes of a module, "
            "not lambdas or what is defined within a function, or workers=1"
        ) from error


def _set_up(*sent: bytes) -> None:
    torch.set_num_threads(1)
    model, (args, kwargs), groups, scores, data, metric, loss, baseline = map(pickle.loads, sent)
    program = trace(model, args, kwargs)
    _prober.append(probe(model, groups, scores, data, metric=metric, loss=loss, baseline=baseline, program=program))


def _measure(
    known: Sequence[Known], racing: Racing | None, boundaries: Sequence[float]
) -> tuple[list[tuple[Floats, Floats]], Tally]:
    (prober,) = _prober
    groups = {group.name: group for group in prober.groups}
    points = [
        replace(make_point(prober, groups[name], width, "", None), damage=damage.copy(), loss_damage=loss.copy())
        for name, width, damage, loss in known
    ]
    tally = run_points(prober, points, racing, boundaries, None, lambda steps=1, note="": None)
    return [(point.damage, point.loss_damage) for point in points], tally


def _known(point: Point) -> Known:
    return point.group.name, point.width, point.damage, point.loss_damage


def _parts(points: Sequence[Point], count: int) -> list[list[Point]]:
    """At most `count` runs of points of about equal length; neighbours share the start of their program."""
    size = max(1, -(-len(points) // count))
    return [list(points[start : start + size]) for start in range(0, len(points), size)]
