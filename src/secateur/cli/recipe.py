"""Recipes: YAML, validated strictly; they name things, and run nothing by themselves."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from secateur.cli.recipe_errors import explain
from secateur.cli.recipe_part import Names, Numbers, Part
from secateur.cli.recipe_sparsity import SparsifyPart
from secateur.cli.yaml_file import parse_yaml, read_text
from secateur.errors import RecipeError
from secateur.sensitivity.silence import LEAST_LIMIT_S

EXPERTS = ("expert",)
SPLITS = ("train", "validation", "test")

# One number for all groups, or glob of group names -> number.
AtLeastOne = Annotated[int, Field(ge=1)]
Width = AtLeastOne | dict[str, AtLeastOne]
Fallback = Literal["error", "graph"]


class Rows(Part):
    """A range of samples: from `start`, up to but without `stop`."""

    start: int = Field(0, ge=0)
    stop: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if self.stop is not None and self.stop <= self.start:
            raise ValueError(f"stop={self.stop} must be greater than start={self.start}")
        return self


class FileRows(Rows):
    """A range of samples of a file."""

    file: str | None = None


class ModelPart(Part):
    """The architecture, its weights, and the example inputs' batch size."""

    ref: str
    weights: str | None = None
    arguments: dict[str, Any] = Field(default_factory=dict)
    example_batch: int = Field(64, ge=1)


class DigitsData(Part):
    """scikit-learn's digits, in three fixed splits; rows count within each."""

    kind: Literal["digits"]
    train: Rows = Rows()
    validation: Rows = Rows()
    test: Rows = Rows()
    batch_size: int = Field(64, ge=1)


class ImagesData(Part):
    """Parquet files with encoded images and labels; columns are found by their usual names unless given."""

    kind: Literal["parquet-images"]
    train: FileRows = FileRows()
    validation: FileRows = FileRows()
    test: FileRows = FileRows()
    batch_size: int = Field(64, ge=1)
    image_column: str | None = None
    label_column: str | None = None
    mean: Numbers = ()
    std: Numbers = ()
    augment: Literal["none", "flip-crop"] = "none"

    @model_validator(mode="after")
    def _one_value_a_channel(self) -> Self:
        if len(self.mean) not in {0, 3} or len(self.std) != len(self.mean) or min(self.std, default=1.0) <= 0:
            raise ValueError("mean and std need three values each (red, green, blue), std positive; or leave both out")
        return self


class LinesData(Part):
    """A language model's data, one sample a line; rows count lines of two or more symbols."""

    kind: Literal["text-lines"]
    train: FileRows = FileRows()
    validation: FileRows = FileRows()
    test: FileRows = FileRows()
    batch_size: int = Field(64, ge=1)
    length: int = Field(64, ge=2)
    symbols: Literal["bytes", "characters"] = "bytes"
    alphabet: str | None = None


class CharactersData(Part):
    """A language model's data, windows of characters; rows count characters."""

    kind: Literal["text-chars"]
    train: FileRows = FileRows()
    validation: FileRows = FileRows()
    test: FileRows = FileRows()
    batch_size: int = Field(64, ge=1)
    length: int = Field(64, ge=1)
    alphabet: str | None = None


class PythonData(Part):
    """Batches made by the user's own function, which returns (train, validation, test)."""

    kind: Literal["python"]
    ref: str
    arguments: dict[str, Any] = Field(default_factory=dict)


DataPart = DigitsData | ImagesData | LinesData | CharactersData | PythonData


class BudgetPart(Part):
    """Fractions of the dense model's cost, and seconds."""

    macs: float | None = Field(None, gt=0, le=1)
    params: float | None = Field(None, gt=0, le=1)
    memory: float | None = Field(None, gt=0, le=1)
    latency: float | None = Field(None, gt=0, le=1)
    latency_s: float | None = Field(None, gt=0)


class RacingPart(Part):
    """When points of the scan stop early; the boundary is the tolerance unless others are given."""

    boundaries: Numbers = ()
    error: float = Field(0.05, ge=0, lt=1)
    on: Literal["metric", "loss"] = "metric"
    clip: float | None = Field(None, gt=0)
    stage: int = Field(250, ge=1)
    least: int = Field(0, ge=0)
    bisect: bool = False


class RayPart(Part):
    """A Ray cluster on which points are measured."""

    address: str | None = None
    cpus: float = Field(1.0, ge=0)
    gpus: float = Field(0.0, ge=0)
    threads: int = Field(1, ge=1)


