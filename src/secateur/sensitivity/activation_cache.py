"""Activations at a few cut points of the program, from which later walks over the same samples start.

A scan comes back to samples where it halves, where it goes on with some points after a race, and with each task of a
worker. What it walked before need not be walked again as far as memory allows. What is kept was computed by a walk from
the start, so that the values are those of one, bit for bit.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.utils import _pytree as pytree

from secateur.data import Batch
from secateur.sensitivity.probe import Probe
from secateur.sensitivity.replay import Environment
from secateur.sensitivity.stages import Samples
from secateur.types import Floats

UNITS = 256
"""Into which memory is divided where cut points are chosen."""


@dataclass(frozen=True)
class Place:
    """A position of the program at which runs of points begin.

    Attributes:
        position: number of calls before it.
        work_s: seconds from the start to it.
        size_bytes: of what is alive there, for one sample.
    """

    position: int
    work_s: float
    size_bytes: float


def cut_points(places: Sequence[Place], bound_bytes: float) -> list[int]:
    """The positions to keep activations at, so that walks to each of `places` by itself take the least work.

    A walk starts at the last cut point before its place. Exact but for sizes, which are rounded up to parts of
    the bound: a shortest path over the last cut point and the memory taken so far.

    Args:
        places: in order of the program.
        bound_bytes: for one sample.

    >>> places = [Place(2, 1.0, 4.0), Place(5, 3.0, 4.0), Place(9, 3.5, 4.0)]
    >>> cut_points(places, 4.0), cut_points(places, 8.0), cut_points(places, 0.0)
    ([5], [2, 5], [])
    """
    work = np.array([0.0] + [place.work_s for place in places])
    taken = [_units(place.size_bytes, bound_bytes) for place in places]
    # least[k][m]: the work to all places up to `k`, which is a cut point (0: the start), with m units taken.
    least = np.full((len(places) + 1, UNITS + 1), np.inf)
    least[0] = 0.0
    before = np.zeros((len(places) + 1, UNITS + 1), dtype=np.int64)
    for last in range(1, len(places) + 1):
        own = taken[last - 1]
        if own <= UNITS:
            found = least[:last, : UNITS + 1 - own] + _work_between(work, last)[:, None]
            least[last, own:], before[last, own:] = found.min(axis=0), found.argmin(axis=0)
    total = least[:, UNITS] + _work_between(work, len(work))
    chosen, last, left = [], int(np.argmin(total)), UNITS
    while last:
        chosen.append(places[last - 1].position)
        last, left = int(before[last, left]), left - taken[last - 1]
    return chosen[::-1]


def _work_between(work: Floats, stop: int) -> Floats:
    """Of walks to each place before `stop` from the last cut point, for each that it may be."""
    upto = np.concatenate([[0.0], np.cumsum(work[:stop])])
    places = np.arange(1, stop + 1)
    return np.asarray(upto[stop] - upto[places] - (stop - places) * work[:stop])


def _units(size_bytes: float, bound_bytes: float) -> int:
    """Parts of the bound, rounded up; more than all of them where it does not fit."""
    if size_bytes > bound_bytes:
        return UNITS + 1
    return int(np.ceil(size_bytes / bound_bytes * UNITS)) if size_bytes else 0


class ActivationCache:
    """What is kept of walks over the batches of one scan.

    Which cut points, is decided on the first batch: there, time and memory are measured.

    Attributes:
        left_bytes: of its memory.
    """

    def __init__(self, prober: Probe, memory_bytes: int) -> None:
        self.left_bytes = memory_bytes
        self._prober = prober
        self._bound_bytes = memory_bytes / max(len(prober.baseline.loss), 1)
        self._cuts: frozenset[int] | None = None if memory_bytes else frozenset()
        self._alive: dict[bytes, dict[int, Environment]] = {}

    def of(self, batch: Batch, samples: Samples) -> "KeptBatch":
        """What is kept of a batch, for one walk.

        Args:
            batch: on the device of the model.
            samples: their positions in the validation data.
        """
        if self._cuts is None:
            self._cuts = frozenset(cut_points(profile(self._prober, batch), self._bound_bytes))
        return KeptBatch(self, self._cuts, self._alive.setdefault(samples.tobytes(), {}) if self._cuts else {})


@dataclass(eq=False)
class KeptBatch:
    """What is kept of walks over one batch, as one more walk sees it; see `Kept`.

    Attributes:
        cache: whose memory it takes.
        cuts: positions at which something may be kept.
        alive: what is kept, by position.
        walked: whether this walk went where nothing was kept.
    """

    cache: ActivationCache
    cuts: frozenset[int]
    alive: dict[int, Environment]
    walked: bool = False

    def latest(self, position: int) -> tuple[int, Environment] | None:
        """The last cut point up to a position, and what is alive there."""
        at = max((cut for cut in self.alive if cut <= position), default=None)
        return None if at is None else (at, self.alive[at])

    def offer(self, position: int, alive: Environment) -> bool:
        """Keep what is alive at a position, if it is a cut point and there is room."""
        self.walked = True
        if position not in self.cuts:
            return False
        size_bytes = bytes_of(alive)
        if size_bytes > self.cache.left_bytes:
            return False
        self.cache.left_bytes -= size_bytes
        self.alive[position] = alive
        return True


@dataclass(eq=False)
class _Meter:
    """Measures a walk; keeps nothing."""

    started_s: float
    cuts: frozenset[int] = frozenset()
    places: list[tuple[int, float, int]] = field(default_factory=list)

    def latest(self, position: int) -> None:
        return None

    def offer(self, position: int, alive: Environment) -> bool:
        self.places.append((position, time.perf_counter() - self.started_s, bytes_of(alive)))
        return False


def profile(prober: Probe, batch: Batch) -> list[Place]:
    """The places at which the groups of a probe begin to matter, measured on a batch.

    A group that is read by the very first call has none: nothing is walked to it.
    """
    assert prober.replay is not None
    positions = sorted({prober.replay.first(prober.changed([group])) for group in prober.groups})
    meter = _Meter(time.perf_counter())
    for _ in prober.replay.walk(batch, positions, meter):
        pass
    return [Place(position, work_s, size / batch.size) for position, work_s, size in meter.places]


def bytes_of(alive: Environment) -> int:
    """The memory in which tensors lie, each piece of it once.

    >>> bytes_of({"a": torch.zeros(4), "b": torch.zeros(2, dtype=torch.float64)[:1]})
    32
    """
    leaves = (leaf for leaf in pytree.tree_leaves(dict(alive)) if isinstance(leaf, torch.Tensor))
    storages = {leaf.untyped_storage().data_ptr(): leaf.untyped_storage().nbytes() for leaf in leaves}
    return sum(storages.values())
