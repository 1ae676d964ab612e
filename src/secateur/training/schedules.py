"""Schedules: how fast the rounds approach the final sparsity."""

from collections.abc import Callable
from dataclasses import dataclass

from secateur.errors import ArgumentError

Shape = Callable[[float], float]


@dataclass(frozen=True)
class Schedule:
    """A function from round to the share of the way that is done after it.

    Attributes:
        name: for people and settings.
        rounds: number of rounds.
        shape: share of the rounds that are done, in [0, 1] -> share of the way, in [0, 1]; monotone.
    """

    name: str
    rounds: int
    shape: Shape

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ArgumentError(f"a schedule needs at least one round; got rounds={self.rounds}")

    def __call__(self, number: int) -> float:
        """Share of the way done after round `number`, counted from 0; 1 from the last round on."""
        return 1.0 if number >= self.rounds - 1 else self.shape((number + 1) / self.rounds)

    def __repr__(self) -> str:
        return f"{self.name}, {self.rounds} round{'s' if self.rounds > 1 else ''}"


def one_shot() -> Schedule:
    """Everything in one round.

    >>> one_shot()(0)
    1.0
    """
    return Schedule("one-shot", 1, lambda t: t)


def linear(rounds: int) -> Schedule:
    """Equal steps.

    >>> [linear(4)(k) for k in range(4)]
    [0.25, 0.5, 0.75, 1.0]
    """
    return Schedule("linear", rounds, lambda t: t)


def cubic(rounds: int) -> Schedule:
    """Large steps first, while there is much to spare: `1 - (1 - t)³`.

    Source: Zhu & Gupta 2017, arXiv:1710.01878.

    >>> [cubic(2)(k) for k in range(2)]
    [0.875, 1.0]
    """
    return Schedule("cubic", rounds, lambda t: 1 - (1 - t) ** 3)


def exponential(rounds: int) -> Schedule:
    """Each round halves what is left of the way, the last does the rest.

    >>> [exponential(3)(k) for k in range(3)]
    [0.5, 0.75, 1.0]
    """
    return Schedule("exponential", rounds, lambda t: 1 - 0.5 ** (t * rounds))


def resolve_schedule(schedule: str | Schedule, *, rounds: int) -> Schedule:
    """A schedule by name, with `rounds` rounds; one that is already is given back.

    Raises:
        ArgumentError: an unknown name.
    """
    if isinstance(schedule, Schedule):
        return schedule
    known = {"linear": linear, "cubic": cubic, "exponential": exponential}
    if schedule == "one-shot":
        return one_shot()
    if schedule not in known:
        raise ArgumentError(f"schedule {schedule!r} is not known; use one of {['one-shot', *known]}")
    return known[schedule](rounds)
