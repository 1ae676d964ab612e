"""Built-in data: digits, images in Parquet files, text."""

import io
from collections.abc import Sequence
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


def parquet_images(path: Path, start: int, stop: int | None) -> Tensors:
    """Rows of encoded images (bytes, or a struct with `bytes`) and integer labels.

    Returns:
        uint8 images (samples, 3, height, width), and labels (samples,).

    Raises:
        MissingExtraError: pyarrow or Pillow is not installed.
        DataError: the file cannot be read, has no such columns, or its images differ in size.
    """
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtraError("Parquet files need pyarrow; install it with: pip install 'secateur[data]'") from error
    try:
        table = parquet.read_table(path)
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path} as a Parquet file: {error}") from error
    column = next((n for n in ("image", "img", "jpg", "png") if n in table.column_names), None)
    label = next((n for n in ("label", "labels", "target", "fine_label") if n in table.column_names), None)
    if column is None or label is None:
        raise DataError(f"{path} has the columns {table.column_names}; needed image or img, and label")
    rows = table.slice(start, None if stop is None else stop - start)
    raw = [r["bytes"] if isinstance(r, dict) else r for r in rows.column(column).to_pylist()]
    return _decoded(raw, path), torch.tensor(rows.column(label).to_pylist(), dtype=torch.int64)


def text_lines(path: Path, start: int, stop: int | None, length: int) -> Tensors:
    """One sample a line: its first `length` bytes, predicting each from those before.

    Returns:
        Bytes (lines, length - 1) and the next bytes; what lies beyond a line's end is marked as ignored.
    """
    lines = [line.encode()[:length] for line in _text(path).splitlines() if len(line.encode()) > 1][start:stop]
    inputs = torch.zeros(len(lines), length - 1, dtype=torch.int64)
    targets = torch.full_like(inputs, -100)
    for number, line in enumerate(lines):
        codes = torch.tensor(list(line))
        inputs[number, : len(codes) - 1] = codes[:-1]
        targets[number, : len(codes) - 1] = codes[1:]
    return inputs, targets


def text_chars(path: Path, start: int, stop: int | None, length: int) -> Tensors:
    """Consecutive windows of characters, predicting each from those before.

    Characters are numbered in the order of their code points over the whole file, so that all splits of
    a file share them. `start` and `stop` count characters.

    Returns:
        Characters (windows, length) and the next ones.
    """
    text = _text(path)
    number = {character: k for k, character in enumerate(sorted(set(text)))}
    codes = torch.tensor([number[c] for c in text[start:stop]], dtype=torch.int64)
    windows = (len(codes) - 1) // length
    if windows < 1:
        raise DataError(f"{path}: the split has {len(codes)} characters; needed more than {length}")
    return codes[: windows * length].reshape(windows, length), codes[1 : windows * length + 1].reshape(windows, length)


def rows_of(tensors: Tensors, rows: Rows) -> Tensors:
    """A range of samples."""
    return tensors[0][rows.start : rows.stop], tensors[1][rows.start : rows.stop]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path} as UTF-8 text: {error}") from error


def _decoded(raw: Sequence[Any], path: Path) -> Tensor:
    try:
        import numpy as np
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise MissingExtraError("images need Pillow; install it with: pip install 'secateur[data]'") from error
    arrays = []
    for number, data in enumerate(raw):
        try:
            arrays.append(torch.from_numpy(np.array(Image.open(io.BytesIO(data)).convert("RGB"))))
        except (UnidentifiedImageError, OSError, TypeError) as error:
            raise DataError(f"{path}, row {number}: not an image that can be decoded: {error}") from error
    if len({a.shape for a in arrays}) > 1:
        raise DataError(
            f"{path}: images have different sizes {sorted({tuple(a.shape) for a in arrays})[:3]}; resize them"
        )
    if not arrays:
        raise DataError(f"{path}: the split has no rows; check start and stop")
    return torch.stack(arrays).permute(0, 3, 1, 2).contiguous()
