"""Recipes: YAML, validated strictly; they name things, and run nothing by themselves."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from secateur.errors import RecipeError

MOST_BYTES = 1_000_000
MOST_ALIASES = 20


class Part(BaseModel):
    """A strict, immutable part of a recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Rows(Part):
    """A range of rows of a file; for built-in data the file is not named."""

    file: str | None = None
    start: int = Field(0, ge=0)
    stop: int | None = Field(None, ge=1)


class ModelPart(Part):
    """The architecture, its weights, and the example inputs' batch size."""

    ref: str
    weights: str | None = None
    arguments: dict[str, int | float | str | bool] = {}
    example_batch: int = Field(64, ge=1)


class DataPart(Part):
    """Where the samples come from and how they are prepared."""

    kind: Literal["digits", "parquet-images", "text-lines", "text-chars", "python"]
    ref: str | None = None
    train: Rows = Rows()
    validation: Rows = Rows()
    test: Rows = Rows()
    batch_size: int = Field(64, ge=1)
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    augment: Literal["none", "flip-crop"] = "none"
    length: int = Field(64, ge=2)


class BudgetPart(Part):
    """Fractions of the dense model's cost."""

    macs: float = Field(gt=0, le=1)


class RetrainPart(Part):
    """How to retrain in each round."""

    epochs: int = Field(1, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    distill: float = Field(0.0, ge=0, le=1)
    temperature: float = Field(4.0, gt=0)


class Recipe(Part):
    """One run, described whole."""

    schema_version: Literal[1] = 1
    model: ModelPart
    data: DataPart
    metric: Literal["accuracy", "top5_accuracy", "cross_entropy", "mse"] = "accuracy"
    loss: Literal["cross_entropy", "mse"] = "cross_entropy"
    tolerance: float | None = Field(None, gt=0, lt=1)
    budget: BudgetPart | None = None
    criterion: Literal["taylor", "l1", "l2", "random"] = "taylor"
    sparsities: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    folds: int = Field(5, ge=2)
    schedule: Literal["one-shot", "linear", "cubic", "exponential"] = "cubic"
    rounds: int = Field(4, ge=1)
    retrain: RetrainPart | None = None
    repair: bool = True
    controls: tuple[Literal["random", "uniform-magnitude"], ...] = ("random", "uniform-magnitude")
    calibration_samples: int = Field(512, ge=1)
    ignore: tuple[str, ...] = ()
    seed: int = 0

    @model_validator(mode="after")
    def _one_goal(self) -> Self:
        if (self.tolerance is None) == (self.budget is None):
            raise ValueError("give exactly one of tolerance and budget")
        return self


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe.

    Args:
        path: a YAML file of at most one megabyte. Paths in it are relative to it.
        overrides: `key.key=value` pairs that replace or add entries; values are YAML.

    Raises:
        RecipeError: the file is missing, too large, not YAML, or has an entry that is not allowed; the
            message names the entry, and the nearest known key for an unknown one.
    """
    raw = _parse(_read(path), str(path))
    for override in overrides:
        _override(raw, override)
    try:
        recipe = Recipe.model_validate(raw)
    except ValidationError as error:
        raise RecipeError(f"{path}: {_explain(error)}") from error
    return _with_paths(recipe, path.parent)


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise RecipeError(f"{path} has {path.stat().st_size} bytes; a recipe has at most {MOST_BYTES}")
        return path.read_text()
    except OSError as error:
        raise RecipeError(f"cannot read the recipe {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not a text file: {error.reason}") from error


def _parse(text: str, where: str) -> dict[str, Any]:
    """Safe YAML; aliases are counted first, since nested ones grow without bound."""
    try:
        aliases = sum(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader))
        if aliases > MOST_ALIASES:
            raise RecipeError(f"{where} holds {aliases} YAML aliases; a recipe holds at most {MOST_ALIASES}")
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{where} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise RecipeError(f"{where} holds a {type(raw).__name__}; a recipe is a mapping with model:, data: and a goal")
    return raw


def _override(raw: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise RecipeError(f"--set {override!r}: needed key.key=value, such as --set data.batch_size=128")
    *parents, leaf = key.split(".")
    for parent in parents:
        raw = raw.setdefault(parent, {})
        if not isinstance(raw, dict):
            raise RecipeError(f"--set {override!r}: {parent!r} holds a {type(raw).__name__}, not a mapping")
    raw[leaf] = yaml.safe_load(value)


def _explain(error: ValidationError) -> str:
    lines = []
    for problem in error.errors():
        place = ".".join(str(part) for part in problem["loc"]) or "recipe"
        if problem["type"] == "extra_forbidden":
            near = difflib.get_close_matches(str(problem["loc"][-1]), _keys_at(problem["loc"][:-1]), n=1)
            lines.append(f"unknown key {place!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        elif problem["type"] == "missing":
            lines.append(f"{place!r} is missing")
        else:
            lines.append(f"{place}: got {problem['input']!r}: {problem['msg'].removeprefix('Value error, ')}")
    return "; ".join(lines)


def _keys_at(location: tuple[int | str, ...]) -> list[str]:
    part: Any = Recipe
    for name in location:
        field = part.model_fields.get(str(name)) if hasattr(part, "model_fields") else None
        if field is None:
            return []
        kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
        part = next((k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)), None)
    return list(part.model_fields) if hasattr(part, "model_fields") else []


def _with_paths(recipe: Recipe, base: Path) -> Recipe:
    """Paths relative to the recipe become paths that can be opened from anywhere."""

    def place(name: str | None) -> str | None:
        return None if name is None else str(base / name)

    data = recipe.data
    splits = {k: getattr(data, k).model_copy(update={"file": place(getattr(data, k).file)}) for k in SPLITS}
    return recipe.model_copy(
        update={
            "data": data.model_copy(update=splits),
            "model": recipe.model.model_copy(update={"weights": place(recipe.model.weights)}),
        }
    )


SPLITS = ("train", "validation", "test")
