"""Measured points in SQLite: each is kept as soon as it is measured."""

import contextlib
import hashlib
import json
import logging
import mmap
import re
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from secateur.errors import StoreError
from secateur.storage.database import LOG, connect
from secateur.types import Floats

logger = logging.getLogger(__name__)

_SCHEMA = """CREATE TABLE IF NOT EXISTS points (
    key TEXT PRIMARY KEY, label TEXT NOT NULL, shapes TEXT NOT NULL, data BLOB NOT NULL, sha256 TEXT NOT NULL
) WITHOUT ROWID"""

_KEY = re.compile(rb"[0-9a-f]{64}")


@dataclass(frozen=True, eq=False)
class CurveStore:
    """Points by the SHA-256, as 64 hexadecimal digits, of everything they depend on.

    >>> with CurveStore.open(":memory:") as store:
    ...     store.put("c0" * 32, {"damage": np.array([0.0, 1.0])}, "a point")
    ...     store.get("c0" * 32), store.count()
    ({'damage': array([0., 1.])}, 1)
    """

    connection: sqlite3.Connection

    @staticmethod
    @contextlib.contextmanager
    def open(path: Path | str) -> Iterator["CurveStore"]:
        """Open or make a store; a damaged file is set aside, and each point that its key still leads to taken over.

        Args:
            path: of the file, in a folder that exists; or ":memory:".

        Raises:
            StoreError: the file cannot be opened; or it is damaged, and there is no room beside it for a copy.
        """
        connection = connect(path, _SCHEMA, "choose another file, in a folder that exists", _take_over)
        try:
            yield CurveStore(connection)
        finally:
            connection.close()

    def get(self, key: str) -> Mapping[str, Floats] | None:
        """The arrays under `key`; None if there are none or they were damaged.

        Raises:
            StoreError: the file cannot be read.
        """
        try:
            row = self.connection.execute("SELECT shapes, data, sha256 FROM points WHERE key = ?", (key,)).fetchone()
        except sqlite3.Error as error:
            raise StoreError(
                f"cannot read stored points: {error}; open the store anew, in which a damaged one is set aside, or "
                "choose another file"
            ) from error
        if row is None:
            return None
        shapes, data, digest = row
        if not _is_whole(shapes, data, digest):
            logger.warning("a stored point is damaged and will be measured again: %s", key)
            return None
        return _unpack(json.loads(shapes), data)

    def put(self, key: str, arrays: Mapping[str, Floats], label: str) -> None:
        """Keep float64 `arrays` under `key`; on disk when this returns.

        NaN is what is not known: what another process has found out of it stays.

        Raises:
            StoreError: the disk is full or fails; points kept before stay.
        """
        try:
            with self.connection:
                # So that nobody writes between what is read and what is written here.
                self.connection.execute("BEGIN IMMEDIATE")
                row = _row(key, label, _joined(arrays, self.get(key)))
                self.connection.execute("INSERT OR REPLACE INTO points VALUES (?, ?, ?, ?, ?)", row)
        except sqlite3.Error as error:
            raise StoreError(
                f"cannot keep the point {label!r}: {error}; points kept before are safe. "
                "Free space on the disk and run again to resume"
            ) from error

    def count(self) -> int:
        """Number of points."""
        return int(self.connection.execute("SELECT COUNT(*) FROM points").fetchone()[0])


def _take_over(file: Path, damaged: sqlite3.Connection, fresh: sqlite3.Connection) -> int:
    """Each point by its key, as one page that cannot be read ends a walk over all of them."""
    # Damage to a label, which only people read, must not cost its point.
    damaged.text_factory = lambda text: text.decode(errors="replace")
    keys = sorted(_keys_in(file) | _keys_in(file.with_name(file.name + LOG)))
    rows = (row for key in keys if (row := _whole_row(damaged, key)) is not None)
    with fresh:
        return fresh.executemany("INSERT INTO points VALUES (?, ?, ?, ?, ?)", rows).rowcount


def _whole_row(damaged: sqlite3.Connection, key: str) -> tuple[Any, ...] | None:
    try:
        query = "SELECT key, label, shapes, data, sha256 FROM points WHERE key = ?"
        row: tuple[Any, ...] | None = damaged.execute(query, (key,)).fetchone()
    except sqlite3.Error:
        return None
    return row if row is not None and _is_whole(*row[2:]) else None


def _keys_in(file: Path) -> set[str]:
    """All that may be a key in the bytes of a file: SQLite writes text as it is, and short text in one piece."""
    if not file.exists() or not file.stat().st_size:
        return set()
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as raw:
        return {found[0].decode() for found in _KEY.finditer(raw)}


def _joined(arrays: Mapping[str, Floats], known: Mapping[str, Floats] | None) -> Mapping[str, Floats]:
    """The arrays, with what is known where they are NaN."""
    if known is None or {n: a.shape for n, a in known.items()} != {n: a.shape for n, a in arrays.items()}:
        return arrays
    return {name: np.where(np.isnan(array), known[name], array) for name, array in arrays.items()}


def _row(key: str, label: str, arrays: Mapping[str, Floats]) -> tuple[str, str, str, bytes, str]:
    shapes = json.dumps({name: list(array.shape) for name, array in arrays.items()})
    data = b"".join(np.ascontiguousarray(array, dtype="<f8").tobytes() for array in arrays.values())
    return key, label, shapes, data, _digest(shapes, data)


def _is_whole(shapes: object, data: object, digest: object) -> bool:
    # Damage may change a value's type too.
    return isinstance(shapes, str) and isinstance(data, bytes) and _digest(shapes, data) == digest


def _digest(shapes: str, data: bytes) -> str:
    return hashlib.sha256(shapes.encode() + data).hexdigest()


def _unpack(shapes: Mapping[str, list[int]], data: bytes) -> dict[str, Floats]:
    flat = np.frombuffer(data, dtype="<f8").astype(np.float64)
    found, start = {}, 0
    for name, shape in shapes.items():
        size = int(np.prod(shape))
        found[name] = flat[start : start + size].reshape(shape)
        start += size
    return found
