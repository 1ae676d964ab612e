"""`secateur sparsify`: what it prints is what the saved model is."""

import re
from pathlib import Path
from typing import get_args

import pytest
import torch
from safetensors.torch import save_file

import secateur as sc
from secateur.cli import main, sparsify as command
from secateur.cli.loaders import load_data
from secateur.cli.recipe import load_recipe
from secateur.cli.recipe_sparsity import AllocationName, MethodName, SparsifyPart
from secateur.cli.sparsify import ALLOCATIONS, METHODS, wanted_of
from secateur.errors import RecipeError
from secateur.zoo.digits import digits_cnn


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_file(digits_cnn(4).state_dict(), tmp_path / "w.safetensors")
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "model: {ref: digits-cnn, weights: w.safetensors, arguments: {channels: 4}, example_batch: 2}\n"
        "data: {kind: digits, validation: {stop: 40}}\ncalibration_samples: 30\n"
        "sparsify: {sparsity: 0.5, pattern: '2:4', leave: [head]}\n"
    )
    return path


def code(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        main.run([str(a) for a in arguments])
    return int(stopped.value.code or 0)


def test_the_saved_model_is_the_one_that_was_measured(capsys, recipe: Path, tmp_path: Path) -> None:
    assert code("sparsify", recipe, "--out", tmp_path / "sparse") == 0
    shown = capsys.readouterr().out
    model = sc.load(lambda: digits_cnn(4), tmp_path / "sparse").eval()
    rows = {row.split()[0]: row.split()[1] for row in shown.splitlines() if row.split()[1:2]}
    for name, weight in model.named_parameters():
        if weight.ndim > 1 and not name.startswith("head"):
            zeros = float((weight == 0).double().mean())
            assert rows[name] == f"{zeros:.1%}"
            assert zeros > 0.4
    assert "head.weight" not in rows
    assert bool((model.head.weight != 0).all())
    images, labels = next(iter(load_data(load_recipe(recipe).data, ()).validation))
    with torch.no_grad():
        right = float((model(images[:40]).argmax(1) == labels[:40]).double().mean())
    assert f"{100 * right:.2f} % after" in shown
    assert "linear in CSR" in shown
    assert "accuracy on 40 validation samples" in shown


def test_offloading_goes_to_the_folder_beside_the_recipe_and_changes_nothing(
    capsys, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert code("sparsify", recipe, "--out", tmp_path / "whole") == 0
    folder = recipe.parent / "parked"
    recipe.write_text(recipe.read_text().replace("leave: [head]", "leave: [head], offload: {folder: parked}"))
    assert code("sparsify", recipe, "--out", tmp_path / "parts") == 2
    assert f"{str(folder)!r}" in capsys.readouterr().err
    folder.mkdir()
    seen = []
    honest = command.sparsify
    monkeypatch.setattr(command, "sparsify", lambda *a, **k: seen.append(k["offload"]) or honest(*a, **k))
    assert code("sparsify", recipe, "--out", tmp_path / "parts", "--set", "sparsify.offload.memory_bytes=1000") == 0
    assert seen == [sc.Offload(str(folder), memory_bytes=1000)] and not list(folder.iterdir())
    one, two = (sc.load(lambda: digits_cnn(4), tmp_path / name).state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    monkeypatch.chdir(tmp_path)
    there = load_recipe(recipe, ["sparsify.offload.folder=elsewhere"]).sparsify
    assert there.offload.folder == str(tmp_path / "elsewhere") and there.offload.memory_bytes == 2**28


def test_a_loss_that_grows_is_lost(capsys, recipe: Path, tmp_path: Path) -> None:
    much = "sparsify={sparsity: 0.95, method: magnitude, recalibrate: false}"
    words = ("--set", "metric=cross_entropy", "--set", much)
    assert code("sparsify", recipe, "--out", tmp_path / "sparse", *words) == 0
    found = re.search(r"samples: (\S+) before, (\S+) after; lost (\S+) ±", capsys.readouterr().out)
    assert found is not None
    before, after, lost = map(float, found.groups())
    assert before != after
    assert lost == pytest.approx(after - before, abs=2e-3)


def test_commands_say_which_recipe_is_theirs(capsys, recipe: Path, tmp_path: Path) -> None:
    assert code("prune", recipe, "--out", tmp_path / "run") == 2
    assert "run `secateur sparsify`" in capsys.readouterr().err
    recipe.write_text(recipe.read_text().split("sparsify:")[0] + "tolerance: 0.02\n")
    assert code("sparsify", recipe, "--out", tmp_path / "run") == 2
    assert "has no sparsify: part" in capsys.readouterr().err
    recipe.write_text(recipe.read_text() + "sparsify: {sparsity: 0.5}\n")
    with pytest.raises(RecipeError, match="exactly one of tolerance, budget and sparsify"):
        load_recipe(recipe)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("sparsity=1.5", "sparsify.sparsity"),
        ("pattern=3:", "sparsify.pattern"),
        ("method=obd", "sparsify.method"),
        ("levels=3", "unknown key 'sparsify.levels'"),
        ("offload={folder: x, memory_bytes: -1}", "sparsify.offload.memory_bytes"),
        ("offload={memory_bytes: 1}", "sparsify.offload.folder"),
    ],
)
def test_what_a_recipe_may_not_say(recipe: Path, given: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        load_recipe(recipe, [f"sparsify.{given}"])


def test_a_pattern_that_does_not_fit_is_wrong_usage(capsys, recipe: Path, tmp_path: Path) -> None:
    for pattern in ("5:4", "blocks 0x1", "blocks 2x1"):
        # Blocks are a pattern, but none of OBC's.
        words = ("--set", f"sparsify.pattern='{pattern}'", "--out", tmp_path / "none")
        assert code("sparsify", recipe, *words) == 2
        assert "error: " in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_every_name_of_a_recipe_is_a_setting() -> None:
    assert set(METHODS) == set(get_args(MethodName))
    assert set(ALLOCATIONS) == set(get_args(AllocationName))
    found = wanted_of(SparsifyPart(sparsity=0.3, method="wanda-refit", allocation="lamp", leave=("fc",)))
    assert found == sc.Sparsity(0.3, sc.Unstructured(), sc.Masked("wanda", refit=True), ALLOCATIONS["lamp"], ("fc",))
