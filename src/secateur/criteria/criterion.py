"""The extension point: a criterion turns statistics into one score a unit."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor

from secateur.criteria.parts import Combination, Measured, Part, check_combination, combine
from secateur.criteria.statistics import WEIGHTS, Statistics
from secateur.errors import ArgumentError, NumericalError, PlanError
from secateur.types import Group, Note


@runtime_checkable
class Criterion(Protocol):
    """A rule that scores the units of a group; higher = keep.

    Any function of a group and statistics is one; without `needs` it may read the weights.

    Attributes:
        needs: names of the statistics that it reads (see `criteria.statistics`).
    """

    @property
    def needs(self) -> frozenset[str]:
        """Names of the statistics that the criterion reads."""

    def __call__(self, group: Group, statistics: Statistics) -> Tensor:
        """Scores, float64 (units,)."""


@runtime_checkable
class Measures(Protocol):
    """A criterion that says what it found in each tied slice."""

    def measured(self, group: Group, statistics: Statistics) -> Measured:
        """What each slice says of its units."""


@runtime_checkable
class WeightCriterion(Protocol):
    """A criterion that scores single weights too."""

    def weights(self, parameter: str, statistics: Statistics) -> Tensor:
        """Scores of the elements of a parameter, in its shape; higher = keep."""


Function = Callable[[Group, Statistics], Tensor]
Normalisation = Literal["none", "mean", "max", "size", "standardised"]
NORMALISATIONS = ("none", "mean", "max", "size", "standardised")


@dataclass(frozen=True, eq=False)
class Scores(Mapping[str, Tensor]):
    """Group name -> scores of its units, float64 (units,), higher = keep.

    Attributes:
        values_by_group: the scores.
        notes: what was unusual: damping that had to be raised.
    """

    values_by_group: Mapping[str, Tensor]
    notes: tuple[Note, ...] = ()

    def __getitem__(self, group: str) -> Tensor:
        return self.values_by_group[group]

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_by_group)

    def __len__(self) -> int:
        return len(self.values_by_group)


def needs_of(criterion: Criterion | Function) -> frozenset[str]:
    """The statistics that a criterion reads; the weights, if it does not say."""
    return frozenset(getattr(criterion, "needs", {WEIGHTS}))


def score(
    groups: Iterable[Group],
    statistics: Statistics,
    criterion: Criterion | Function,
    *,
    combination: Combination | None = None,
    normalisation: Normalisation = "none",
) -> Scores:
    """Score every unit of every group.

    Args:
        groups: from `find_groups`.
        statistics: from `collect`, with the criterion's `needs`.
        criterion: a criterion, or any function of a group and statistics.
        combination: how what tied slices say of a unit becomes one score: "sum", "mean", "max", "norm", or a
            number p for the p-norm; None: the criterion's own way. A unit that is measured whole (by its gate) has
            one part, which no combination changes.
        normalisation: across groups: "none"; "mean" or "max": divided by the group's mean or maximum of
            absolute scores; "size": divided by the number of parameter elements that go with a unit;
            "standardised": minus the group's mean, divided by its standard deviation.

    Returns:
        Group name -> float64 (units,), higher = keep; with notes.

    Raises:
        ArgumentError: a statistic is missing; or an unknown combination or normalisation.
        PlanError: the criterion gives another number of scores, or says nothing of a unit.
        NumericalError: a score is NaN.

    >>> import torch
    >>> group = Group("fc", 2, ())
    >>> score([group], Statistics(), lambda group, statistics: torch.tensor([1.0, 3.0]), normalisation="mean")["fc"]
    tensor([0.5000, 1.5000], dtype=torch.float64)
    """
    if combination is not None:
        check_combination(combination)
    if normalisation not in NORMALISATIONS:
        raise ArgumentError(f"normalisation is {normalisation!r}; needed one of {', '.join(NORMALISATIONS)}")
    scores, notes = {}, []
    for group in groups:
        found = _measured(criterion, group, statistics)
        values = _combined(criterion, group, found, combination)
        scores[group.name] = _normalised(values, group, statistics, normalisation)
        notes += [Note(group.name, text) for text in found.notes]
    return Scores(scores, tuple(notes))


def scores_of(criterion: Measures, group: Group, statistics: Statistics) -> Tensor:
    """Scores of a group, its parts combined in the criterion's own way."""
    return _combined(criterion, group, criterion.measured(group, statistics), None)


def _measured(criterion: Criterion | Function, group: Group, statistics: Statistics) -> Measured:
    if isinstance(criterion, Measures):
        return criterion.measured(group, statistics)
    values = criterion(group, statistics)
    if values.shape != (group.size,):
        raise PlanError(
            f"{criterion!r} gave scores of shape {tuple(values.shape)} for group {group.name!r}; needed ({group.size},)"
        )
    return Measured((Part(0, values.detach().double().cpu()),))


def _combined(criterion: Any, group: Group, found: Measured, combination: Combination | None) -> Tensor:
    if any(bool(part.values.isnan().any()) for part in found.parts):
        raise NumericalError(f"{criterion!r} gave NaN for group {group.name!r}; check the calibration data")
    values = combine(found.parts, group.size, found.combination if combination is None else combination)
    silent = values.isnan().nonzero().flatten().tolist()
    if silent:
        raise PlanError(
            f"{criterion!r} says nothing of {len(silent)} of the {group.size} units of group {group.name!r}: it found "
            "nothing that it could measure in their slices; score this group by another criterion (Taylor and "
            "Magnitude score every group), or leave it out"
        )
    return values


def _normalised(values: Tensor, group: Group, statistics: Statistics, how: Normalisation) -> Tensor:
    if how == "none" or not len(values):
        return values
    if how == "standardised":
        centred = values - values.mean()
        return _divided(centred, centred.square().mean().sqrt())
    if how == "size":
        return values / (elements_of_group(group, statistics) / group.size)
    absolute = values.abs()
    return _divided(values, absolute.mean() if how == "mean" else absolute.max())


def _divided(values: Tensor, by: Tensor) -> Tensor:
    return values / by if float(by) > 0 else values


def elements_of_group(group: Group, statistics: Statistics) -> int:
    """How many elements of parameters lie in the slices of a group."""
    total = 0
    for s in group.slices:
        if s.trained:
            shape = statistics.weights[s.parameter].shape
            if s.within is None:
                total += s.index.numel() * shape.numel() // shape[s.dim]
            else:
                beside, rows = s.within
                total += s.index.numel() * rows.shape[1] * shape.numel() // (shape[s.dim] * shape[beside])
    return max(total, 1)
