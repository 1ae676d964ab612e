"""What `front` prints and writes."""

import json
from collections.abc import Mapping
from pathlib import Path

from secateur.allocation.front import Front, front
from secateur.cli.loaders import Splits, example_args, load_criterion, load_dense, load_scope
from secateur.cli.recipe import Recipe
from secateur.criteria.collect import collect
from secateur.criteria.criterion import needs_of, score
from secateur.data import as_batches
from secateur.graph.costs import costs
from secateur.graph.trace import trace
from secateur.measures.evaluate import evaluate
from secateur.measures.metrics import resolve_loss, resolve_metric
from secateur.pipeline.aims import objective_of
from secateur.pipeline.calibration import first_samples
from secateur.pipeline.latency import latency_costs
from secateur.pipeline.task import summarise
from secateur.progress_bars import make_progress
from secateur.sensitivity.probe import probe
from secateur.sensitivity.scan import measure_curves
from secateur.storage.atomic import write_text
from secateur.storage.curve_store import CurveStore
from secateur.types import Budget


def measured_points(recipe: Recipe, splits: Splits, allowed: tuple[str, ...], out: Path) -> str:
    """Points of cost against damage by every objective of the recipe, as text; written to `front.json` too."""
    model, progress, scope = load_dense(recipe.model, allowed), make_progress(), load_scope(recipe)
    program = trace(model, example_args(splits, recipe.model.example_batch))
    groups = [group for group in scope.groups(program) if scope.admits(group)]
    criterion = load_criterion(recipe)
    calibration = first_samples(as_batches(splits.train, "train"), recipe.calibration_samples, seed=recipe.seed)
    statistics = collect(model, groups, calibration, needs=needs_of(criterion), loss=recipe.loss, progress=progress)
    data, metric, loss = (
        as_batches(splits.validation, "validation"),
        resolve_metric(recipe.metric),
        resolve_loss(recipe.loss),
    )
    prober = probe(
        model, groups, score(groups, statistics, criterion), data, metric=metric, loss=loss,
        baseline=evaluate(model, data, metric=metric, loss=loss), program=program,
    )  # fmt: skip
    goal = Budget(macs=1.0) if recipe.budget is None else Budget(**recipe.budget.model_dump())
    is_timed = goal.latency is not None or goal.latency_s is not None
    out.mkdir(parents=True, exist_ok=True)
    with CurveStore.open(out / "curves.sqlite") as store:
        curves = measure_curves(prober, sparsities=recipe.sparsities, store=store, progress=progress)

    def measure(widths: Mapping[str, int]) -> tuple[float, float]:
        joint = summarise(prober.damage(widths)[0])
        return joint.mean, joint.standard_error

    found = front(
        curves,
        latency_costs(program, groups, sparsities=recipe.sparsities, progress=progress)
        if is_timed
        else costs(program, groups),
        measure=measure,
        objectives={name: objective_of(name, prober.scores) for name in recipe.objectives},
        goal=goal,
    )
    write_text(out / "front.json", json.dumps(as_plain(found), indent=1) + "\n")
    return str(found)


def as_plain(found: Front) -> list[dict[str, object]]:
    """The points as plain data.

    >>> as_plain(Front(()))
    []
    """
    return [
        {
            "objective": point.rule,
            "budget": point.budget,
            "left": point.share,
            "damage": point.damage,
            "standard_error": point.standard_error,
            "predicted": point.predicted,
            "beaten": point.is_dominated,
            "widths": dict(point.allocation.widths),
        }
        for point in found.points
    ]
