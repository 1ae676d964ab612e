"""Measured points in SQLite: each is kept as soon as it is measured."""

import contextlib
import hashlib
import json
import logging
import mmap
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from secateur.errors import StoreError
from secateur.storage.database import connect
from secateur.storage.salvage import salvaged
from secateur.types import Floats

logger = logging.getLogger(__name__)

_SCHEMA = """CREATE TABLE IF NOT EXISTS points (
    key TEXT PRIMARY KEY, label TEXT NOT NULL, shapes TEXT NOT NULL, data BLOB NOT NULL, sha256 TEXT NOT NULL
) WITHOUT ROWID"""
COLUMNS = 5


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
        """Open or make a store; a damaged file is set aside, and each point that is whole in it taken over.

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
        found = _unpack(*row)
        if found is None:
            logger.warning("a stored point is damaged and will be measured again: %s", key)
        return found

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
                self._join(key, arrays, label)
        except sqlite3.Error as error:
            raise StoreError(
                f"cannot keep the point {label!r}: {error}; points kept before are safe. "
                "Free space on the disk and run again to resume"
            ) from error

    def _join(self, key: str, arrays: Mapping[str, Floats], label: str) -> None:
        row = _row(key, label, _joined(arrays, self.get(key)))
        self.connection.execute("INSERT OR REPLACE INTO points VALUES (?, ?, ?, ?, ?)", row)

    def count(self) -> int:
        """Number of points."""
        return int(self.connection.execute("SELECT COUNT(*) FROM points").fetchone()[0])


def _take_over(damaged: Path, fresh: sqlite3.Connection) -> int:
    store = CurveStore(fresh)
    with fresh, damaged.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as raw:
        for row in salvaged(raw):
            if len(row) == COLUMNS and isinstance(row[0], str) and (arrays := _unpack(*row[2:])) is not None:
                # What was replaced, and still stands on a free page, holds less of the same.
                store._join(row[0], arrays, str(row[1]))
    return store.count()


def _joined(arrays: Mapping[str, Floats], known: Mapping[str, Floats] | None) -> Mapping[str, Floats]:
    """The arrays, with what is known where they are NaN."""
    if known is None or {n: a.shape for n, a in known.items()} != {n: a.shape for n, a in arrays.items()}:
        return arrays
    return {name: np.where(np.isnan(array), known[name], array) for name, array in arrays.items()}


def _row(key: str, label: str, arrays: Mapping[str, Floats]) -> tuple[str, str, str, bytes, str]:
    shapes = json.dumps({name: list(array.shape) for name, array in arrays.items()})
    data = b"".join(np.ascontiguousarray(array, dtype="<f8").tobytes() for array in arrays.values())
    return key, label, shapes, data, _digest(shapes, data)


def _digest(shapes: str, data: bytes) -> str:
    return hashlib.sha256(shapes.encode() + data).hexdigest()


def _unpack(shapes: object, data: object, digest: object) -> dict[str, Floats] | None:
    """The arrays; None if they are damaged, which may change a value's type too."""
    if not isinstance(shapes, str) or not isinstance(data, bytes) or _digest(shapes, data) != digest:
        return None
    flat = np.frombuffer(data, dtype="<f8").astype(np.float64)
    found, start = {}, 0
    for name, shape in json.loads(shapes).items():
        size = int(np.prod(shape))
        found[name] = flat[start : start + size].reshape(shape)
        start += size
    return found
