"""How long work tells that it goes on; showing it is left to the caller."""

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Protocol


class Advance(Protocol):
    """Called as work is done."""

    def __call__(self, steps: int = 1, note: str = "") -> None:
        """`steps` more are done; `note` says which."""


class Progress(Protocol):
    """Shows the stages of a job."""

    def stage(self, name: str, total: int | None) -> AbstractContextManager[Advance]:
        """A stage of `total` steps (None: not known) that ends with the context."""


class NoProgress:
    """Shows nothing."""

    @contextlib.contextmanager
    def stage(self, name: str, total: int | None) -> Iterator[Advance]:
        """A stage that is not shown."""
        yield lambda steps=1, note="": None
