"""Everything a run leaves, from which it resumes; one process at a time."""

import contextlib
import fcntl
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur.errors import StoreError
from secateur.storage.atomic import write_json

SETTINGS = "settings.json"


@dataclass(frozen=True)
class RunDirectory:
    """A directory that this process holds.

    Attributes:
        path: where it is.
        resumed: it was there before, with the same settings.
    """

    path: Path
    resumed: bool


@contextlib.contextmanager
def open_run(path: Path, settings: Mapping[str, Any]) -> Iterator[RunDirectory]:
    """Make a run directory, or resume in it.

    Args:
        path: the directory.
        settings: what defines the run; must be the same when it resumes.

    Raises:
        StoreError: another process holds the directory, or it belongs to a run with other settings.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = (path / ".lock").open("w")
    except OSError as error:
        raise StoreError(f"cannot use {path} as a run directory: {error.strerror or error}; choose another") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StoreError(
                f"{path} is in use by another process; wait for it, or choose another directory"
            ) from error
        # Through JSON and back, so that tuples and lists compare equal.
        wanted = json.loads(json.dumps(dict(settings)))
        known = _read(path / SETTINGS)
        if known is not None:
            _check_same(path, known, wanted)
        else:
            write_json(path / SETTINGS, wanted)
        yield RunDirectory(path, known is not None)


def _read(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        return dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise StoreError(f"{path} is damaged ({error}); delete its directory, or choose another") from error


def _check_same(path: Path, known: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    names = [name for name in sorted(set(known) | set(wanted)) if known.get(name) != wanted.get(name)]
    if names:
        there = ", ".join(f"{name}={known.get(name)}" for name in names)
        here = ", ".join(f"{name}={wanted.get(name)}" for name in names)
        raise StoreError(
            f"{path} belongs to a run with {there}; this one has {here}: choose another directory, delete that one, "
            "or go on with what it was begun with (data drawn at random need a fixed seed to be the same again)"
        )
