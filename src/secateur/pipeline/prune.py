"""`prune`: from a trained model to a smaller one, a certificate and a report."""

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from torch import nn

from secateur.allocation.limits import check_budget
from secateur.criteria.criterion import Criterion
from secateur.criteria.gradients import Taylor
from secateur.data import BatchFn, as_batches
from secateur.describe import content_hash, describe, without_addresses
from secateur.errors import ArgumentError, BudgetError, SurgeryError, as_number
from secateur.graph.costs import cost_model, item_bytes
from secateur.graph.groups import Ignored, Option
from secateur.graph.trace import trace
from secateur.measures.evaluate import evaluate
from secateur.measures.metrics import resolve_loss, resolve_metric
from secateur.measures.objects import usable
from secateur.pipeline.aims import Aim, check_aims
from secateur.pipeline.calibration import first_samples
from secateur.pipeline.certify import check_level
from secateur.pipeline.choosing import Rivals
from secateur.pipeline.cuttable import cuttable_groups, training_misfits
from secateur.pipeline.latency import Stopwatch, clock_model
from secateur.pipeline.result import Result
from secateur.pipeline.scope import EXPERTS, Scope
from secateur.pipeline.stages import Clock, Exam, run_task
from secateur.pipeline.task import Task
from secateur.pipeline.tolerance import check_tolerance
from secateur.progress import NoProgress, Progress
from secateur.sensitivity.executor import Executor
from secateur.sensitivity.keys import fingerprint
from secateur.sensitivity.levels import SPARSITIES
from secateur.sensitivity.racing import Racing
from secateur.sensitivity.scan import chosen_executor
from secateur.storage.curve_store import CurveStore
from secateur.storage.data_uses import Level
from secateur.storage.run_directory import open_run
from secateur.storage.timing_store import TimingStore, user_cache
from secateur.training.loop import Retraining
from secateur.training.schedules import Schedule, resolve_schedule
from secateur.types import Budget, Fallback

CONTROLS = ("random", "uniform-magnitude")
SWAPS = 50


