"""The command line: strict recipes, guarded imports, exit codes, data."""

import io
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from secateur import errors
from secateur.cli.batches import TensorBatches, flip_crop
from secateur.cli.data_sources import digits, parquet_images, text_chars, text_lines
from secateur.cli.imports import resolve
from secateur.cli.main import EXIT_CODES, run
from secateur.cli.recipe import load_recipe
from secateur.errors import DataError, RecipeError
from secateur.progress_bars import PlainProgress

GOOD = "model: {ref: digits-cnn}\ndata: {kind: digits}\ntolerance: 0.02\n"


def written(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def test_a_good_recipe_and_overrides(tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path, GOOD), ["data.batch_size=7", "model.weights=w.safetensors"])
    assert recipe.data.batch_size == 7 and recipe.tolerance == 0.02
    assert recipe.model.weights == str(Path.cwd() / "w.safetensors")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + "critrion: l1\n", r"unknown key 'critrion'; did you mean 'criterion'\?"),
        (GOOD.replace("kind: digits", "kind: digits, batchsize: 3"), r"'data.*batchsize'; did you mean 'batch_size'"),
        (GOOD + "folds: many\n", "folds: got 'many'"),
        (GOOD + "budget: {macs: 0.5}\n", "exactly one of tolerance, budget and sparsify"),
        (GOOD.replace("0.02", "1.5"), "tolerance: got 1.5"),
        ("data: {kind: digits}\ntolerance: 0.1\n", "'model' is missing"),
        ("- a\n- b\n", "holds a list"),
        ("model: [unclosed\n", "is not YAML"),
        ("a: !!python/object/apply:os.system ['true']\n", "is not YAML"),
    ],
)
def test_bad_recipes_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(written(tmp_path, text))


def test_a_yaml_bomb_is_refused_quickly(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 10)}]" for k in range(1, 9)]
    start = time.perf_counter()
    with pytest.raises(RecipeError, match="YAML aliases"):
        load_recipe(written(tmp_path, "\n".join(lines)))
    assert time.perf_counter() - start < 2
    with pytest.raises(RecipeError, match="bytes; a recipe has at most"):
        load_recipe(written(tmp_path, "a: " + "x" * 1_100_000))


def test_imports_need_consent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trap_module.py").write_text(
        "import pathlib\npathlib.Path(__file__).with_suffix('.ran').touch()\ndef f(): return 5\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(RecipeError, match="--allow-import trap_module"):
        resolve("trap_module:f", ())
    assert not (tmp_path / "trap_module.ran").exists()
    assert resolve("trap_module:f", ["trap_module"])() == 5
    for bad, message in (
        ("trap_module", "not a reference"),
        ("trap_module:g", "has no 'g'"),
        ("nowhere.x:f", "cannot"),
    ):
        with pytest.raises(RecipeError, match=message):
            resolve(bad, ["trap_module", "nowhere"])


def test_exit_codes_and_messages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def code(*arguments: str) -> int:
        with pytest.raises(SystemExit) as stopped:
            run(list(arguments))
        return int(stopped.value.code or 0)

    assert code("--help") == 0
    assert "Exit codes" in capsys.readouterr().out
    assert code("inspect", str(tmp_path / "none.yaml")) == 2
    assert "error: cannot read the recipe" in capsys.readouterr().err
    assert code("prune", str(written(tmp_path, GOOD)), "--out", str(tmp_path / "o")) == 2
    assert "random weights" in capsys.readouterr().err
    assert code("report", str(tmp_path)) == 6
    assert code("nonsense") == 2


def test_every_error_has_an_exit_code() -> None:
    kinds = [e for e in vars(errors).values() if isinstance(e, type) and e is not errors.SecateurError]
    assert {kind for kind, _ in EXIT_CODES} == set(kinds)


def test_help_is_quick() -> None:
    code = "import sys; from secateur.cli.main import app; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def encoded(array: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format=kind)
    return buffer.getvalue()


def test_parquet_images_round_trip(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 5, 4, 3), dtype=np.uint8)
    rows = [{"bytes": encoded(image), "path": None} for image in images]
    pq.write_table(pa.table({"img": rows, "label": list(range(6))}), tmp_path / "d.parquet")
    x, y = parquet_images(tmp_path / "d.parquet", 2, 5)
    assert torch.equal(x, torch.from_numpy(images[2:5]).permute(0, 3, 1, 2)) and y.tolist() == [2, 3, 4]


def test_bad_parquet_is_named(tmp_path: Path) -> None:
    path = tmp_path / "d.parquet"
    path.write_bytes(b"nonsense")
    with pytest.raises(DataError, match="cannot read"):
        parquet_images(path, 0, None)
    pq.write_table(pa.table({"x": [1]}), path)
    with pytest.raises(DataError, match=r"columns \['x'\]"):
        parquet_images(path, 0, None)
    pq.write_table(pa.table({"image": [b"no image"], "label": [0]}), path)
    with pytest.raises(DataError, match="row 0: not an image"):
        parquet_images(path, 0, None)


