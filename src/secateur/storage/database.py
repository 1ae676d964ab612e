"""SQLite files that may be damaged, and must not take anything with them."""

import contextlib
import logging
import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from pathlib import Path

from secateur.errors import StoreError

logger = logging.getLogger(__name__)

SECONDS_TO_WAIT = 60.0
"""For another process that writes to the same file."""

LOG = "-wal"
"""What SQLite adds to a file's name for that of its write-ahead log."""

TakeOver = Callable[[Path, sqlite3.Connection], int]
"""(a copy of the damaged file, the new one) -> how many entries could be read and were written to the new one."""


def take_nothing(damaged: Path, fresh: sqlite3.Connection) -> int:
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
    except sqlite3.OperationalError as error:
        raise StoreError(f"cannot open {path}: {error}; {remedy}") from error
    except sqlite3.DatabaseError as error:
        try:
            return _renewed(Path(path), schema, take_over, str(error))
        except (OSError, sqlite3.Error) as problem:
            raise StoreError(
                f"{path} is damaged ({error}), and what can be read of it cannot be taken over: {problem}; it was left "
                f"as it is; free space on the disk, or {remedy}"
            ) from problem


def _renewed(path: Path, schema: str, take_over: TakeOver, error: str) -> sqlite3.Connection:
    """A new file in the place of a damaged one, which is touched only once the new one is complete."""
    with tempfile.TemporaryDirectory(prefix=path.name, dir=path.parent) as folder:
        copy, new = Path(folder) / "copy", Path(folder) / "new"
        _copy_with_log(path, copy)
        with contextlib.closing(_open_checked(new, schema)) as fresh:
            saved = take_over(copy, fresh)
        with contextlib.suppress(sqlite3.DatabaseError):
            # Another process may have renewed it meanwhile.
            return _open_checked(path, schema)
        aside = _set_aside(path)
        new.rename(path)
    logger.warning(
        "%s is damaged (%s); it was set aside as %s and a new store begun, with the %d entries that could be read",
        path, error, aside.name, saved,
    )  # fmt: skip
    return _open_checked(path, schema)


def _copy_with_log(path: Path, copy: Path) -> None:
    """Copy a file, and write what stands in its log into the copy if SQLite still can."""
    shutil.copyfile(path, copy)
    log = path.with_name(path.name + LOG)
    if log.exists():
        shutil.copyfile(log, copy.with_name(copy.name + LOG))
        with contextlib.suppress(sqlite3.DatabaseError), contextlib.closing(sqlite3.connect(copy)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _open_checked(path: Path | str, schema: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=SECONDS_TO_WAIT)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        state = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if state != "ok":
            # The line before says of which database.
            raise sqlite3.DatabaseError(state.splitlines()[-1])
        connection.execute(schema)
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _set_aside(path: Path) -> Path:
    """Rename a file together with its log, which SQLite would else take for that of the new one."""
    aside = _free_name(path)
    for suffix in ("", LOG, "-shm"):
        part = path.with_name(path.name + suffix)
        if part.exists():
            part.rename(aside.with_name(aside.name + suffix))
    return aside


def _free_name(path: Path) -> Path:
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    return aside