class RetrainPart(Part):
    """How to retrain in each round."""

    epochs: int = Field(1, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    distill: float = Field(0.0, ge=0, le=1)
    temperature: float = Field(4.0, gt=0)


CriterionName = Literal[
    "active-share",
    "activation-norm",
    "bn-scale",
    "fisher",
    "flap",
    "fpgm",
    "gradient",
    "group-obs",
    "hessian-trace",
    "kfac",
    "l1",
    "l2",
    "lamp",
    "mean-activation",
    "obd",
    "obd-fisher",
    "obs",
    "random",
    "ria",
    "snip",
    "taylor",
    "taylor-absolute",
    "taylor-second-order",
    "wanda",
    "wanda-group",
]


class Recipe(Part):
    """One run, described whole."""

    schema_version: Literal[1] = 1
    model: ModelPart
    data: DataPart = Field(discriminator="kind")
    metric: Literal["accuracy", "top5_accuracy", "cross_entropy", "mse"] = "accuracy"
    loss: Literal["cross_entropy", "mse"] = "cross_entropy"
    tolerance: float | None = Field(None, gt=0)
    budget: BudgetPart | None = None
    sparsify: SparsifyPart | None = None
    criterion: CriterionName = "taylor"
    criteria: Annotated[tuple[CriterionName, ...], Field(strict=False)] = ()
    objectives: Annotated[
        tuple[Literal["least damage", "equal damage", "global threshold", "uniform"], ...], Field(strict=False)
    ] = ("least damage",)
    local_search: bool | int = False
    sparsities: Numbers = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    folds: int = Field(5, ge=2)
    repeats: int = Field(1, ge=1)
    standard_errors: float = Field(1.0, ge=0, allow_inf_nan=False)
    schedule: Literal["one-shot", "linear", "cubic", "exponential"] = "cubic"
    rounds: int = Field(4, ge=1)
    retrain: RetrainPart | None = None
    repair: bool = True
    controls: Annotated[tuple[Literal["random", "uniform-magnitude"], ...], Field(strict=False)] = (
        "random",
        "uniform-magnitude",
    )
    calibration_samples: int = Field(512, ge=1)
    ignore: Names = ()
    multiple_of: Width = 1
    minimum: Width = 1
    branches: bool = False
    inexact: Names = EXPERTS
    fallback: Fallback = "error"
    split_stacks: bool = False
    seed: int = Field(0, ge=0)
    threads: int = Field(0, ge=0)
    confidence: float = Field(0.95, gt=0, lt=1)
    spend: float | Literal["sequence"] | None = None
    racing: RacingPart | None = None
    workers: int = Field(1, ge=1)
    silence_limit_s: float | None = Field(None, ge=LEAST_LIMIT_S)
    cache_bytes: int | None = Field(None, ge=0)
    ray: RayPart | None = None

    @model_validator(mode="after")
    def _has_boundaries(self) -> Self:
        if self.racing is not None and not self.racing.boundaries and self.tolerance is None:
            raise ValueError("racing without a tolerance needs boundaries: the damages that points must be clear of")
        return self

    @model_validator(mode="after")
    def _has_a_tolerance_that_can_be_exceeded(self) -> Self:
        if self.tolerance is not None and self.tolerance >= 1 and "accuracy" in self.metric:
            raise ValueError(f"tolerance: got {self.tolerance}: needed less than 1 (0.01 is one point of accuracy)")
        return self

    @model_validator(mode="after")
    def _one_goal(self) -> Self:
        if [self.tolerance, self.budget, self.sparsify].count(None) != 2:
            raise ValueError("give exactly one of tolerance, budget and sparsify")
        return self


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe.

    Args:
        path: a YAML file of at most one megabyte. Its paths are relative to it; those in overrides, to the
            working directory.
        overrides: `key.key=value` pairs that replace or add entries; values are YAML.

    Raises:
        RecipeError: the file is missing, too large, not YAML, or has an entry that is not allowed; the
            message names the entry, and the nearest known key for an unknown one.
    """
    raw = parse_yaml(read_text(path), str(path))
    if not isinstance(raw, dict):
        raise RecipeError(f"{path} holds a {type(raw).__name__}; a recipe is a mapping with model:, data: and a goal")
    for override in overrides:
        _override(raw, override)
    try:
        recipe = Recipe.model_validate(raw)
    except ValidationError as error:
        raise RecipeError(f"{path}: {explain(error, Recipe)}") from error
    placed = _with_paths(recipe, path.parent)
    _check_test_is_apart(placed, path)
    return placed


PATH_KEYS = ("file", "weights", "folder")


def _override(raw: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not all(key.split(".")):
        raise RecipeError(f"--set {override!r}: needed key.key=value, such as --set data.batch_size=128")
    *parents, leaf = key.split(".")
    for parent in parents:
        raw = raw.setdefault(parent, {})
        if not isinstance(raw, dict):
            raise RecipeError(f"--set {override!r}: {parent!r} holds a {type(raw).__name__}, not a mapping")
    parsed = parse_yaml(value, f"--set {key}: the value")
    # A path typed in a shell is meant from where the shell is, not from where the recipe lies.
    raw[leaf] = str(Path(parsed).absolute()) if leaf in PATH_KEYS and isinstance(parsed, str) else parsed


def _with_paths(recipe: Recipe, base: Path) -> Recipe:
    """Paths relative to the recipe become paths that can be opened from anywhere."""

    def place(name: str | None) -> str | None:
        return None if name is None else str(base / name)

    model = recipe.model.model_copy(update={"weights": place(recipe.model.weights)})
    data: Any = recipe.data
    parts = {name: getattr(data, name, None) for name in SPLITS}
    placed = {
        name: rows.model_copy(update={"file": place(rows.file)})
        for name, rows in parts.items()
        if isinstance(rows, FileRows)
    }
    found: dict[str, Any] = {"model": model, "data": data.model_copy(update=placed)}
    if recipe.sparsify is not None and recipe.sparsify.offload is not None:
        offload = recipe.sparsify.offload.model_copy(update={"folder": place(recipe.sparsify.offload.folder)})
        found["sparsify"] = recipe.sparsify.model_copy(update={"offload": offload})
    return recipe.model_copy(update=found)


def _check_test_is_apart(recipe: Recipe, path: Path) -> None:
    """A certificate on samples that took part in choices would be worth nothing."""
    test = getattr(recipe.data, "test", None)
    if not isinstance(test, FileRows):
        return
    for name in ("train", "validation"):
        rows = getattr(recipe.data, name)
        if _overlap(rows, test):
            raise RecipeError(
                f"{path}: data.{name} and data.test share rows {max(rows.start, test.start)} and on of {test.file}; "
                "the certificate holds only on samples that nothing else reads: give them disjoint start and stop"
            )


def _overlap(a: FileRows, b: FileRows) -> bool:
    if a.file is None or b.file is None or Path(a.file).resolve() != Path(b.file).resolve():
        return False
    return (b.stop is None or a.start < b.stop) and (a.stop is None or b.start < a.stop)
