"""From a recipe to a model and its data."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from secateur.cli.batches import TensorBatches
from secateur.cli.data_sources import Tensors, alphabet_of, digits, parquet_images, rows_of, text_chars, text_lines
from secateur.cli.imports import resolve
from secateur.cli.recipe import (
    SPLITS,
    CharactersData,
    CriterionName,
    DataPart,
    DigitsData,
    FileRows,
    ImagesData,
    LinesData,
    ModelPart,
    PythonData,
    Recipe,
    Rows,
)
from secateur.criteria.activations import ActivationNorm, ActiveShare, MeanActivation
from secateur.criteria.chance import Random
from secateur.criteria.criterion import Criterion
from secateur.criteria.curvature import KFAC, OBD, HessianTrace
from secateur.criteria.energy import RIA, ActivationVariance, Wanda, WandaGroup
from secateur.criteria.gradients import SNIP, FisherGate, Gradient, SecondOrderTaylor, Taylor
from secateur.criteria.group_obs import GroupOBS
from secateur.criteria.magnitude import LAMP, BatchNormScale, GeometricMedian, Magnitude
from secateur.criteria.obs import OBS
from secateur.errors import DataError, RecipeError
from secateur.pipeline.scope import Scope
from secateur.sensitivity.executor import Executor, SerialExecutor
from secateur.sensitivity.processes import ProcessExecutor
from secateur.sensitivity.racing import Racing
from secateur.sensitivity.ray_cluster import RayExecutor
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


BuiltInData = DigitsData | ImagesData | LinesData | CharactersData


@dataclass(frozen=True, eq=False)
class Splits:
    """The data of a run."""

    train: Any
    validation: Any
    test: Any


def load_factory(part: ModelPart, allowed: Collection[str]) -> Callable[[], nn.Module]:
    """What builds the dense architecture."""
    build = MODELS[part.ref] if part.ref in MODELS else _imported(part.ref, allowed)

    def made() -> nn.Module:
        try:
            model = build(**part.arguments)
        except TypeError as error:
            raise RecipeError(f"model.arguments do not fit {part.ref!r}: {error}") from error
        if not isinstance(model, nn.Module):
            raise RecipeError(f"model.ref {part.ref!r} returned a {type(model).__name__}; needed a torch.nn.Module")
        return model

    return made


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
    if isinstance(part, PythonData):
        made = resolve(part.ref, allowed)(**part.arguments)
        if not isinstance(made, tuple) or len(made) != 3:
            raise DataError(f"{part.ref} returned a {type(made).__name__}; needed (train, validation, test)")
        return Splits(*made)
    read = _reader(part)
    return Splits(*(_batches(part, read(name), is_train=name == "train") for name in SPLITS))


def example_args(splits: Splits, samples: int) -> tuple[Any, ...]:
    """The first inputs of the validation data."""
    first = next(iter(splits.validation))
    if not isinstance(first, tuple | list):
        raise DataError(
            f"the validation data gives {type(first).__name__}s; the command line needs tuples (inputs, targets)"
        )
    return tuple(x[:samples] if isinstance(x, torch.Tensor) else x for x in first[:-1])


def load_criterion(recipe: Recipe) -> Criterion:
    """The criterion of a recipe; of several, the first."""
    return criterion_named((recipe.criteria or (recipe.criterion,))[0], recipe.seed)


def criterion_named(name: CriterionName, seed: int) -> Criterion:
    """The criterion of this name."""
    known: dict[CriterionName, Criterion] = {
        "active-share": ActiveShare(),
        "activation-norm": ActivationNorm(),
        "bn-scale": BatchNormScale(),
        "fisher": FisherGate(),
        "flap": ActivationVariance(),
        "fpgm": GeometricMedian(),
        "gradient": Gradient(),
        "group-obs": GroupOBS(),
        "hessian-trace": HessianTrace(),
        "kfac": KFAC(),
        "l1": Magnitude(1),
        "l2": Magnitude(2),
        "lamp": LAMP(),
        "mean-activation": MeanActivation(),
        "obd": OBD(),
        "obd-fisher": OBD("fisher"),
        "obs": OBS(),
        "random": Random(seed),
        "ria": RIA(),
        "snip": SNIP(),
        "taylor": Taylor(),
        "taylor-absolute": Taylor("absolute"),
        "taylor-second-order": SecondOrderTaylor(),
        "wanda": Wanda(),
        "wanda-group": WandaGroup(),
    }
    return known[name]


def load_scope(recipe: Recipe) -> Scope:
    """What may go."""
    return Scope(**{field.name: getattr(recipe, field.name) for field in fields(Scope)})


def load_racing(recipe: Recipe) -> Racing | None:
    """When points of the scan stop early; None = they do not."""
    part = recipe.racing
    if part is None:
        return None
    boundaries = part.boundaries or ((recipe.tolerance,) if recipe.tolerance is not None else ())
    return Racing(**{**part.model_dump(), "boundaries": boundaries})


def load_executor(recipe: Recipe) -> Executor:
    """Where points are measured."""
    silence_limit_s, cache_bytes = recipe.silence_limit_s, recipe.cache_bytes
    if recipe.ray is not None:
        return RayExecutor(
            recipe.workers, silence_limit_s=silence_limit_s, cache_bytes=cache_bytes, **recipe.ray.model_dump()
        )
    if recipe.workers > 1:
        return ProcessExecutor(recipe.workers, silence_limit_s=silence_limit_s, cache_bytes=cache_bytes)
    return SerialExecutor(cache_bytes)


def load_retraining(recipe: Recipe) -> Retraining | None:
    """How to retrain; None = not at all."""
    part = recipe.retrain
    return None if part is None else Retraining(**part.model_dump())


def _imported(reference: str, allowed: Collection[str]) -> Callable[..., nn.Module]:
    if ":" not in reference:
        raise RecipeError(f"model.ref {reference!r} is not known; use one of {sorted(MODELS)} or module:function")
    found: Callable[..., nn.Module] = resolve(reference, allowed)
    return found


def _reader(part: BuiltInData) -> Callable[[str], Tensors]:
    """What reads a split by name; all files are named before the first is read."""
    if isinstance(part, DigitsData):
        return lambda name: _digits_split(getattr(part, name), name)
    spans = {name: _span(getattr(part, name), name, part.kind) for name in SPLITS}
    paths = [path for path, _, _ in spans.values()]
    match part:
        case ImagesData():
            image, label = part.image_column, part.label_column
            return lambda name: parquet_images(*spans[name], image=image, label=label)
        case LinesData():
            alphabet = None if part.symbols == "bytes" else part.alphabet or alphabet_of(paths)
            return lambda name: text_lines(*spans[name], part.length, alphabet=alphabet)
        case CharactersData():
            shared = part.alphabet or alphabet_of(paths)
            return lambda name: text_chars(*spans[name], part.length, alphabet=shared)


def _digits_split(rows: Rows, name: str) -> Tensors:
    start, stop = DIGITS_SPLITS[name]
    images, labels = digits()
    return rows_of((images[start:stop], labels[start:stop]), rows, f"data.{name} of the digits")


def _span(rows: FileRows, name: str, kind: str) -> tuple[Path, int, int | None]:
    if rows.file is None:
        raise RecipeError(f"data.{name}.file is missing: {kind} reads files; pass --set data.{name}.file=PATH")
    return Path(rows.file), rows.start, rows.stop


def _batches(part: BuiltInData, tensors: Tensors, *, is_train: bool) -> TensorBatches:
    if not isinstance(part, ImagesData):
        return TensorBatches(*tensors, part.batch_size, shuffle=is_train)
    augment = part.augment if is_train else "none"
    return TensorBatches(*tensors, part.batch_size, is_train, part.mean, part.std, augment)
