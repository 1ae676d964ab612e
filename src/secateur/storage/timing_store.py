"""Seconds of operators in SQLite, so that a device is timed once."""

import contextlib
import os
import platform
import sqlite3
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from secateur.errors import StoreError
from secateur.storage.database import connect

_SCHEMA = "CREATE TABLE IF NOT EXISTS timings (key TEXT PRIMARY KEY, seconds REAL) WITHOUT ROWID"
IN_MEMORY = ":memory:"


@dataclass(frozen=True, eq=False)
class TimingStore:
    """Seconds by device, threads, versions and call; NULL for a call that does not run."""

    connection: sqlite3.Connection

    @staticmethod
    @contextlib.contextmanager
    def open(path: Path | str) -> Iterator["TimingStore"]:
        """Open or make a store; a damaged file is set aside and a new one begun.

        Raises:
            StoreError: the file cannot be opened.
        """
        if str(path) != IN_MEMORY:
            try:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StoreError(f"cannot make the folder of {path}: {error.strerror}; pass another cache=") from error
        connection = connect(path, _SCHEMA, "pass another cache=")
        try:
            yield TimingStore(connection)
        finally:
            connection.close()

    def known(self, device: str) -> dict[str, float | None]:
        """Call -> seconds, of everything timed on `device`.

        >>> with TimingStore.open(":memory:") as store:
        ...     store.put("cpu", {"aten.relu(4)": 1e-6})
        ...     store.known("cpu"), store.known("gpu")
        ({'aten.relu(4)': 1e-06}, {})
        """
        start = len(device) + 1
        rows = self.connection.execute(
            "SELECT substr(key, ?), seconds FROM timings WHERE substr(key, 1, ?) = ?", (start + 1, start, device + "\n")
        )
        return dict(rows.fetchall())

    def put(self, device: str, seconds: Mapping[str, float | None]) -> None:
        """Keep timings, all or none of them; on disk when this returns.

        Raises:
            StoreError: the disk is full or fails.
        """
        rows = [(f"{device}\n{call}", taken) for call, taken in seconds.items()]
        try:
            with self.connection:
                self.connection.executemany("INSERT OR REPLACE INTO timings VALUES (?, ?)", rows)
        except sqlite3.Error as error:
            raise StoreError(f"cannot keep {len(rows)} timings: {error}; free space, or pass another cache=") from error


def device_key(device: torch.device) -> str:
    """All that timings of one call depend on besides the call: device, threads, torch's version."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{_processor()} {torch.backends.cpu.get_cpu_capability()} {os.cpu_count()}"
    return f"{device.type} {name}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def user_cache() -> Path:
    """The file in the user's own cache directory."""
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "secateur" / "timings.sqlite"


def _processor() -> str:
    """The processor's model, as the system tells it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
