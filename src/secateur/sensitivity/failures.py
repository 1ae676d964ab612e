"""Points that cannot be measured, and how to tell when it is none of their doing."""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

from secateur.errors import WorkerError
from secateur.sensitivity.measure import Point, Tally, Unmeasured

logger = logging.getLogger(__name__)

WITNESSES = 3
"""Points, of as many groups, that all fail in the same words before anything is measured: then it is not the points."""


def across_groups(points: Sequence[Point]) -> list[Point]:
    """The first point of each group, then the second of each, and so on."""
    by_group: dict[str, list[Point]] = {}
    for point in points:
        by_group.setdefault(point.group.name, []).append(point)
    return [point for row in zip_longest(*by_group.values()) for point in row if point is not None]


def shared_reason(failed: Iterable[Unmeasured], points: Sequence[Point]) -> str | None:
    """The reason in the words of which three points of three groups failed (all, where there are fewer); else None.

    To be asked only while nothing is measured.
    """
    enough_groups = min(WITNESSES, len({point.group.name for point in points}))
    enough = min(WITNESSES, len(points))
    alike: dict[str, set[tuple[str, int]]] = {}
    for one in failed:
        own = alike.setdefault(one.reason, set())
        own.add((one.group, one.width))
        if len(own) >= enough and len({group for group, _ in own}) >= enough_groups:
            return one.reason
    return None


def untried(point: Point, reason: str) -> Unmeasured:
    """A point that was not tried, as others failed for this reason."""
    return Unmeasured(point.group.name, point.width, 0, reason)


@dataclass(frozen=True, eq=False)
class Patient:
    """Measures points, but none again that could not be measured.

    Attributes:
        points: all there are.
        measure: (points, boundaries) -> what it took.
        lost: (group, width) of those that could not be measured.
    """

    points: Sequence[Point]
    measure: Callable[[Sequence[Point], Sequence[float]], Tally]
    lost: set[tuple[str, int]] = field(default_factory=set)

    def __call__(self, points: Sequence[Point], boundaries: Sequence[float]) -> Tally:
        """Fill in points.

        Raises:
            WorkerError: nothing was measured, and workers could not measure a single point. Where it was this process,
                what the first point raised.
        """
        tally = self.measure([p for p in points if (p.group.name, p.width) not in self.lost], boundaries)
        self.lost.update((one.group, one.width) for one in tally.unmeasured)
        if tally.unmeasured and not any(point.seen for point in self.points):
            first = max(tally.unmeasured, key=lambda one: one.attempts)
            if first.error is None:
                raise WorkerError(f"no point could be measured: {first}")
            first.error.add_note(f"raised at {first.group} at width {first.width}; no point could be measured")
            raise first.error
        for one in tally.unmeasured:
            logger.warning("could not be measured, and is left out of its curve: %s", one)
        return tally
