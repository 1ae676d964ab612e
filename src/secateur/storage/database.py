"""SQLite files that may be damaged, and must not take anything with them."""

import contextlib
import logging
import sqlite3
from collections.abc import Callable
from pathlib import Path

from secateur.errors import StoreError

logger = logging.getLogger(__name__)

SECONDS_TO_WAIT = 60.0
"""For another process that writes to the same file."""

TakeOver = Callable[[sqlite3.Connection, sqlite3.Connection], int]
"""(damaged, new) -> how many entries could be read in the one and were written to the other."""


def take_nothing(damaged: sqlite3.Connection, fresh: sqlite3.Connection) -> int:
    """Begin anew."""
    return 0


def connect(path: Path | str, schema: str, remedy: str, take_over: TakeOver = take_nothing) -> sqlite3.Connection:
    """Open or make a file with a write-ahead log; a damaged one is set aside and a new one begun.

    Args:
        path: of the file, or ":memory:".
        schema: what makes its tables, where they are not there.
        remedy: what the user can do when it cannot be opened.
        take_over: saves what it can of a damaged file.

    Raises:
        StoreError: the file cannot be opened.
    """
    try:
        return _open_checked(path, schema)
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):
            raise StoreError(f"cannot open {path}: {error}; {remedy}") from error
        aside = _set_aside(Path(path))
        fresh = _open_checked(path, schema)
        saved = 0
        with contextlib.closing(sqlite3.connect(aside)) as damaged, contextlib.suppress(sqlite3.DatabaseError):
            saved = take_over(damaged, fresh)
        logger.warning(
            "%s is damaged (%s); it was set aside as %s and a new store begun, with the %d entries that could be read",
            path, error, aside.name, saved,
        )  # fmt: skip
        return fresh


def _open_checked(path: Path | str, schema: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=SECONDS_TO_WAIT)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        state = connection.execute("PRAGMA quick_check").fetchone()[0]
        if state != "ok":
            raise sqlite3.DatabaseError(state)
        connection.execute(schema)
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _set_aside(path: Path) -> Path:
    """Rename a file together with its log, which SQLite would else take for that of the new one."""
    aside = _free_name(path)
    for suffix in ("", "-wal", "-shm"):
        part = path.with_name(path.name + suffix)
        if part.exists():
            part.rename(aside.with_name(aside.name + suffix))
    return aside


def _free_name(path: Path) -> Path:
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    return aside
