"""A trained model made sparse as a recipe says, measured, and saved."""

from pathlib import Path

from torch import nn

from secateur.capture.parking import Offload
from secateur.cli.loaders import Splits, example_args, load_dense
from secateur.cli.recipe import Recipe
from secateur.cli.recipe_sparsity import AllocationName, MethodName, SparsifyPart
from secateur.data import as_batches
from secateur.errors import RecipeError
from secateur.measures.evaluate import evaluate
from secateur.measures.metrics import resolve_loss, resolve_metric
from secateur.pipeline.calibration import first_samples
from secateur.pipeline.task import summarise
from secateur.progress_bars import make_progress
from secateur.report.formats import damage_text, error_text, metric_text
from secateur.sparsity.allocate import Sparsity
from secateur.sparsity.alps import ALPS
from secateur.sparsity.measured_shares import Measured
from secateur.sparsity.method import Masked, Method
from secateur.sparsity.obc import OBC
from secateur.sparsity.patterns import pattern_named
from secateur.sparsity.runtime import sparse_speed
from secateur.sparsity.shares import ERK, OWL, Allocation, Global, Uniform
from secateur.sparsity.sparsegpt import SparseGPT
from secateur.sparsity.sparsify import Sparsified, sparsify
from secateur.storage.saved_model import save_model
from secateur.surgery.plan import Plan

METHODS: dict[MethodName, Method] = {
    "alps": ALPS(),
    "magnitude": Masked("magnitude"),
    "magnitude-refit": Masked("magnitude", refit=True),
    "obc": OBC(),
    "ria": Masked("ria"),
    "ria-refit": Masked("ria", refit=True),
    "sparsegpt": SparseGPT(),
    "wanda": Masked("wanda"),
    "wanda-refit": Masked("wanda", refit=True),
}
ALLOCATIONS: dict[AllocationName, Allocation] = {
    "uniform": Uniform(),
    "erk": ERK(),
    "magnitude": Global("magnitude"),
    "lamp": Global("lamp"),
    "owl": OWL(),
    "measured": Measured(),
}


def sparsified(recipe: Recipe, splits: Splits, allowed: tuple[str, ...], out: Path) -> str:
    """Make the model sparse, save it in `out`, and tell what became of it.

    Raises:
        RecipeError: the recipe has no `sparsify` part.
        ArgumentError: it offloads to a folder that does not exist.
    """
    if recipe.sparsify is None:
        raise RecipeError("the recipe has no sparsify: part; add one, such as sparsify: {sparsity: 0.8, method: obc}")
    wanted, part = wanted_of(recipe.sparsify), recipe.sparsify
    dense = load_dense(recipe.model, allowed)
    calibration = first_samples(as_batches(splits.train, "train"), recipe.calibration_samples, seed=recipe.seed)
    found = sparsify(
        dense, wanted, calibration=calibration, recalibrated=part.recalibrate, offload=offload_of(part),
        progress=make_progress(),
    )  # fmt: skip
    nothing_cut = Plan({}, {})
    save_model(found.model, out, original=dense, plan=nothing_cut, extra={"sparsity_plan": found.plan.to_json()})
    speed = sparse_speed(dense, found.model, args=example_args(splits, recipe.model.example_batch))
    return (
        f"{found}\n\n{quality(recipe, splits, dense, found)}\n\n"
        f"What torch makes of zeros here, with a batch of {recipe.model.example_batch}:\n{speed}"
    )


def wanted_of(part: SparsifyPart) -> Sparsity:
    """The settings that a recipe names.

    >>> wanted_of(SparsifyPart(sparsity=0.5, pattern="2:4", method="sparsegpt")).method
    SparseGPT(damping=0.01, block=128)
    """
    return Sparsity(
        part.sparsity, pattern_named(part.pattern), METHODS[part.method], ALLOCATIONS[part.allocation], part.leave
    )


def offload_of(part: SparsifyPart) -> Offload | None:
    """Where the recipe wants what is not at work; None = in memory.

    Raises:
        ArgumentError: the folder does not exist.
    """
    return None if part.offload is None else Offload(part.offload.folder, memory_bytes=part.offload.memory_bytes)


def quality(recipe: Recipe, splits: Splits, dense: nn.Module, found: Sparsified) -> str:
    """The metric on the validation data before and after, and what was lost, sample by sample."""
    metric, loss = resolve_metric(recipe.metric), resolve_loss(recipe.loss)
    validation = as_batches(splits.validation, "validation")
    before = evaluate(dense, validation, metric=metric, loss=loss)
    after = evaluate(found.model, validation, metric=metric, loss=loss, finite=False)
    lost, share = summarise(metric.damage(before.metric, after.metric)), metric.bounds == (0.0, 1.0)
    return (
        f"{metric.name} on {len(before.metric)} validation samples: {metric_text(metric.value(before.metric), share)} "
        f"before, {metric_text(metric.value(after.metric), share)} after; "
        f"lost {damage_text(lost.mean, share)} ± {error_text(lost.standard_error, share)}{' points' if share else ''}"
    )
