"""Progress on a terminal as a bar, elsewhere as a plain line now and then."""

import contextlib
import sys
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress as Bars, TextColumn, TimeRemainingColumn

from secateur.progress import Advance, Progress

SECONDS_BETWEEN_LINES = 5.0
WIDTH = 60
"""Characters of what is said beside a bar."""


class TerminalProgress:
    """A bar for the running stage; it goes when the stage ends."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)

    @contextlib.contextmanager
    def stage(self, name: str, total: int | None) -> Iterator[Advance]:
        """A stage of `total` steps."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Bars(*columns, console=self._console, transient=True) as bars:
            task = bars.add_task(name, total=total)

            def advance(steps: int = 1, note: str = "") -> None:
                bars.update(task, advance=steps, description=f"{name} {note}"[:WIDTH])

            yield advance


class PlainProgress:
    """A line at most every few seconds, over all stages together, for logs."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    @contextlib.contextmanager
    def stage(self, name: str, total: int | None) -> Iterator[Advance]:
        """A stage of `total` steps."""
        done, start = 0, time.monotonic()

        def advance(steps: int = 1, note: str = "") -> None:
            nonlocal done
            done += steps
            if time.monotonic() - self._last >= SECONDS_BETWEEN_LINES:
                self._last = time.monotonic()
                parts = [f"{name}: {done}{f' of {total}' if total else ''}", note]
                if total and 0 < done < total:
                    parts.append(f"({time_left((self._last - start) / done * (total - done))})")
                sys.stderr.write(" ".join(part for part in parts if part) + "\n")

        yield advance


def time_left(seconds: float) -> str:
    """Roughly, in words.

    >>> time_left(42), time_left(150)
    ('42 s left', '3 min left')
    """
    return f"{seconds:.0f} s left" if seconds < 60 else f"{-(-seconds // 60):.0f} min left"


def make_progress() -> Progress:
    """What every `progress=` takes: bars on a terminal; elsewhere, lines at least five seconds apart; on stderr.

    >>> with make_progress().stage("scan", 2) as advance:
    ...     advance(1, note="conv1")
    """
    return TerminalProgress() if sys.stderr.isatty() else PlainProgress()
