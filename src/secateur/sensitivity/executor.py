"""Where points are measured: in this process, in others, or on other machines; the curves are the same, bit for bit."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from secateur.errors import ArgumentError
from secateur.measures.evaluate import device_of
from secateur.progress import Advance
from secateur.sensitivity.activation_cache import ActivationCache
from secateur.sensitivity.measure import Point, PointStore, Tally
from secateur.sensitivity.memory import quarter_of_free_memory
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

    def start(self, prober: Probe, *, again: bool = False) -> AbstractContextManager[Measure]:
        """Make ready to measure the points of a probe, until the context ends.

        Args:
            prober: of the points.
            again: samples will be come back to, with other points or for more of them.
        """


@dataclass(frozen=True)
class SerialExecutor:
    """Measures in this process, with as many threads as torch has here.

    Attributes:
        cache_bytes: of activations that are kept where samples are come back to, see `ActivationCache`; 0 = none, and
            None: a quarter of the free memory.
    """

    cache_bytes: int | None = None

    def __post_init__(self) -> None:
        check_cache(self.cache_bytes)

    @contextmanager
    def start(self, prober: Probe, *, again: bool = False) -> Iterator[Measure]:
        """Make room for activations, if they will be used again."""
        yield partial(run_points, prober, cache=new_cache(prober, self.cache_bytes) if again else None)


def check_cache(cache_bytes: int | None) -> None:
    """Raise an error where it is out of range."""
    if cache_bytes is not None and cache_bytes < 0:
        raise ArgumentError(f"cache_bytes={cache_bytes} must be at least 0, or None for a quarter of the free memory")


def new_cache(prober: Probe, cache_bytes: int | None, sharing: int = 1) -> ActivationCache:
    """A cache of so many bytes; of a quarter of the free memory if None, or its part where workers share a machine."""
    if cache_bytes is None:
        cache_bytes = quarter_of_free_memory(device_of(prober.model)) // sharing
    return ActivationCache(prober, cache_bytes)
