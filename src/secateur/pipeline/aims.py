"""Objectives by name."""

from collections.abc import Sequence

import numpy as np

from secateur.allocation.objectives import EqualDamage, GlobalThreshold, LeastDamage, Objective, UniformDensity
from secateur.errors import ArgumentError
from secateur.surgery.plan import Scores

Aim = str | Objective
"""A name of `OBJECTIVES`, or an objective."""

OBJECTIVES = ("least damage", "equal damage", "global threshold", "uniform")


def objective_of(aim: Aim, scores: Scores) -> Objective:
    """The objective of this name; one that is given stays as it is.

    Args:
        aim: a name of `OBJECTIVES`, or an objective.
        scores: of the units, for a global threshold.

    >>> objective_of("uniform", {})
    UniformDensity()
    """
    if not isinstance(aim, str):
        return aim
    match aim:
        case "least damage":
            return LeastDamage()
        case "equal damage":
            return EqualDamage()
        case "uniform":
            return UniformDensity()
        case _:
            return GlobalThreshold({n: np.asarray(s, dtype=np.float64) for n, s in scores.items()})


def check_aims(aims: Sequence[Aim]) -> None:
    """Refuse a name that is no objective's.

    Raises:
        ArgumentError: such a name.
    """
    unknown = [aim for aim in aims if isinstance(aim, str) and aim not in OBJECTIVES]
    if unknown:
        raise ArgumentError(f"objective {unknown[0]!r} is not known; use any of {list(OBJECTIVES)}, or an objective")
