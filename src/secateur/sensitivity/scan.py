"""Curves: damage against sparsity for every group, measured on validation data."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from secateur.data import BatchFn, as_batches
from secateur.describe import content_hash, describe, without_addresses
from secateur.errors import ArgumentError, WorkerError
from secateur.graph.trace import Program, named_state
from secateur.measures.evaluate import check_decomposable, evaluate
from secateur.measures.metrics import resolve_loss, resolve_metric
from secateur.progress import NoProgress, Progress
from secateur.sensitivity.bisection import bisect as halve
from secateur.sensitivity.executor import Executor, SerialExecutor
from secateur.sensitivity.measure import Point, PointStore, Tally, make_point
from secateur.sensitivity.probe import Probe, probe
from secateur.sensitivity.processes import ProcessExecutor
from secateur.sensitivity.racing import Racing
from secateur.sensitivity.result import Scan
from secateur.sensitivity.run import is_within
from secateur.surgery.plan import Scores, kept_width
from secateur.types import Curve, Group

Run = Callable[[Sequence[Point], Sequence[float]], Tally]

SPARSITIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def scan(  # noqa: PLR0913 - one argument for each thing that a user may decide
    program: Program,
    groups: Sequence[Group],
    scores: Scores,
    validation: Any,
    *,
    metric: Any = "accuracy",
    loss: Any = "cross_entropy",
    higher_is_better: bool | None = None,
    sparsities: Sequence[float] = SPARSITIES,
    batch_fn: BatchFn | None = None,
    racing: Racing | None = None,
    workers: int = 1,
    executor: Executor | None = None,
    store: PointStore | None = None,
    progress: Progress | None = None,
) -> Scan:
    """Measure every group alone at every sparsity, paired with the whole model sample by sample.

    Units are silenced, which is what cutting them does. Where a group is not exact, it is cut for each point.
    Only what comes after a group's first consumer is run for it; see `replay`.

    Args:
        program: from `trace`; its model is not changed.
        groups: what to measure.
        scores: group name -> scores; the lowest-scored units go first.
        validation: any source of batches.
        metric: see `resolve_metric`.
        loss: see `resolve_loss`.
        higher_is_better: direction of a metric that is a function.
        sparsities: fractions of units removed, in (0, 1); a branch, which has one unit, is measured without it.
        batch_fn: takes apart batches of an unusual shape.
        racing: points stop early, once they are clear of its boundaries; None: each point gets all samples.
            With its `bisect`, curves have the levels that were measured on the way.
        workers: more than one measure in so many processes; short for `executor=ProcessExecutor(workers)`.
        executor: where points are measured: `ProcessExecutor` or `RayExecutor`; None = in this process.
        store: measured points are looked up and kept here.
        progress: shown while running.

    Returns:
        Curves by group; the first level of each is the whole group, with no damage. It prints as a table.

    Raises:
        ArgumentError: a sparsity outside (0, 1), or something that cannot be sent to other processes.
        WorkerError: all workers were lost. Points that only some workers were lost over, again and again, are left out
            of the curves and named in the table.
        NumericalError: metric or loss of the whole model is not finite.
    """
    data = as_batches(validation, "validation", batch_fn)
    found_metric, found_loss = resolve_metric(metric, higher_is_better), resolve_loss(loss)
    baseline = evaluate(program.model, data, metric=found_metric, loss=found_loss)
    check_decomposable(program.model, data, metric=found_metric, found=baseline)
    prober = probe(
        program.model, groups, scores, data, metric=found_metric, loss=found_loss, baseline=baseline, program=program
    )
    return measure_curves(
        prober,
        sparsities=sparsities,
        racing=racing,
        workers=workers,
        executor=executor,
        store=store,
        progress=progress,
    )


def measure_curves(
    prober: Probe,
    *,
    sparsities: Sequence[float] = SPARSITIES,
    racing: Racing | None = None,
    workers: int = 1,
    executor: Executor | None = None,
    store: PointStore | None = None,
    progress: Progress | None = None,
) -> Scan:
    """The curves of every group of a probe; see `scan`."""
    chosen = chosen_executor(workers, executor)
    context = context_key(prober) if store is not None else ""
    levels = {
        group.name: [make_point(prober, group, width, context, store) for width in _widths(group, sparsities)[1:]]
        for group in prober.groups
    }
    most = max(map(len, levels.values()), default=0)
    bisect = racing is not None and racing.bisect
    count = len(levels) * most.bit_length() if bisect else sum(map(len, levels.values()))
    stage = (progress or NoProgress()).stage("sensitivity", count * len(prober.baseline.metric))
    with stage as advance, chosen.start(prober) as measure:

        def run(points: Sequence[Point], boundaries: Sequence[float]) -> Tally:
            return measure(points, racing, boundaries, store, advance)

        if racing is not None and racing.bisect:
            tally = _bisected(prober, levels, racing, run)
        else:
            points = [point for own in levels.values() for point in own]
            tally = run(points, racing.boundaries if racing else ())
    if tally.unmeasured and not tally.measured + tally.stored:
        raise WorkerError(f"no point could be measured: {tally.unmeasured[0]}")
    return Scan(
        {group.name: _curve(prober, group, levels[group.name]) for group in prober.groups},
        metric=prober.metric.name,
        tally=tally,
        racing=racing,
    )


def chosen_executor(workers: int, executor: Executor | None) -> Executor:
    """The executor that is meant by these two arguments of `scan`.

    >>> chosen_executor(2, None), chosen_executor(1, None)
    (ProcessExecutor(workers=2, threads=1, retries=2), SerialExecutor())
    """
    if executor is None:
        return SerialExecutor() if workers == 1 else ProcessExecutor(workers)
    if workers != 1:
        raise ArgumentError(f"workers={workers} and executor={executor} say two things; pass one of them")
    return executor


def _bisected(prober: Probe, levels: Mapping[str, Sequence[Point]], racing: Racing, run: Run) -> Tally:
    total = Tally()
    for boundary in racing.boundaries:

        def within(asked: Sequence[tuple[str, int]], boundary: float = boundary) -> list[bool]:
            nonlocal total
            points = [levels[name][level - 1] for name, level in asked]
            total += run(points, (boundary,))
            return [is_within(prober, point, racing, boundary) for point in points]

        halve({name: len(own) for name, own in levels.items()}, within)
    return total


def context_key(prober: Probe) -> str:
    """Hash of everything but the units that a point depends on: weights, data, metric, loss, versions."""
    metric = f"{prober.metric.name}, {prober.metric.sign}: {describe(prober.metric.function)}"
    parts = fingerprint(prober.model), content_hash(prober.data), metric, describe(prober.loss)
    digest = hashlib.sha256("|".join(parts).encode())
    digest.update(prober.baseline.metric.tobytes() + prober.baseline.loss.tobytes())
    return digest.hexdigest()


def fingerprint(model: nn.Module) -> str:
    """Hash of a model's architecture as printed, its weights and buffers, and torch's version."""
    printed = without_addresses(str(model))
    if isinstance(model, fx.GraphModule):
        # A copy of a graph loses the name that it was given, which stands in the first line.
        printed = printed.partition("\n")[2]
    return content_hash([torch.__version__, type(model).__qualname__, printed, *named_state(model).items()])


def _widths(group: Group, sparsities: Sequence[float]) -> tuple[int, ...]:
    for sparsity in sparsities:
        if not 0 < sparsity < 1:
            raise ArgumentError(f"sparsities hold {sparsity}; each must lie strictly between 0 and 1")
    widths = {kept_width(group, sparsity) for sparsity in sparsities} | {group.width}
    if group.minimum == 0:
        widths.add(0)
    return tuple(sorted(widths, reverse=True))


def _curve(prober: Probe, group: Group, points: Sequence[Point]) -> Curve:
    own = [point for point in points if not np.isnan(point.damage).all()]
    widths = (group.width, *(point.width for point in own))
    nothing = np.zeros_like(prober.baseline.metric)
    return Curve(
        group=group.name,
        widths=widths,
        sparsities=tuple(1 - width / group.width for width in widths),
        damage=np.stack([nothing, *(point.damage for point in own)]),
        loss_damage=np.stack([nothing, *(point.loss_damage for point in own)]),
    )
