"""Recipes: what they refuse, and how they say it."""

import time
from pathlib import Path
from typing import get_args

import pytest

from secateur.cli.imports import named_modules, resolve
from secateur.cli.loaders import load_criterion
from secateur.cli.recipe import CriterionName, ImagesData, LinesData, load_recipe
from secateur.cli.yaml_file import parse_yaml
from secateur.criteria.criterion import Criterion
from secateur.criteria.statistics import NEEDS
from secateur.errors import RecipeError

GOOD = "model: {ref: digits-cnn}\ndata: {kind: digits}\ntolerance: 0.02\n"
IMAGES = (
    "model: {ref: resnet20}\nbudget: {macs: 0.5}\ndata: {kind: parquet-images, "
    "train: {file: a.parquet}, validation: {file: b.parquet, stop: 50}, test: {file: b.parquet, start: 50}}\n"
)


def loaded(folder: Path, text: str, *overrides: str):
    path = folder / "recipe.yaml"
    path.write_text(text)
    return load_recipe(path, overrides)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.length=5", r"unknown key 'data.length'; known here: batch_size, kind, test, train, validation"),
        ("data.train.stpo=5", r"unknown key 'data.train.stpo'; did you mean 'stop'\?"),
        ("retrain.epoch=5", r"unknown key 'retrain.epoch'; did you mean 'epochs'\?"),
        ("model.weihgts=x", r"unknown key 'model.weihgts'; did you mean 'weights'\?"),
        ("data.kind=digit", r"data.kind: got 'digit': needed one of .*; did you mean 'digits'\?"),
        ("data={}", "'data.kind' is missing"),
        ("data.train.start=-1", "data.train.start: got -1"),
        ("data.train={start: 5, stop: 5}", "data.train: stop=5 must be greater than start=5"),
        ("retrain.learning_rate=.inf", "retrain.learning_rate: got inf: .*finite"),
        ("tolerance=.nan", "tolerance: got nan"),
        ("tolerance=1.5", "tolerance: got 1.5: needed less than 1"),
        ("tolerance=0", "tolerance: got 0"),
        ("repair='no'", "repair: got 'no': .*boolean"),
        ("rounds=2.0", "rounds: got 2.0: .*integer"),
        ("sparsities=[0.1, 'x']", "sparsities.1: got 'x': .*number"),
        ("multiple_of=0", "multiple_of.*: got 0: .*1"),
        ("minimum={'*.fc': 0}", "minimum.*: got 0: .*1"),
        ("branches=1", "branches: got 1: .*boolean"),
        ("fallback=none", r"fallback: got 'none': .*'error'.*'graph'"),
        ("workers=0", "workers: got 0"),
        ("spend=none", "spend.*: got 'none'"),
        ("ray.adress=auto", r"unknown key 'ray.adress'; did you mean 'address'\?"),
        ("seed", "needed key.key=value"),
        ("a..b=1", "needed key.key=value"),
        ("tolerance.x=1", "'tolerance' holds a float, not a mapping"),
        ("seed=[", "--set seed: the value is not YAML"),
    ],
)
def test_each_mistake_is_named_with_its_place(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        loaded(tmp_path, GOOD, override)


def test_a_loss_may_be_allowed_to_rise_by_more_than_one(tmp_path: Path) -> None:
    assert loaded(tmp_path, GOOD, "metric=cross_entropy", "tolerance=1.5").tolerance == 1.5


def test_racing_under_a_budget_needs_boundaries(tmp_path: Path) -> None:
    goal = ("budget={macs: 0.5}", "tolerance=null")
    with pytest.raises(RecipeError, match="racing without a tolerance needs boundaries"):
        loaded(tmp_path, GOOD, *goal, "racing={}")
    assert loaded(tmp_path, GOOD, *goal, "racing={boundaries: [0.1]}").racing is not None


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"rounds: got 0.*; unknown key 'foldz'") as caught:
        loaded(tmp_path, GOOD + "foldz: 3\nrounds: 0\n")
    assert "pydantic" not in str(caught.value) and "\n" not in str(caught.value)


def test_every_kind_of_data_takes_its_own_options_only(tmp_path: Path) -> None:
    images = loaded(tmp_path, IMAGES, "data.mean=[0, 0.5, 1]", "data.std=[1, 1, 1]").data
    assert isinstance(images, ImagesData) and images.mean == (0, 0.5, 1)
    lines = loaded(tmp_path, GOOD, "data={kind: text-lines, symbols: characters, length: 9}").data
    assert isinstance(lines, LinesData) and lines.length == 9
    with pytest.raises(RecipeError, match=r"unknown key 'data.mean'"):
        loaded(tmp_path, GOOD, "data={kind: text-lines, mean: [1.0]}")


@pytest.mark.parametrize("extra", ["mean: [1, 1, 1]", "mean: [1], std: [1]", "mean: [1, 1, 1], std: [1, 0, 1]"])
def test_mean_and_std_fit_together(tmp_path: Path, extra: str) -> None:
    with pytest.raises(RecipeError, match="data: mean and std need three values"):
        loaded(tmp_path, IMAGES.replace("parquet-images,", f"parquet-images, {extra},"))


