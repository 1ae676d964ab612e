"""Progress on a terminal as a bar, elsewhere as a plain line now and then."""

import contextlib
import sys
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress as Bars, TextColumn, TimeRemainingColumn

from secateur.progress import Advance, Progress

SECONDS_BETWEEN_LINES = 5.0


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
                bars.update(task, advance=steps, description=f"{name} {note}"[:48])

            yield advance


class PlainProgress:
    """A line at most every few seconds, for logs."""

    @contextlib.contextmanager
    def stage(self, name: str, total: int | None) -> Iterator[Advance]:
        """A stage of `total` steps."""
        done, last = 0, time.monotonic()

        def advance(steps: int = 1, note: str = "") -> None:
            nonlocal done, last
            done += steps
            if time.monotonic() - last >= SECONDS_BETWEEN_LINES:
                last = time.monotonic()
                sys.stderr.write(f"{name}: {done}{f' of {total}' if total else ''} {note}".rstrip() + "\n")

        yield advance


def make_progress() -> Progress:
    """Bars on a terminal, lines elsewhere."""
    return TerminalProgress() if sys.stderr.isatty() else PlainProgress()
