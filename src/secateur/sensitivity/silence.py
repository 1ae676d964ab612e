"""How long a worker may say nothing before it is taken to hang."""

from collections.abc import Iterable
from dataclasses import dataclass, field

BEAT_S = 0.5
"""A worker tells so often that it goes on, as far as the runs of a batch for a single point end."""

LEAST_LIMIT_S = 4 * BEAT_S
"""Less would take workers for hung that are not."""

FIRST_LIMIT_S = 3600.0
"""Where none was given, until a worker was heard for the first time."""

USUAL_LIMIT_S = 300.0
TIMES_THE_LONGEST = 20.0
"""Where none was given: the greater of five minutes and so many times the longest silence that ended by itself."""

TICK_S = 1.0
"""Longest time that is waited, and counted, at once: one in which this process itself was stopped says nothing."""


@dataclass(eq=False)
class Silences:
    """Of workers that have something to do.

    Attributes:
        limit_s: given by the user; None: derived from what is heard.
        lasting_s: worker -> seconds since it was last heard, as far as they were spent listening.
        longest_s: that ended by itself; 0 = none was heard yet.

    >>> silences = Silences(None)
    >>> for _ in range(30): silences.listened(1.0, [0, 1])
    >>> silences.heard(0)
    >>> silences.allowed_s, silences.lasting_s
    (600.0, {1: 30.0})
    """

    limit_s: float | None
    lasting_s: dict[int, float] = field(default_factory=dict)
    longest_s: float = 0.0

    def listened(self, seconds: float, workers: Iterable[int]) -> None:
        """So long was waited for any message of these workers."""
        for worker in workers:
            self.lasting_s[worker] = self.lasting_s.get(worker, 0.0) + min(seconds, TICK_S)

    def heard(self, worker: int) -> None:
        """A message of a worker came, or no more is expected."""
        self.longest_s = max(self.longest_s, self.lasting_s.pop(worker, 0.0))

    @property
    def allowed_s(self) -> float:
        """How long a worker may say nothing."""
        if self.limit_s is not None:
            return self.limit_s
        return max(USUAL_LIMIT_S, TIMES_THE_LONGEST * self.longest_s) if self.longest_s else FIRST_LIMIT_S

    def hung(self) -> list[int]:
        """The workers that have said nothing for longer; they are listened to no more."""
        found = [worker for worker, seconds in self.lasting_s.items() if seconds > self.allowed_s]
        for worker in found:
            del self.lasting_s[worker]
        return found