def prune(  # noqa: PLR0913 - one argument for each thing that a user may decide
    model: nn.Module,
    args: tuple[Any, ...],
    *,
    validation: Any,
    kwargs: Mapping[str, Any] | None = None,
    train: Any = None,
    test: Any = None,
    calibration: Any = None,
    metric: Any = "accuracy",
    loss: Any = "cross_entropy",
    higher_is_better: bool | None = None,
    tolerance: float | None = None,
    budget: Budget | None = None,
    criterion: Criterion | None = None,
    criteria: Sequence[Criterion] = (),
    objectives: Sequence[Aim] = ("least damage",),
    local_search: bool | int = False,
    front: bool = True,
    sparsities: Sequence[float] = SPARSITIES,
    folds: int = 5,
    repeats: int = 1,
    standard_errors: float = 1.0,
    schedule: str | Schedule = "cubic",
    rounds: int = 4,
    retrain: Retraining | None = None,
    repair: bool = True,
    controls: Sequence[str] = CONTROLS,
    ignore: Ignored = (),
    multiple_of: Option = 1,
    minimum: Option = 1,
    branches: bool = False,
    inexact: Sequence[str] = EXPERTS,
    fallback: Fallback = "error",
    split_stacks: bool = False,
    batch_fn: BatchFn | None = None,
    confidence: float = 0.95,
    spend: Level = None,
    racing: Racing | None = None,
    workers: int = 1,
    executor: Executor | None = None,
    calibration_samples: int = 512,
    seed: int = 0,
    run_dir: str | Path | None = None,
    latency_cache: str | Path | None = None,
    progress: Progress | None = None,
) -> Result:
    """Make a trained model smaller, within a tolerance or down to a budget.

    Measures how sensitive the output is to every group, chooses thresholds by cross-validation, cuts the
    user's own module, repairs it without labels, retrains it if asked, and certifies on test data what
    it cost.

    Args:
        model: a trained module; it is not changed.
        args: example inputs, batch dimension first.
        kwargs: example inputs by keyword, for models whose batches are mappings.
        validation: batches that choose: curves, folds, acceptance of rounds.
        train: batches to retrain on, and to calibrate on unless `calibration` is given.
        test: batches for the certificate, which the models see after all choices are made; None = no certificate.
            Samples of the validation or calibration data among them are an error.
        calibration: batches for scores and repair.
        metric: name, function or torchmetrics-like object; see `resolve_metric`. An object that is no mean over samples
            is resampled 200 times for each damage, and its certificate is asymptotic.
        loss: name, function or loss module; see `resolve_loss`.
        higher_is_better: direction of a metric that is a function.
        tolerance: damage allowed, in units of the metric: above 0, and less than could be lost at all (an accuracy is a
            share: 0.01 is one point of it).
        budget: costs allowed, as fractions of the dense model's; all of its bounds hold. A latency is predicted by
            `latency_costs`, measured on the cut model, and corrected until it holds: if it never does, the report
            and `Result.timed` say so. Exactly one of the two.
        criterion: scores units; default `Taylor()`.
        criteria: several, of which cross-validation chooses one, in place of `criterion`.
        objectives: what allocations aim at: "least damage" (sum of the damages of single groups), "equal damage",
            "global threshold" (of scores), "uniform", or objectives. Of several, cross-validation chooses one
            together with the criterion, and the controls compete: `Result.selection` says how it came out.
        local_search: go on from each allocation by swaps of one level, kept where the measured joint damage falls:
            the number of measurements, or True for 50.
        front: measure the damage at all budgets of a grid, for the report and `Result.front`.
        sparsities: levels of the scan, in (0, 1).
        folds: of the cross-validation.
        repeats: how often the folds are drawn anew: each sample counts with its mean damage.
        standard_errors: of the damage, which it must stay within the tolerance by, out of fold and after each round;
            1.645 is a one-sided confidence of 95 %.
        schedule: "one-shot", "linear", "cubic" or "exponential": how fast the rounds go down.
        rounds: of cut, repair and retraining.
        retrain: how to retrain in each round; None = no training at all, one round.
        repair: refit consumers and recalibrate batch norm after each cut.
        controls: naive rules run at the same multiply-adds: "random", "uniform-magnitude".
        ignore: what must stay: names of modules or parameters, globs (`"layer4.*"`), or functions of a parameter's
            name.
        multiple_of: widths stay multiples of this: one number, or glob of group names -> number.
        minimum: the least width, likewise.
        branches: whole residual branches may go too, where that costs less than narrowing them.
        inexact: kinds of units, or names or globs of groups, that may go although removing them is not the same
            as hearing nothing of them: another expert takes the place of one that is gone, a layer norm runs over
            fewer features. Their damage is measured on real cuts, which takes longer.
        fallback: "graph" also lets go what the model's own forward pass cannot follow: if any of it goes, the
            result is a `torch.fx.GraphModule`, in eval mode for good.
        split_stacks: layers of a stacked `nn.LSTM`, `nn.GRU` or `nn.RNN` may end at different widths; see
            `find_groups`.
        batch_fn: takes apart batches of an unusual shape.
        confidence: of the certificate.
        spend: level that the certificate spends of 1 - confidence, with a run directory; see `certify`.
        racing: points of the scan stop early, at a stated error rate; None: each gets all validation samples. Under a
            budget, those that it turns on are measured further (see `Contenders`).
        workers: more than one scan in so many processes; short for `executor=ProcessExecutor(workers)`.
        executor: where the scans are measured; see `scan`.
        calibration_samples: at most so many samples are read for scores and repair.
        seed: of everything random.
        run_dir: where the run keeps what it needs to resume after a kill.
        latency_cache: file that keeps timings of operators; None: one in the user's cache directory.
        progress: shown while running.

    Raises:
        ArgumentError: both or neither of tolerance and budget, or a value outside its range.
        BudgetError: no allocation meets the budget.
        TraceError: the model cannot be exported.
        SurgeryError: the cut model could not be retrained: modules that only training mode reaches do not fit it.
        DataError, MetricError, NumericalError: unusable data, metric or values; test data that were chosen by.
        StoreError: the run directory is of other settings, operators or data, or another process uses it.
    """
    _check_arguments(tolerance, budget, rounds, folds, controls)
    _check_rule(repeats, standard_errors)
    check_level(confidence, spend, run_dir)
    chosen = chosen_executor(workers, executor)
    exam = Exam(None if test is None else as_batches(test, "test", batch_fn), confidence, spend)
    check_aims(objectives)
    if not objectives or (criterion is not None and criteria):
        raise ArgumentError("pass one criterion or several criteria, not both, and at least one objective")
    scored_by = tuple(criteria) or (criterion or Taylor(),)
    if train is None and calibration is None:
        raise ArgumentError("there is neither train nor calibration data; scores and repair need one of them")
    if retrain is not None and train is None:
        raise ArgumentError("retrain is given but train is not; pass train=batches of (inputs, targets)")
    scope = Scope(ignore, multiple_of, minimum, fallback, branches, tuple(inexact), split_stacks)
    clock = Clock(progress or NoProgress())
    found_metric = resolve_metric(metric, higher_is_better)
    held = as_batches(validation, "validation", batch_fn)
    calibrating = first_samples(
        as_batches(calibration if calibration is not None else train, "calibration", batch_fn),
        calibration_samples,
        seed=seed,
    )
    with clock.stage("trace"):
        program = trace(model, args, kwargs)
    with contextlib.ExitStack() as stack:
        run = store = None
        if run_dir is not None:
            settings = {
                "model": fingerprint(model), "operators": content_hash([without_addresses(str(program.graph))]),
                "example inputs": content_hash([args, dict(kwargs or {})]),
                "calibration data": content_hash(calibrating), "validation data": content_hash(held),
                "metric": describe(replace(found_metric, whole=None)), "loss": describe(loss),
                "tolerance": tolerance, "budget": describe(budget),
                "criterion": describe(scored_by if criteria else scored_by[0]),
                "objectives": describe(tuple(objectives)), "local search": int(local_search),
                "sparsities": list(sparsities), "folds": folds, "repeats": int(repeats),
                "standard errors": float(standard_errors), "schedule": describe(schedule), "rounds": rounds,
                "retrain": describe(retrain), "repair": repair, "controls": list(controls),
                "calibration_samples": calibration_samples, "seed": seed, "racing": describe(racing),
                **{field.name: describe(getattr(scope, field.name)) for field in fields(scope)},
            }  # fmt: skip
            run = stack.enter_context(open_run(Path(run_dir), settings))
            store = stack.enter_context(CurveStore.open(Path(run_dir) / "curves.sqlite"))
        with clock.stage("baseline"):
            exam.check_fresh([held, calibrating], None if run is None else Path(run.path))
            found_metric = usable(model, held, found_metric)
            baseline = evaluate(model, held, metric=found_metric, loss=resolve_loss(loss))
            if tolerance is not None:
                check_tolerance(tolerance, found_metric, baseline.metric)
        with clock.stage("trial cuts"):
            dense = cost_model(scope.structure(program), item_bytes(program))
            groups, left = cuttable_groups(model, program, scope.groups(program), scope)
            unfit = training_misfits(model, program, [group for group in groups if group.minimum > 0])
            if unfit and retrain is not None:
                raise SurgeryError(
                    f"modules {', '.join(unfit)} are reached in training mode only, where they do not fit the cut "
                    "model, so it could not be retrained; take them out of the model (aux_logits=False in "
                    "torchvision's), name what they read in ignore=[...], or pass retrain=None"
                )
        clocked, bounds = None, budget
        if budget is not None and (budget.latency is not None or budget.latency_s is not None):
            with clock.stage("latency"):
                timings = stack.enter_context(TimingStore.open(latency_cache or user_cache()))
                clocked = clock_model(program, groups, Stopwatch(timings, model, sparsities, clock.progress), budget)
                bounds = clocked.as_fractions(budget)
                dense = replace(dense, latency=clocked.fit)
        task = Task(
            model=model,
            args=args,
            kwargs=dict(kwargs or {}),
            train=None if train is None else as_batches(train, "train", batch_fn),
            calibration=calibrating,
            validation=held,
            metric=found_metric,
            loss=loss,
            baseline=baseline,
            dense=dense,
            budget=bounds,
            scope=scope,
            clocked=clocked,
            cuttable={group.name: group for group in groups},
            criterion=scored_by[0],
            objective=objectives[0],
            local_search=SWAPS if local_search is True else int(local_search),
            sparsities=sparsities,
            racing=racing,
            executor=chosen,
            repair=repair,
            retrain=retrain,
            seed=seed,
            run_dir=None if run is None else Path(run.path),
            store=store,
            progress=clock.progress,
        )
        if not groups:
            raise BudgetError(
                f"{type(model).__name__} has no group that can be cut: " + "; ".join(n.text for n in left[:3])
            )
        return run_task(
            task, clock, left, unfit, tolerance, budget, exam, front=front,
            rivals=Rivals(scored_by, tuple(objectives), tuple(controls), folds, int(repeats), standard_errors),
            schedule=resolve_schedule(schedule, rounds=rounds),
        )  # fmt: skip


def _check_arguments(
    tolerance: float | None, budget: Budget | None, rounds: int, folds: int, controls: Sequence[str]
) -> None:
    if (tolerance is None) == (budget is None):
        raise ArgumentError(f"pass exactly one of tolerance and budget; got tolerance={tolerance}, budget={budget}")
    if tolerance is not None and not 0 < as_number("tolerance", tolerance) < math.inf:
        raise ArgumentError(f"tolerance={tolerance} must be a positive finite number, in units of the metric")
    if budget is not None:
        check_budget(budget)
    if rounds < 1 or folds < 2:
        raise ArgumentError(f"rounds={rounds} must be at least 1 and folds={folds} at least 2")
    unknown = sorted(set(controls) - set(CONTROLS))
    if unknown:
        raise ArgumentError(f"control {unknown[0]!r} is not known; use any of {list(CONTROLS)}")


def _check_rule(repeats: int, standard_errors: float) -> None:
    if not 1 <= as_number("repeats", repeats) < math.inf or repeats != int(repeats):
        raise ArgumentError(f"repeats={repeats} must be a whole number of at least 1")
    if not 0 <= as_number("standard_errors", standard_errors) < math.inf:
        raise ArgumentError(f"standard_errors={standard_errors} must be a finite number of at least 0")