def test_paths_are_relative_to_the_recipe_unless_absolute(tmp_path: Path) -> None:
    recipe = loaded(tmp_path, IMAGES, "data.train.file=/x/a.parquet")
    assert recipe.data.train.file == "/x/a.parquet"
    assert recipe.data.test.file == str(tmp_path / "b.parquet")


@pytest.mark.parametrize(
    ("validation", "test", "overlap"),
    [
        ("stop: 50", "start: 50", False),
        ("stop: 51", "start: 50", True),
        ("start: 50", "stop: 50", False),
        ("start: 49", "stop: 50", True),
        ("start: 0", "start: 90, stop: 99", True),
        ("start: 10, stop: 20", "start: 30, stop: 40", False),
    ],
)
def test_test_rows_are_read_by_nothing_else(tmp_path: Path, validation: str, test: str, overlap: bool) -> None:
    text = IMAGES.replace("stop: 50", validation).replace("start: 50}}", test + "}}")
    if not overlap:
        loaded(tmp_path, text)
        loaded(tmp_path, text, "data.validation.file=other.parquet")
        return
    with pytest.raises(RecipeError, match=r"data.validation and data.test share rows"):
        loaded(tmp_path, text)
    with pytest.raises(RecipeError, match=r"data.train and data.test share rows"):
        loaded(tmp_path, text, f"data.train.file={tmp_path}/../{tmp_path.name}/b.parquet")


def test_yaml_is_neither_guessed_nor_trusted() -> None:
    assert parse_yaml("[1e-3, 2E5, 1.5e+2, -1e2, 12, 0.5, abc, e3]", "t") == [
        1e-3,
        2e5,
        150.0,
        -100.0,
        12,
        0.5,
        "abc",
        "e3",
    ]
    assert parse_yaml("{a: &x {b: 1}, c: *x}", "t") == {"a": {"b": 1}, "c": {"b": 1}}
    for text, message in (
        ("a: 1\nb: 2\na: 3\n", "key 'a' is given twice"),
        ("b: {x: 1, x: 1}", "key 'x' is given twice"),
        ("[" * 3000 + "]" * 3000, "nested more than 20 deep"),
        ("a: 2026-99-99", "is not YAML"),
        ("a: 1\n---\nb: 2\n", "is not YAML"),
        ("!!python/object/apply:os.system [ls]", "is not YAML"),
        ("? [1]\n: 2", "is not YAML"),
    ):
        with pytest.raises(RecipeError, match=message):
            parse_yaml(text, "t")


@pytest.mark.parametrize(("leaves", "bomb"), [(20, False), (21, True)])
def test_aliases_are_counted_before_anything_is_built(leaves: int, bomb: bool) -> None:
    text = f"a: &a [x]\nb: [{', '.join(['*a'] * leaves)}]"
    if not bomb:
        assert len(parse_yaml(text, "t")["b"]) == leaves
        return
    start = time.perf_counter()
    with pytest.raises(RecipeError, match="holds 21 YAML aliases; a recipe holds at most 20"):
        parse_yaml(text, "t")
    assert time.perf_counter() - start < 1


def test_few_aliases_that_double_each_time_are_refused_when_they_grow(tmp_path: Path) -> None:
    # 10 levels of doubling use 20 aliases: 1,024 leaves at most, which is harmless.
    text = "a0: &a0 [x]\n" + "\n".join(f"a{k}: &a{k} [*a{k - 1}, *a{k - 1}]" for k in range(1, 11))
    with pytest.raises(RecipeError, match="unknown key 'a0'"):
        loaded(tmp_path, text)


def test_naming_a_module_on_the_command_line_is_consent() -> None:
    named = named_modules(["model.ref=pkg.models:build", "data.ref=pkg.data:make", "metric=x:y", "model.ref=resnet20"])
    assert named == ("pkg.models", "pkg.data")


def test_an_allowed_package_allows_its_modules_but_not_its_namesakes(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/__init__.py").touch()
    (tmp_path / "mine/models.py").write_text("value = 3\ndef build(): return value\n")
    (tmp_path / "mine2.py").write_text("def build(): return 1\n")
    (tmp_path / "broken.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert resolve("mine.models:build", ["mine"])() == 3
    with pytest.raises(RecipeError, match="pass --allow-import mine2"):
        resolve("mine2:build", ["mine"])
    with pytest.raises(RecipeError, match="is a int; needed a function"):
        resolve("mine.models:value", ["mine.models"])
    with pytest.raises(RecipeError, match="its code fails with ZeroDivisionError"):
        resolve("broken:f", ["broken"])


@pytest.mark.parametrize("name", ["resnet20-cifar10.yaml", "digits-cnn.yaml"])
def test_the_recipes_of_the_project_are_valid(name: str) -> None:
    recipe = load_recipe(Path(__file__).parents[2] / "recipes" / name)
    assert recipe.model.ref in name.replace("-cifar10", "")


@pytest.mark.parametrize("name", get_args(CriterionName))
def test_every_name_of_a_criterion_is_one(tmp_path: Path, name: str) -> None:
    criterion = load_criterion(loaded(tmp_path, GOOD, f"criterion={name}"))
    assert isinstance(criterion, Criterion) and criterion.needs <= NEEDS
