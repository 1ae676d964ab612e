"""What an allocation aims at: the least total damage, or one rule for all groups."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from secateur.allocation.knapsack import Levels, Of, monotone_damage, search_knapsack
from secateur.allocation.limits import Limit, holds
from secateur.allocation.problem import Problem
from secateur.allocation.solve import is_solvable, solve
from secateur.errors import ArgumentError, as_number
from secateur.types import Curves, Floats, Separable


@dataclass(frozen=True)
class Proposal:
    """Levels within all bounds.

    Attributes:
        levels: one for each group.
        bound: the least total damage that is possible; 0 if nothing is known of it.
    """

    levels: Mapping[str, int]
    bound: float = 0.0


class Objective(Protocol):
    """A way to choose a level for each group."""

    def __call__(self, curves: Curves, limits: Sequence[Limit]) -> Proposal | None:
        """Levels within all limits; None if even the narrowest widths are not."""


@dataclass(frozen=True)
class LeastDamage:
    """The least sum of single damages.

    Exact where costs are sums of parts of a few groups (multiply-adds, parameters, bytes, measured latency): see
    `allocation.solve`. A cost that is only a function, or that ties too many groups together (dense concatenations),
    is taken around the present choice, and no bound is known then.

    Attributes:
        of: "loss" or "metric": which damages add up. Loss does so better than accuracy.
        gap: fraction of the damage by which the answer may miss the least; curves are noisier than that.
        limit_s: seconds for the solver; what follows them takes a few tenths more where groups are many.
    """

    of: Of = "loss"
    gap: float = 1e-3
    limit_s: float = 2.5

    def __post_init__(self) -> None:
        check_of(self.of)
        if not (as_number("gap", self.gap) >= 0 and as_number("limit_s", self.limit_s) >= 0):
            raise ArgumentError(f"gap={self.gap} and limit_s={self.limit_s} must be at least 0")

    def __call__(self, curves: Curves, limits: Sequence[Limit]) -> Proposal | None:
        """Levels within all limits; None if even the narrowest widths are not."""
        damages = {name: monotone_damage(curve, self.of) for name, curve in curves.items()}
        narrowest = {name: len(curve.widths) - 1 for name, curve in curves.items()}
        if not holds(limits, widths_of(curves, narrowest)):
            return None
        if not curves:
            return Proposal({})
        for shrink in (1.0, 1 - 1e-9):
            problem = _problem(curves, damages, limits, shrink)
            found = None if problem is None else solve(problem, gap=self.gap, limit_s=self.limit_s)
            levels = {} if found is None else dict(zip(curves, found.levels, strict=True))
            # Sums of floats depend on their order: the cost itself has the last word.
            if found is not None and holds(limits, widths_of(curves, levels)):
                return Proposal(levels, found.bound)
        return Proposal(search_knapsack(curves, damages, 1.0, _share(limits)) or narrowest)


@dataclass(frozen=True)
class EqualDamage:
    """Every group as far as its own damage stays under one value, the lowest with which the cost fits.

    Attributes:
        of: "loss" or "metric": the damage that is compared.
    """

    of: Of = "loss"

    def __post_init__(self) -> None:
        check_of(self.of)

    def __call__(self, curves: Curves, limits: Sequence[Limit]) -> Proposal | None:
        """Levels within all limits; None if even the narrowest widths are not."""
        damages = {name: monotone_damage(curve, self.of) for name, curve in curves.items()}
        values = np.unique(np.concatenate(list(damages.values())))

        def at(step: int) -> Levels:
            return {
                name: int(np.searchsorted(damage, values[step], side="right")) - 1 for name, damage in damages.items()
            }

        return _mildest(at, len(values), curves, limits)


@dataclass(frozen=True, eq=False)
class GlobalThreshold:
    """Every unit whose score is under one value goes, the lowest with which the cost fits.

    Each group keeps the next wider level of its curve.

    Attributes:
        scores: group name -> scores of its units, as `score` gives them.
    """

    scores: Mapping[str, Floats] = field(default_factory=dict)

    def __call__(self, curves: Curves, limits: Sequence[Limit]) -> Proposal | None:
        """Levels within all limits; None if even the narrowest widths are not.

        Raises:
            ArgumentError: a group without scores, or with NaN among them.
        """
        missing = sorted(curves.keys() - self.scores.keys())
        if missing:
            raise ArgumentError(f"there are no scores for {missing[0]!r}: pass those of every group that has a curve")
        scores = {name: np.sort(np.asarray(self.scores[name], dtype=np.float64).ravel()) for name in curves}
        for name, own in scores.items():
            if not len(own) or np.isnan(own).any():
                raise ArgumentError(f"the {len(own)} scores of {name!r} must be numbers, one for each of its units")
        values = np.concatenate([[-math.inf], np.unique(np.concatenate(list(scores.values()))), [math.inf]])

        def at(step: int) -> Levels:
            return {name: _level(curves[name].widths, _share_kept(scores[name], values[step])) for name in curves}

        return _mildest(at, len(values), curves, limits)


@dataclass(frozen=True)
class UniformDensity:
    """The same density for every group, as nearly as the levels of the curves allow: the largest that fits."""

    def __call__(self, curves: Curves, limits: Sequence[Limit]) -> Proposal | None:
        """Levels within all limits; None if even the narrowest widths are not."""
        densities = sorted({w / c.widths[0] for c in curves.values() for w in c.widths}, reverse=True)

        def at(step: int) -> Levels:
            return {name: _level(curve.widths, densities[step]) for name, curve in curves.items()}

        return _mildest(at, len(densities), curves, limits)


def check_of(of: str) -> None:
    """Refuse what is no kind of damage.

    Raises:
        ArgumentError: neither "loss" nor "metric".
    """
    if of not in ("loss", "metric"):
        raise ArgumentError(f'of={of!r} is not known: "loss" or "metric" damages add up')


def widths_of(curves: Curves, levels: Mapping[str, int]) -> dict[str, int]:
    """Units kept in a row of each group."""
    return {name: curves[name].widths[level] for name, level in levels.items()}


def _share(limits: Sequence[Limit]) -> Callable[[Mapping[str, int]], float]:
    """How much of its bound the cost takes that takes the most."""
    return lambda widths: max(limit.cost(widths) / limit.bound if limit.bound > 0 else math.inf for limit in limits)


def _problem(curves: Curves, damages: Mapping[str, Floats], limits: Sequence[Limit], shrink: float) -> Problem | None:
    """Tables for the solver; None if a cost has none, or they tie too many groups together."""
    place = {name: number for number, name in enumerate(curves)}
    levels = {name: curve.widths for name, curve in curves.items()}
    costs = []
    for limit in limits:
        if not isinstance(limit.cost, Separable) or limit.bound <= 0:
            return None
        parts = []
        for names, table in limit.cost.parts(levels):
            order = sorted(range(len(names)), key=lambda k: place[names[k]])
            parts.append((tuple(place[names[k]] for k in order), np.asarray(table).transpose(order)))
        costs.append(parts)
    found = Problem([damages[name] for name in curves], costs, np.array([limit.bound for limit in limits]) * shrink)
    return found if is_solvable(found) else None


def _mildest(at: Callable[[int], Levels], steps: int, curves: Curves, limits: Sequence[Limit]) -> Proposal | None:
    """The first of ever narrower choices that fits; costs fall from one to the next."""
    low, high = 0, steps - 1
    if not holds(limits, widths_of(curves, at(high))):
        return None
    while low < high:
        middle = (low + high) // 2
        if holds(limits, widths_of(curves, at(middle))):
            high = middle
        else:
            low = middle + 1
    return Proposal(at(low))


def _share_kept(ascending: Floats, threshold: float) -> float:
    return 1 - float(np.searchsorted(ascending, threshold, side="left")) / len(ascending)


def _level(widths: Sequence[int], density: float) -> int:
    """The narrowest level that keeps at least `density`."""
    return max(k for k, width in enumerate(widths) if k == 0 or width >= density * widths[0] * (1 - 1e-12))
