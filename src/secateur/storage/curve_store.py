"""Measured points in SQLite: each is kept as soon as it is measured."""

import contextlib
import hashlib
import json
import logging
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from secateur.errors import StoreError
from secateur.storage.database import connect
from secateur.types import Floats

logger = logging.getLogger(__name__)

_SCHEMA = """CREATE TABLE IF NOT EXISTS points (
    key TEXT PRIMARY KEY, label TEXT NOT NULL, shapes TEXT NOT NULL, data BLOB NOT NULL, sha256 TEXT NOT NULL
) WITHOUT ROWID"""


@dataclass(frozen=True, eq=False)
class CurveStore:
    """Points by the hash of everything they depend on."""

    connection: sqlite3.Connection

    @staticmethod
    @contextlib.contextmanager
    def open(path: Path) -> Iterator["CurveStore"]:
        """Open or make a store; a damaged file is set aside, and what is whole in it taken over into a new one.

        Raises:
            StoreError: the file cannot be opened.
        """
        connection = connect(path, _SCHEMA, "choose another run directory", _take_over)
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
        if _digest(shapes, data) != digest:
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


def _take_over(damaged: sqlite3.Connection, fresh: sqlite3.Connection) -> int:
    saved = 0
    for key, label in damaged.execute("SELECT key, label FROM points").fetchall():
        with contextlib.suppress(StoreError):
            arrays = CurveStore(damaged).get(key)
            if arrays is not None:
                CurveStore(fresh).put(key, arrays, label)
                saved += 1
    return saved


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


def _unpack(shapes: Mapping[str, list[int]], data: bytes) -> dict[str, Floats]:
    flat = np.frombuffer(data, dtype="<f8").astype(np.float64)
    found, start = {}, 0
    for name, shape in shapes.items():
        size = int(np.prod(shape))
        found[name] = flat[start : start + size].reshape(shape)
        start += size
    return found
