"""SQLite files that may be damaged, and must not take anything with them."""

import logging
import sqlite3
from pathlib import Path

from secateur.errors import StoreError

logger = logging.getLogger(__name__)


def connect(path: Path | str, schema: str, remedy: str) -> sqlite3.Connection:
    """Open or make a file with a write-ahead log; a damaged one is set aside and a new one begun.

    Args:
        path: of the file, or ":memory:".
        schema: what makes its tables, where they are not there.
        remedy: what the user can do when it cannot be opened.

    Raises:
        StoreError: the file cannot be opened.
    """
    try:
        return _open_checked(path, schema)
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):
            raise StoreError(f"cannot open {path}: {error}; {remedy}") from error
        aside = _free_name(Path(path))
        Path(path).rename(aside)
        logger.warning("%s is damaged (%s); it was set aside as %s and a new store begun", path, error, aside.name)
        return _open_checked(path, schema)


def _open_checked(path: Path | str, schema: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path)
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


def _free_name(path: Path) -> Path:
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    return aside