def test_text_targets_are_the_next_characters(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text("abcabcabcabcab\nccc\n")
    x, y = text_chars(path, 0, 13, 4)
    assert torch.equal(x.flatten()[1:], y.flatten()[:-1]) and x.shape == (3, 4)
    with pytest.raises(DataError, match="needed more than 40"):
        text_chars(path, 0, None, 40)
    lines, after = text_lines(path, 0, None, 8)
    assert bytes(lines[0].tolist()) == b"abcabca" and bytes(after[0].tolist()) == b"bcabcab"
    assert after[1].tolist() == [99, 99, -100, -100, -100, -100, -100]


def test_digits_are_fixed() -> None:
    (x, y), (again, _) = digits(), digits()
    assert x.shape == (1797, 1, 8, 8) and torch.equal(x, again) and float(x.min()) >= 0 and float(x.max()) <= 1
    assert len(y.unique()) == 10


def test_batches_shuffle_by_the_ambient_random_state_only() -> None:
    data = TensorBatches(torch.arange(10.0), torch.arange(10), 4, shuffle=True)
    torch.manual_seed(0)
    first = torch.cat([x for x, _ in data])
    torch.manual_seed(0)
    assert torch.equal(first, torch.cat([x for x, _ in data]))
    assert not torch.equal(first, torch.cat([x for x, _ in data]))
    assert sorted(first.tolist()) == list(range(10)) and len(data) == 3


def test_images_are_scaled_and_normalised() -> None:
    data = TensorBatches(
        torch.full((2, 3, 2, 2), 255, dtype=torch.uint8), torch.zeros(2), 2, False, (0.5,) * 3, (0.25,) * 3
    )
    assert torch.equal(next(iter(data))[0], torch.full((2, 3, 2, 2), 2.0))


def test_flip_crop_moves_whole_images() -> None:
    torch.manual_seed(0)
    x = torch.arange(1.0, 1 + 2 * 6 * 6).reshape(2, 1, 6, 6).repeat(50, 1, 1, 1)
    moved = flip_crop(x, shift=2)
    assert moved.shape == x.shape
    for before, after in zip(x, moved, strict=True):
        options = [
            torch.nn.functional.pad(f, (2, 2, 2, 2))[:, r : r + 6, c : c + 6]
            for f in (before, before.flip(2))
            for r in range(5)
            for c in range(5)
        ]
        assert any(torch.equal(after, option) for option in options)


def test_progress_is_plain_lines_when_not_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    now = iter([0.0, 0.0, 1.0, 90.0, 90.0, 91.0, 100.0, 100.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    with PlainProgress().stage("scan", 3) as advance:
        advance(1)
        advance(1, "conv1")
        advance(1)
        advance(0, "done")
    # Two in 90 seconds, so the third takes 45.
    assert capsys.readouterr().err == "scan: 2 of 3 conv1 (45 s left)\nscan: 3 of 3 done\n"


def test_ctrl_c_is_a_clean_end_that_can_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("secateur.cli.recipe.load_recipe", interrupted)
    with pytest.raises(SystemExit) as stopped:
        run(["prune", str(tmp_path / "r.yaml"), "--out", str(tmp_path)])
    assert stopped.value.code == 130
    assert "run the same command again to resume" in capsys.readouterr().err


def test_prune_scan_inspect_and_report_on_the_bundled_digits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import save_file

    from secateur.zoo.digits import digits_cnn

    torch.manual_seed(0)
    save_file(digits_cnn(8).state_dict(), tmp_path / "w.safetensors")
    recipe = written(
        tmp_path,
        "model: {ref: digits-cnn, weights: w.safetensors, arguments: {channels: 8}, example_batch: 4}\n"
        "data: {kind: digits, batch_size: 200, train: {stop: 64}, validation: {stop: 120}, test: {stop: 120}}\n"
        "budget: {macs: 0.5}\nsparsities: [0.5, 0.8]\nfolds: 2\ncontrols: [random]\ncalibration_samples: 32\n",
    )

    def printed(*arguments: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            run([*arguments])
        text = capsys.readouterr()
        assert stopped.value.code == 0, text.err
        assert max(map(len, text.out.splitlines())) <= 80 or "/" in max(text.out.splitlines(), key=len)
        return text.out

    assert "blocks.0.conv1" in printed("inspect", str(recipe))
    assert "accuracy lost" in printed("scan", str(recipe), "--out", str(tmp_path / "scan"))
    out = str(tmp_path / "run")
    first = printed("prune", str(recipe), "--out", out)
    assert "Assumed: The test samples are exchangeable" in " ".join(first.split())
    assert "MACs" in first and (tmp_path / "run" / "pruned" / "manifest.json").exists()
    # Run again, it resumes and says the same (timings aside).
    again = printed("prune", str(recipe), "--out", out)
    assert [line for line in again.splitlines() if "validation" in line] == [
        line for line in first.splitlines() if "validation" in line
    ]
    assert "MACs" in printed("report", out)
