"""Curves: damage against sparsity for every group, measured on validation data."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from secateur.data import BatchFn, as_batches
from secateur.describe import content_hash, describe, without_addresses
from secateur.errors import ArgumentError
from secateur.graph.trace import Program, named_state
from secateur.measures.evaluate import check_decomposable, evaluate
from secateur.measures.metrics import resolve_loss, resolve_metric
from secateur.progress import NoProgress, Progress
from secateur.sensitivity.measure import Point, PointStore, make_point, measure
from secateur.sensitivity.probe import Probe, probe
from secateur.sensitivity.stages import as_it_comes
from secateur.surgery.plan import Scores, kept_width
from secateur.types import Curve, Group

SPARSITIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def scan(
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
    store: PointStore | None = None,
    progress: Progress | None = None,
) -> dict[str, Curve]:
    """Measure every group alone at every sparsity, paired with the whole model sample by sample.

    Units are silenced, which is what cutting them does. Where a group is not exact, it is cut for each point.

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
        store: measured points are looked up and kept here.
        progress: shown while running.

    Returns:
        Group name -> curve; its first level is the whole group, with no damage.

    Raises:
        ArgumentError: a sparsity outside (0, 1).
        NumericalError: metric or loss of the whole model is not finite.
    """
    data = as_batches(validation, "validation", batch_fn)
    found_metric, found_loss = resolve_metric(metric, higher_is_better), resolve_loss(loss)
    baseline = evaluate(program.model, data, metric=found_metric, loss=found_loss)
    check_decomposable(program.model, data, metric=found_metric, found=baseline)
    prober = probe(
        program.model, groups, scores, data, metric=found_metric, loss=found_loss, baseline=baseline, program=program
    )
    return measure_curves(prober, sparsities=sparsities, store=store, progress=progress)


def measure_curves(
    prober: Probe,
    *,
    sparsities: Sequence[float] = SPARSITIES,
    store: PointStore | None = None,
    progress: Progress | None = None,
) -> dict[str, Curve]:
    """The curves of every group of a probe."""
    levels = {group.name: _widths(group, sparsities) for group in prober.groups}
    context = context_key(prober) if store is not None else ""
    points = [
        make_point(prober, group, width, context, store) for group in prober.groups for width in levels[group.name][1:]
    ]
    total = len(points) * len(prober.baseline.metric)
    with (progress or NoProgress()).stage("sensitivity", total) as advance:
        measure(prober, points, as_it_comes(prober.data), store=store, advance=advance)
    return {group.name: _curve(prober, group, points) for group in prober.groups}


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
    own = [point for point in points if point.group is group]
    widths = (group.width, *(point.width for point in own))
    nothing = np.zeros_like(prober.baseline.metric)
    return Curve(
        group=group.name,
        widths=widths,
        sparsities=tuple(1 - width / group.width for width in widths),
        damage=np.stack([nothing, *(point.damage for point in own)]),
        loss_damage=np.stack([nothing, *(point.loss_damage for point in own)]),
    )
