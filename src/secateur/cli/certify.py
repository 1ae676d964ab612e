"""Saved models, certified on the test data of a recipe."""

from collections.abc import Sequence
from pathlib import Path

from secateur.cli.loaders import Splits, load_dense, load_factory
from secateur.cli.recipe import Recipe
from secateur.errors import ArgumentError
from secateur.pipeline.certification import Certification, SequenceCertification
from secateur.pipeline.certify import certify, certify_sequence
from secateur.storage.saved_model import load_model


def certified(
    recipe: Recipe,
    splits: Splits,
    allowed: tuple[str, ...],
    pruned: Sequence[Path],
    out: Path,
    tolerance: float | None,
    *,
    confidence: float,
    spend: float | None,
) -> Certification | SequenceCertification:
    """The outcome; of several models, tested in their order up to the first failure."""
    dense, factory = load_dense(recipe.model, allowed), load_factory(recipe.model, allowed)
    models = (load_model(factory, directory).eval() for directory in pruned)
    if len(pruned) == 1:
        return certify(
            dense, next(models), splits.test, tolerance=tolerance, metric=recipe.metric, confidence=confidence,
            run_dir=out, spend=spend,
        )  # fmt: skip
    if tolerance is None:
        raise ArgumentError("several models are tested in order up to the first failure, which needs --tolerance")
    return certify_sequence(
        dense, models, splits.test, tolerance=tolerance, metric=recipe.metric, confidence=confidence, run_dir=out,
        spend=spend,
    )  # fmt: skip
