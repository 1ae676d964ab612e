"""From a recipe's data to batches."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import nn

from secateur.cli import recipe as r
from secateur.cli.data_sources import alphabet_of, parquet_images, text_chars, text_lines
from secateur.cli.loaders import example_args, load_data, load_dense, load_factory
from secateur.errors import DataError, RecipeError


def image_file(path: Path, labels: list, column: str = "image", kind: str = "PNG") -> np.ndarray:
    images = np.random.default_rng(0).integers(0, 256, (len(labels), 6, 5, 3), dtype=np.uint8)
    cells = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, format=kind)
        cells.append(buffer.getvalue())
    pq.write_table(pa.table({column: cells, "label": labels}), path)
    return images


def test_rows_of_one_file_make_validation_and_test(tmp_path: Path) -> None:
    path = str(tmp_path / "d.parquet")
    images = image_file(tmp_path / "d.parquet", list(range(9)))
    part = r.ImagesData(
        kind="parquet-images",
        train=r.FileRows(file=path, stop=4),
        validation=r.FileRows(file=path, start=4, stop=6),
        test=r.FileRows(file=path, start=6),
        mean=(0.5, 0.25, 0.0),
        std=(0.5, 1.0, 2.0),
        augment="flip-crop",
        batch_size=2,
    )
    splits = load_data(part, ())
    assert [y.tolist() for _, y in splits.validation] == [[4, 5]]
    assert [y.tolist() for _, y in splits.test] == [[6, 7], [8]]
    assert sorted(k for _, y in splits.train for k in y.tolist()) == [0, 1, 2, 3]
    x = torch.cat([x for x, _ in splits.test])
    by_hand = (images[6:] / 255.0 - [0.5, 0.25, 0.0]) / [0.5, 1.0, 2.0]
    assert np.allclose(x.permute(0, 2, 3, 1).numpy(), by_hand, atol=1e-6)
    # Held-out data is the same in every pass; training data is shuffled and shifted.
    assert torch.equal(x, torch.cat([x for x, _ in splits.test]))
    assert splits.train.shuffle and splits.train.augment == "flip-crop"
    assert not splits.test.shuffle and splits.validation.augment == "none"
    (inputs,) = example_args(splits, 1)
    assert inputs.shape == (1, 3, 6, 5)


def test_jpeg_is_decoded_and_columns_can_be_named(tmp_path: Path) -> None:
    images = image_file(tmp_path / "d.parquet", [3, 4], column="picture", kind="JPEG")
    with pytest.raises(DataError, match=r"needed image or img or jpg or png: name others with data.image_column"):
        parquet_images(tmp_path / "d.parquet", 0, None)
    x, y = parquet_images(tmp_path / "d.parquet", 0, None, image="picture", label="label")
    assert x.shape == (2, 3, 6, 5) and x.dtype == torch.uint8 and y.tolist() == [3, 4]
    assert abs(float(x.float().mean()) - images.mean()) < 20


def test_bad_rows_are_named_by_their_place_in_the_file(tmp_path: Path) -> None:
    image_file(tmp_path / "d.parquet", [0, 1, None, 3])
    with pytest.raises(DataError, match="row 2: label is None; needed an integer"):
        parquet_images(tmp_path / "d.parquet", 1, None)
    with pytest.raises(DataError, match="has 4 rows; the split asks for 0 up to 5"):
        parquet_images(tmp_path / "d.parquet", 0, 5)
    with pytest.raises(DataError, match="has 4 rows; the split asks for 4 up to the end"):
        parquet_images(tmp_path / "d.parquet", 4, None)
    pq.write_table(pa.table({"image": [b"", b"GIF89a"], "label": [0, 1]}), tmp_path / "e.parquet")
    with pytest.raises(DataError, match="row 1: not an image"):
        parquet_images(tmp_path / "e.parquet", 1, None)


def test_splits_in_different_files_share_an_alphabet(tmp_path: Path) -> None:
    texts = {"train": "cabcabcab", "validation": "bbbbbb", "test": "cdcdcdcd"}
    rows = {}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
        rows[name] = r.FileRows(file=str(tmp_path / name))
    splits = load_data(r.CharactersData(kind="text-chars", length=4, **rows), ())
    held = [next(iter(split))[0][0].tolist() for split in (splits.validation, splits.test)]
    assert held == [[1, 1, 1, 1], [2, 3, 2, 3]]
    splits = load_data(r.LinesData(kind="text-lines", length=4, symbols="characters", alphabet="dcba", **rows), ())
    assert next(iter(splits.test))[0][0].tolist() == [1, 0, 1]
    with pytest.raises(DataError, match="holds the character 'd', which the alphabet lacks"):
        load_data(r.CharactersData(kind="text-chars", length=4, alphabet="abc", **rows), ())


def test_windows_tile_the_text_and_targets_come_one_later(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text("".join(chr(97 + k % 26) for k in range(60)))
    alphabet = alphabet_of([path])
    x, y = text_chars(path, 7, 53, 5, alphabet=alphabet)
    text = path.read_text()[7:53]
    assert x.shape == y.shape == (9, 5)
    assert "".join(alphabet[k] for k in x.flatten()) == text[:45]
    assert "".join(alphabet[k] for k in y.flatten()) == text[1:46]


def test_lines_are_counted_without_those_too_short_to_predict(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text("a\n\nbc\ndé\n")
    x, y = text_lines(path, 1, 2, 8)
    assert x[0, :2].tolist() == [ord("d"), 0xC3] and y[0, :3].tolist() == [0xC3, 0xA9, -100]
    x, y = text_lines(path, 1, 2, 8, alphabet="abcdé")
    assert x[0].tolist() == [3, 0, 0, 0, 0, 0, 0] and y[0].tolist() == [4, *[-100] * 6]
    with pytest.raises(DataError, match="has 2 lines of two or more symbols; the split asks for 0 up to 3"):
        text_lines(path, 0, 3, 8)


def test_digits_rows_count_within_each_split() -> None:
    part = r.DigitsData(kind="digits", validation=r.Rows(start=10, stop=20))
    whole, some = load_data(r.DigitsData(kind="digits", batch_size=2000), ()), load_data(part, ())
    sizes = [len(split.inputs) for split in (whole.train, whole.validation, whole.test)]
    assert sizes == [1000, 400, 397]
    assert torch.equal(some.validation.inputs, whole.validation.inputs[10:20])
    with pytest.raises(DataError, match=r"data.test of the digits has 397 rows"):
        load_data(r.DigitsData(kind="digits", test=r.Rows(stop=398)), ())


def test_a_missing_file_name_is_asked_for_before_anything_is_read() -> None:
    rows = r.FileRows(file="/nowhere")
    part = r.CharactersData(kind="text-chars", train=rows, validation=rows)
    with pytest.raises(RecipeError, match=r"data.test.file is missing.*--set data.test.file=PATH"):
        load_data(part, ())


def test_python_models_and_data(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "users_own.py").write_text(
        "import torch\n"
        "def build(width=3): return torch.nn.Linear(2, width)\n"
        "def wrong(): return 5\n"
        "def data(n): return tuple([(torch.ones(n, 2), torch.zeros(n))] for _ in range(3))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    allowed = ("users_own",)
    model = load_dense(r.ModelPart(ref="users_own:build", arguments={"width": 5}), allowed)
    assert isinstance(model, nn.Linear) and model.out_features == 5 and not model.training
    with pytest.raises(RecipeError, match=r"model.arguments do not fit 'users_own:build'.*depth"):
        load_factory(r.ModelPart(ref="users_own:build", arguments={"depth": 5}), allowed)()
    with pytest.raises(RecipeError, match=r"returned a int; needed a torch.nn.Module"):
        load_factory(r.ModelPart(ref="users_own:wrong"), allowed)()
    with pytest.raises(RecipeError, match="--allow-import users_own"):
        load_factory(r.ModelPart(ref="users_own:build"), ())
    with pytest.raises(RecipeError, match="'resnet21' is not known"):
        load_factory(r.ModelPart(ref="resnet21"), ())
    splits = load_data(r.PythonData(kind="python", ref="users_own:data", arguments={"n": 4}), allowed)
    assert example_args(splits, 3)[0].shape == (3, 2)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "w.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"nonsense")
    for name, message in (("w", "does not fit 'digits-cnn'"), ("bad", "cannot read"), ("none", "cannot read")):
        with pytest.raises(RecipeError, match=f"model.weights: .*{message}"):
            load_dense(r.ModelPart(ref="digits-cnn", weights=str(tmp_path / f"{name}.safetensors")), ())
