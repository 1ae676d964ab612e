"""Curves: damage against sparsity for every group, measured on validation data."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from secateur.data import BatchFn, as_batches, check_repeats
from secateur.errors import ArgumentError
from secateur.graph.trace import Program
from secateur.measures.metrics import resolve_loss, resolve_metrics
from secateur.measures.objects import usable
from secateur.progress import NoProgress, Progress
from secateur.sensitivity.after import After, InPlace, name_of
from secateur.sensitivity.arguments import check_groups, check_how, check_kind
from secateur.sensitivity.bisection import bisect as halve
from secateur.sensitivity.curves import metric_curves, others_of
from secateur.sensitivity.deepening import Deepen, deepened
from secateur.sensitivity.executor import Executor, SerialExecutor
from secateur.sensitivity.failures import Patient
from secateur.sensitivity.keys import context_key, known_baseline
from secateur.sensitivity.levels import SPARSITIES, Sparsities, levels_of
from secateur.sensitivity.measure import Point, PointStore, Tally, make_point
from secateur.sensitivity.mixing import check_drawing
from secateur.sensitivity.probe import Probe, probe
from secateur.sensitivity.processes import ProcessExecutor
from secateur.sensitivity.racing import Racing
from secateur.sensitivity.result import Scan, Surrogate
from secateur.sensitivity.run import is_bounded, is_within
from secateur.sensitivity.slices import Slices, labels_of
from secateur.surgery.plan import Scores
from secateur.types import Group

Run = Callable[[Sequence[Point], Sequence[float]], Tally]


def scan(  # noqa: PLR0913 - one argument for each thing that a user may decide
    program: Program,
    groups: Sequence[Group],
    scores: Scores,
    validation: Any,
    *,
    metric: Any = "accuracy",
    loss: Any = "cross_entropy",
    higher_is_better: bool | None = None,
    slices: Slices = None,
    sparsities: Sparsities = SPARSITIES,
    after: After | InPlace | None = None,
    batch_fn: BatchFn | None = None,
    racing: Racing | None = None,
    deepen: Deepen | None = None,
    surrogate: Surrogate | None = None,
    workers: int = 1,
    executor: Executor | None = None,
    store: PointStore | None = None,
    progress: Progress | None = None,
) -> Scan:
    """Measure every group alone at every sparsity, paired with the whole model sample by sample.

    Units are silenced, which is what cutting them does. Where a group is not exact, it is cut for each point.
    Only what comes after a group's first consumer is run for it; see `replay`.

    A point that cannot be measured, as it raises or ends its worker again and again, is left out of its curve, so that
    no allocation can choose it, and named in the table and in `Scan.tally.unmeasured`; all others are measured. Where
    none can be measured, what the first one raised is raised.

    Args:
        program: from `trace`; its model is not changed, but for its mode while the whole of it runs: threads that scan
            one model must find it in eval mode.
        groups: what to measure.
        scores: group name -> scores; the lowest-scored units go first.
        validation: any source of batches.
        metric: see `resolve_metric`; or a list: the first decides (races, the curves themselves), the others are in
            `Scan.others`. "loss" is the loss. An object that is no mean over samples is measured by the bootstrap.
        loss: see `resolve_loss`.
        higher_is_better: direction of metrics that have none of their own.
        slices: "targets" for the classes, one label a sample, or a function of a batch that gives them: damage
            on the worst slice is measured beside, see `Scan.others` and `Scan.by_slice`.
        sparsities: fractions of units removed, in (0, 1); a branch, which has one unit, is measured without it. Or
            those of each group by name; groups that are not named are not measured.
        after: what is done before a point is measured: `AfterRefit` in closed form, `AfterRepair` and `AfterRetraining`
            to a cut model, or a function like them. None: nothing.
        batch_fn: takes apart batches of an unusual shape.
        racing: points stop early, once they are clear of its boundaries; None: each point gets all samples.
            With its `bisect`, curves have the levels that were measured on the way.
        deepen: asked after the race, again and again, which points should have more samples: `Contenders` names those
            that budgets turn on.
        surrogate: group name -> width -> predicted damage, in any unit; see `predict`. Halving begins where it says,
            and its rank agreement with what was measured is reported.
        workers: more than one measure in so many processes; short for `executor=ProcessExecutor(workers)`.
        executor: where points are measured: `ProcessExecutor` or `RayExecutor`; None = in this process.
        store: that of `with CurveStore.open(path) as store:`; measured points are looked up and kept in it, so that a
            killed scan goes on where it was.
        progress: shows how far it is: `make_progress()`, or an object with the same method; None: nothing is shown.

    Returns:
        Curves by group; the first level of each is the whole group, with no damage. It prints as a table.

    Raises:
        ArgumentError: a sparsity outside (0, 1), something that cannot be sent to other processes, or `deepen` without
            a race of all sparsities or that asks for a point that there is not.
        WorkerError: all workers were lost, or could not measure a single point.
        NumericalError: metric or loss of the whole model is not finite.
    """
    check_kind("program", program, isinstance(program, Program), "what sc.trace(model, args) gives")
    check_groups(program, groups)
    check_kind("after", after, after is None or callable(after) or isinstance(after, InPlace), "sc.AfterRepair(data)")
    is_store = store is None or (hasattr(store, "get") and hasattr(store, "put"))
    check_kind("store", store, is_store, "the store of `with sc.CurveStore.open(path) as store:`, or None")
    data = as_batches(validation, "validation", batch_fn)
    found_loss = resolve_loss(loss)
    found_metric, *others = (usable(program.model, data, m) for m in resolve_metrics(metric, higher_is_better, loss))
    baseline = known_baseline(program, data, metric=found_metric, loss=found_loss, others=others, store=store)
    prober = probe(
        program.model, groups, scores, data, metric=found_metric, loss=found_loss, baseline=baseline, program=program,
        others=others, after=after,
    )  # fmt: skip
    return measure_curves(
        prober,
        sparsities=sparsities,
        slices=slices,
        racing=racing,
        deepen=deepen,
        surrogate=surrogate,
        workers=workers,
        executor=executor,
        store=store,
        progress=progress,
    )


def measure_curves(
    prober: Probe,
    *,
    sparsities: Sparsities = SPARSITIES,
    slices: Slices = None,
    racing: Racing | None = None,
    deepen: Deepen | None = None,
    surrogate: Surrogate | None = None,
    workers: int = 1,
    executor: Executor | None = None,
    store: PointStore | None = None,
    progress: Progress | None = None,
) -> Scan:
    """The curves of every group of a probe; see `scan`."""
    check_how(racing, deepen, surrogate, executor, progress)
    chosen = chosen_executor(workers, executor)
    if deepen is not None and (racing is None or racing.bisect):
        raise ArgumentError("deepen= measures on what a race left: pass racing=Racing(...) without bisect as well")
    labels = labels_of(prober.data, slices)
    context = context_key(prober) if store is not None else ""
    groups = {group.name: group for group in prober.groups}
    levels = {
        name: [make_point(prober, groups[name], width, context, store) for width in widths]
        for name, widths in levels_of(prober.groups, sparsities).items()
    }
    if any(point.seen < len(prober.baseline.loss) for own in levels.values() for point in own):
        check_repeats(prober.data)
        if racing is not None:
            check_drawing(prober)
    most = max(map(len, levels.values()), default=0)
    rounds = most.bit_length() * len(racing.boundaries) if racing is not None and racing.bisect else 0
    count = len(levels) * rounds if rounds else sum(map(len, levels.values()))
    shown = progress or NoProgress()
    with chosen.start(prober, again=rounds > 0 or deepen is not None) as measure:
        with shown.stage("sensitivity", count * len(prober.baseline.loss)) as advance:
            points = [point for own in levels.values() for point in own]
            run = Patient(points, lambda asked, boundaries: measure(asked, racing, boundaries, store, advance))
            if racing is not None and racing.bisect:
                tally = _bisected(prober, levels, racing, surrogate or {}, run)
            else:
                tally = run(points, racing.boundaries if racing else ())
        if racing is not None and deepen is not None:
            tally = deepened(prober, levels, tally, deepen, racing, measure, store=store, progress=shown)
    others, tables = others_of(prober, levels, labels)
    return Scan(
        metric_curves(prober, levels, prober.metric),
        metric=prober.metric.name,
        tally=tally,
        racing=racing,
        is_bounded=racing is None or is_bounded(prober, racing),
        others=others,
        by_slice=tables,
        after=name_of(prober.after),
        surrogate=surrogate or {},
    )


def chosen_executor(workers: int, executor: Executor | None) -> Executor:
    """The executor that is meant by these two arguments of `scan`.

    >>> chosen_executor(1, None), chosen_executor(2, None).workers
    (SerialExecutor(cache_bytes=None), 2)
    """
    if executor is None:
        return SerialExecutor() if workers == 1 else ProcessExecutor(workers)
    if workers != 1:
        raise ArgumentError(f"workers={workers} and executor={executor} say two things; pass one of them")
    return executor


def _bisected(
    prober: Probe, levels: Mapping[str, Sequence[Point]], racing: Racing, surrogate: Surrogate, run: Run
) -> Tally:
    total = Tally()
    predicted = {
        name: [surrogate[name][point.width] for point in own]
        for name, own in levels.items()
        if all(point.width in surrogate.get(name, {}) for point in own)
    }
    for boundary in racing.boundaries:

        def within(asked: Sequence[tuple[str, int]], boundary: float = boundary) -> list[bool]:
            nonlocal total
            points = [levels[name][level - 1] for name, level in asked]
            total += run(points, (boundary,))
            return [is_within(prober, point, racing, boundary) for point in points]

        halve({name: len(own) for name, own in levels.items()}, within, predicted)
    return total
