"""Where points are measured: in this process, in others, or on other machines; the curves are the same, bit for bit."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from secateur.progress import Advance
from secateur.sensitivity.measure import Point, PointStore, Tally
from secateur.sensitivity.probe import Probe
from secateur.sensitivity.racing import Racing
from secateur.sensitivity.run import run_points


class Measure(Protocol):
    """Fills in points; may be called many times."""

    def __call__(
        self,
        points: Sequence[Point],
        racing: Racing | None,
        boundaries: Sequence[float],
        store: PointStore | None,
        advance: Advance,
    ) -> Tally:
        """See `run_points`."""


class Executor(Protocol):
    """Decides where points are measured."""

    def start(self, prober: Probe) -> AbstractContextManager[Measure]:
        """Make ready to measure the points of a probe, until the context ends."""


@dataclass(frozen=True)
class SerialExecutor:
    """Measures in this process, with as many threads as torch has here."""

    @contextmanager
    def start(self, prober: Probe) -> Iterator[Measure]:
        """Nothing needs to be made ready."""
        yield partial(run_points, prober)
