"""Built-in data: digits, images in Parquet files, text."""

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from secateur.cli.recipe import Rows
from secateur.errors import DataError, MissingExtraError

Tensors = tuple[Tensor, Tensor]


def digits() -> Tensors:
    """scikit-learn's 1,797 handwritten digits, in a fixed random order.

    Returns:
        Images (1797, 1, 8, 8) in [0, 1], and labels (1797,).

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError(
            "the digits need scikit-learn; install it with: pip install 'secateur[demo]'"
        ) from error
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(images / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
    return x[order], torch.tensor(labels)[order]


IMAGE_COLUMNS = ("image", "img", "jpg", "png")
LABEL_COLUMNS = ("label", "labels", "target", "fine_label")


def parquet_images(
    path: Path, start: int, stop: int | None, *, image: str | None = None, label: str | None = None
) -> Tensors:
    """Rows of encoded images (bytes, or a struct with `bytes`) and integer labels.

    Args:
        path: a Parquet file.
        start: first row.
        stop: one past the last row; None = all.
        image: column of images; None = the first of `IMAGE_COLUMNS` that the file has.
        label: column of labels; None = the first of `LABEL_COLUMNS` that the file has.

    Returns:
        uint8 images (samples, 3, height, width), and labels (samples,).

    Raises:
        MissingExtraError: pyarrow or Pillow is not installed.
        DataError: the file cannot be read, has no such columns or rows, a label is not an integer, or
            its images differ in size.
    """
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtraError("Parquet files need pyarrow; install it with: pip install 'secateur[data]'") from error
    try:
        columns = parquet.read_schema(path).names
        column = _column(columns, (image,) if image else IMAGE_COLUMNS, path)
        target = _column(columns, (label,) if label else LABEL_COLUMNS, path)
        table = parquet.read_table(path, columns=[column, target])
    except DataError:
        raise
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path} as a Parquet file: {error}") from error
    _check_rows(table.num_rows, start, stop, f"{path} has {table.num_rows} rows")
    rows = table.slice(start, None if stop is None else stop - start)
    raw = [r["bytes"] if isinstance(r, dict) else r for r in rows.column(column).to_pylist()]
    labels = rows.column(target).to_pylist()
    wrong = next((k for k, value in enumerate(labels) if not isinstance(value, int)), None)
    if wrong is not None:
        raise DataError(f"{path}, row {start + wrong}: {target} is {labels[wrong]!r}; needed an integer label")
    return _decoded(raw, path, start), torch.tensor(labels, dtype=torch.int64)


def text_lines(path: Path, start: int, stop: int | None, length: int, *, alphabet: str | None = None) -> Tensors:
    """One sample a line: its first `length` symbols, predicting each from those before.

    Lines of fewer than two symbols are left out; `start` and `stop` count the others.

    Args:
        path: UTF-8 text.
        start: first line.
        stop: one past the last line; None = all.
        length: symbols of a line that are read.
        alphabet: a symbol is a character, and its number is its place in here; None = a symbol is a byte.

    Returns:
        Symbols (lines, length - 1) and the next ones; what lies beyond a line's end is 0, its target is
        marked as ignored.
    """
    texts = _text(path).splitlines()
    coded = [list(t.encode()) for t in texts] if alphabet is None else [_codes(t, alphabet, path) for t in texts]
    long_enough = [codes[:length] for codes in coded if len(codes) > 1]
    count = len(long_enough)
    _check_rows(count, start, stop, f"{path} has {count} lines of two or more symbols")
    lines = long_enough[start:stop]
    inputs = torch.zeros(len(lines), length - 1, dtype=torch.int64)
    targets = torch.full_like(inputs, -100)
    for number, line in enumerate(lines):
        codes = torch.tensor(line)
        inputs[number, : len(codes) - 1] = codes[:-1]
        targets[number, : len(codes) - 1] = codes[1:]
    return inputs, targets


def text_chars(path: Path, start: int, stop: int | None, length: int, *, alphabet: str | None = None) -> Tensors:
    """Consecutive windows of characters, predicting each from those before.

    Args:
        path: UTF-8 text.
        start: first character.
        stop: one past the last character; None = all.
        length: of a window.
        alphabet: a character's number is its place in here; None = the file's own characters, sorted.

    Returns:
        Characters (windows, length) and the next ones.
    """
    text = _text(path)
    _check_rows(len(text), start, stop, f"{path} has {len(text)} characters")
    codes = torch.tensor(_codes(text[start:stop], alphabet or alphabet_of([path]), path), dtype=torch.int64)
    windows = (len(codes) - 1) // length
    if windows < 1:
        raise DataError(f"{path}: the split has {len(codes)} characters; needed more than {length}")
    return codes[: windows * length].reshape(windows, length), codes[1 : windows * length + 1].reshape(windows, length)


def alphabet_of(paths: Iterable[Path]) -> str:
    """All characters of some files, in the order of their code points.

    Splits that lie in different files share one alphabet, or the same number would mean another
    character in each.
    """
    return "".join(sorted(set().union(*(_text(path) for path in paths))))


def rows_of(tensors: Tensors, rows: Rows, where: str = "the data") -> Tensors:
    """A range of samples."""
    count = len(tensors[0])
    _check_rows(count, rows.start, rows.stop, f"{where} has {count} rows")
    return tensors[0][rows.start : rows.stop], tensors[1][rows.start : rows.stop]


def _check_rows(count: int, start: int, stop: int | None, what: str) -> None:
    if start >= count or (stop is not None and stop > count):
        raise DataError(f"{what}; the split asks for {start} up to {'the end' if stop is None else stop}")


def _column(columns: Sequence[str], wanted: Sequence[str], path: Path) -> str:
    found = next((name for name in wanted if name in columns), None)
    if found is None:
        raise DataError(
            f"{path} has the columns {list(columns)}; needed {' or '.join(wanted)}: name others with "
            "data.image_column and data.label_column"
        )
    return found


def _codes(text: str, alphabet: str, path: Path) -> list[int]:
    number = {character: k for k, character in enumerate(alphabet)}
    try:
        return [number[character] for character in text]
    except KeyError as error:
        raise DataError(f"{path} holds the character {error}, which the alphabet lacks; add it at its end") from error


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path} as UTF-8 text: {error}") from error


def _decoded(raw: Sequence[Any], path: Path, first: int) -> Tensor:
    try:
        import numpy as np
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError("images need Pillow; install it with: pip install 'secateur[data]'") from error
    arrays = []
    for number, data in enumerate(raw, start=first):
        try:
            arrays.append(torch.from_numpy(np.array(Image.open(io.BytesIO(data)).convert("RGB"))))
        # Pillow's decoders fail with any of these.
        except (OSError, SyntaxError, ValueError, TypeError, Image.DecompressionBombError) as error:
            raise DataError(f"{path}, row {number}: not an image that can be decoded: {error}") from error
    if len({a.shape for a in arrays}) > 1:
        raise DataError(
            f"{path}: images have different sizes {sorted({tuple(a.shape) for a in arrays})[:3]}; resize them"
        )
    return torch.stack(arrays).permute(0, 3, 1, 2).contiguous()
