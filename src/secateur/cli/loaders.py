"""From a recipe to a model and its data."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from secateur.cli.batches import TensorBatches
from secateur.cli.data_sources import Tensors, digits, parquet_images, rows_of, text_chars, text_lines
from secateur.cli.imports import resolve
from secateur.cli.recipe import DataPart, ModelPart, Recipe, Rows
from secateur.criteria.criterion import Criterion
from secateur.criteria.rules import Magnitude, Random, Taylor
from secateur.errors import DataError, RecipeError
from secateur.training.loop import Retraining
from secateur.zoo.digits import digits_cnn, digits_lstm
from secateur.zoo.resnet import resnet20

MODELS: dict[str, Callable[..., nn.Module]] = {
    "resnet20": resnet20,
    "digits-cnn": digits_cnn,
    "digits-lstm": digits_lstm,
}
# Rows of the digits: train, validation, test.
DIGITS_SPLITS = {"train": (0, 1000), "validation": (1000, 1400), "test": (1400, 1797)}


@dataclass(frozen=True, eq=False)
class Splits:
    """The data of a run."""

    train: Any
    validation: Any
    test: Any


def load_factory(part: ModelPart, allowed: Collection[str]) -> Callable[[], nn.Module]:
    """What builds the dense architecture."""
    build = MODELS[part.ref] if part.ref in MODELS else _imported(part.ref, allowed)
    return lambda: build(**part.arguments)


def load_dense(part: ModelPart, allowed: Collection[str]) -> nn.Module:
    """The trained model.

    Raises:
        RecipeError: there are no weights, or they do not fit.
    """
    model = load_factory(part, allowed)()
    if part.weights is None:
        if part.ref in MODELS:
            raise RecipeError(f"model.weights is missing: {part.ref!r} has random weights; name a .safetensors file")
        return model.eval()
    try:
        model.load_state_dict(load_file(part.weights))
    except (OSError, SafetensorError) as error:
        raise RecipeError(f"model.weights: cannot read {part.weights} as safetensors: {error}") from error
    except RuntimeError as error:
        raise RecipeError(f"model.weights: {part.weights} does not fit {part.ref!r}: {error}") from error
    return model.eval()


def load_data(part: DataPart, allowed: Collection[str]) -> Splits:
    """Train, validation and test batches; only training batches are shuffled and augmented."""
    if part.kind == "python":
        if part.ref is None:
            raise RecipeError("data.ref is missing: kind python needs module:function that returns the three splits")
        made = resolve(part.ref, allowed)()
        if not isinstance(made, tuple) or len(made) != 3:
            raise DataError(f"{part.ref} returned a {type(made).__name__}; needed (train, validation, test)")
        return Splits(*made)
    return Splits(
        train=_batches(part, _split(part, "train"), shuffle=True, augment=part.augment),
        validation=_batches(part, _split(part, "validation")),
        test=_batches(part, _split(part, "test")),
    )


def example_args(splits: Splits, samples: int) -> tuple[Any, ...]:
    """The first inputs of the validation data."""
    first = next(iter(splits.validation))
    if not isinstance(first, tuple | list):
        raise DataError(
            f"the validation data gives {type(first).__name__}s; the command line needs tuples (inputs, targets)"
        )
    return tuple(x[:samples] if isinstance(x, torch.Tensor) else x for x in first[:-1])


def load_criterion(recipe: Recipe) -> Criterion:
    """The criterion by name."""
    known: dict[str, Criterion] = {
        "taylor": Taylor(),
        "l1": Magnitude(1),
        "l2": Magnitude(2),
        "random": Random(recipe.seed),
    }
    return known[recipe.criterion]


def load_retraining(recipe: Recipe) -> Retraining | None:
    """How to retrain; None = not at all."""
    part = recipe.retrain
    return None if part is None else Retraining(**part.model_dump())


def _imported(reference: str, allowed: Collection[str]) -> Callable[..., nn.Module]:
    if ":" not in reference:
        raise RecipeError(f"model.ref {reference!r} is not known; use one of {sorted(MODELS)} or module:function")
    found: Callable[..., nn.Module] = resolve(reference, allowed)
    return found


def _split(part: DataPart, name: str) -> Tensors:
    rows: Rows = getattr(part, name)
    if part.kind == "digits":
        start, stop = DIGITS_SPLITS[name]
        images, labels = digits()
        return rows_of((images[start:stop], labels[start:stop]), rows)
    if rows.file is None:
        raise RecipeError(f"data.{name}.file is missing: {part.kind} reads files; pass --set data.{name}.file=PATH")
    path = Path(rows.file)
    match part.kind:
        case "parquet-images":
            return parquet_images(path, rows.start, rows.stop)
        case "text-lines":
            return text_lines(path, rows.start, rows.stop, part.length)
        case _:
            return text_chars(path, rows.start, rows.stop, part.length)


def _batches(part: DataPart, tensors: Tensors, *, shuffle: bool = False, augment: str = "none") -> TensorBatches:
    return TensorBatches(*tensors, part.batch_size, shuffle, part.mean, part.std, augment)
