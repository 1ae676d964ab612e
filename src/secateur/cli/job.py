"""A recipe, run."""

from dataclasses import fields
from pathlib import Path

from secateur.cli.loaders import (
    Splits,
    criterion_named,
    example_args,
    load_dense,
    load_executor,
    load_racing,
    load_retraining,
    load_scope,
)
from secateur.cli.recipe import Recipe
from secateur.errors import RecipeError
from secateur.pipeline.prune import prune
from secateur.pipeline.result import Result
from secateur.progress_bars import make_progress
from secateur.types import Budget


def run_recipe(recipe: Recipe, splits: Splits, allowed: tuple[str, ...], out: Path) -> Result:
    """Load the trained model and prune it as the recipe says; resumes in `out`.

    Raises:
        RecipeError: the recipe asks for zeros instead.
    """
    if recipe.sparsify is not None:
        raise RecipeError("the recipe has a sparsify: part, which removes nothing: run `secateur sparsify` instead")
    scope = load_scope(recipe)
    return prune(
        load_dense(recipe.model, allowed),
        example_args(splits, recipe.model.example_batch),
        train=splits.train,
        validation=splits.validation,
        test=splits.test,
        metric=recipe.metric,
        loss=recipe.loss,
        tolerance=recipe.tolerance,
        budget=None if recipe.budget is None else Budget(**recipe.budget.model_dump()),
        criteria=[criterion_named(name, recipe.seed) for name in recipe.criteria or (recipe.criterion,)],
        objectives=recipe.objectives,
        local_search=recipe.local_search,
        sparsities=recipe.sparsities,
        folds=recipe.folds,
        repeats=recipe.repeats,
        standard_errors=recipe.standard_errors,
        schedule=recipe.schedule,
        rounds=recipe.rounds,
        retrain=load_retraining(recipe),
        repair=recipe.repair,
        controls=recipe.controls,
        **{field.name: getattr(scope, field.name) for field in fields(scope)},
        calibration_samples=recipe.calibration_samples,
        confidence=recipe.confidence,
        spend=recipe.spend,
        racing=load_racing(recipe),
        executor=load_executor(recipe),
        seed=recipe.seed,
        run_dir=out,
        progress=make_progress(),
    )
