"""Linear maps, seen from a group: which of their columns read its units, which of their rows make them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.capture.calls import NONE, row_units
from secateur.criteria.parts import Part
from secateur.criteria.statistics import Consumer, Statistics, consumers_of
from secateur.errors import ArgumentError
from secateur.types import Group, Slice


@dataclass(frozen=True, eq=False)
class Lines:
    """Rows or columns of a linear map that masking zeroes.

    Attributes:
        consumer: the map.
        units: int64 (groups, rows or columns): the unit of each; `NONE` where of none.
    """

    consumer: Consumer
    units: Tensor


def readers(group: Group, statistics: Statistics) -> list[Lines]:
    """The maps that read units of the group, each with the unit of its columns."""
    return _merged(consumers_of(group, statistics))


def makers(group: Group, statistics: Statistics) -> list[Lines]:
    """The maps whose rows masking zeroes, because nothing reads the units by a weight."""
    found = []
    for s in group.slices:
        for consumer in statistics.consumers:
            if s.masked and s.trained and consumer.place.name == s.parameter:
                shape = tuple(statistics.weights[s.parameter].shape)
                units = row_units(consumer.form, consumer.place, s, shape)
                if units is not None and bool((units != NONE).any()):
                    found.append((consumer, units))
    return _merged(found)


def _merged(found: Sequence[tuple[Consumer, Tensor]]) -> list[Lines]:
    """One entry a map: several slices may lie in it."""
    merged: dict[int, Lines] = {}
    for consumer, units in found:
        held = merged.get(id(consumer))
        merged[id(consumer)] = Lines(consumer, units if held is None else torch.where(units == NONE, held.units, units))
    return list(merged.values())


def matrix_of(consumer: Consumer, statistics: Statistics) -> Tensor:
    """The map's weight: float64 (groups, rows, columns), on the CPU."""
    weight = statistics.weights[consumer.place.name][consumer.place.start : consumer.place.stop]
    return consumer.form.matrix(weight.double().cpu())


def per_unit(lines: Lines, values: Tensor, size: int) -> Part:
    """Values of rows or columns (groups, lines), added up over those of each unit."""
    here = lines.units != NONE
    total = torch.zeros(size, dtype=torch.float64).index_add_(0, lines.units[here], values[here].double())
    return Part(0, total, lines_of_units(lines, size) > 0)


def lines_of_units(lines: Lines, size: int) -> Tensor:
    """How many rows or columns each unit has: int64 (units,)."""
    return torch.bincount(lines.units[lines.units != NONE], minlength=size)


def is_map(parameter: str, statistics: Statistics) -> bool:
    """Whether a parameter is used as a linear map."""
    return any(consumer.place.name == parameter for consumer in statistics.consumers)


def maps_only(slices: Sequence[Slice], statistics: Statistics) -> list[Slice]:
    """The slices of parameters that are used as linear maps."""
    return [s for s in slices if is_map(s.parameter, statistics)]


def element_scores(
    parameter: str, statistics: Statistics, scores: Callable[[Consumer, Tensor], Tensor], who: object
) -> Tensor:
    """Scores of the elements of a parameter, in its shape, from each of its uses as a linear map.

    Args:
        parameter: its name.
        statistics: with the uses.
        scores: use, matrix (groups, rows, columns) -> scores of the matrix's elements. Several uses add up.
        who: asks; for the error.

    Raises:
        ArgumentError: the parameter, or some of its rows, are in no linear map that was seen.
    """
    weight = statistics.weights[parameter]
    total = torch.zeros(weight.shape, dtype=torch.float64)
    covered = torch.zeros(len(weight) if weight.ndim else 0, dtype=torch.bool)
    for consumer in statistics.consumers:
        place = consumer.place
        if place.name == parameter:
            shape = weight[place.start : place.stop].shape
            matrix = matrix_of(consumer, statistics)
            total[place.start : place.stop] += consumer.form.weight(scores(consumer, matrix), shape)
            covered[place.start : place.stop] = True
    if not bool(covered.any()) or not bool(covered.all()):
        raise ArgumentError(
            f"{who!r} scores weights by what goes into them; of {parameter!r}, of shape {tuple(weight.shape)}, "
            f"{int(covered.sum())} rows were seen as a linear map on the calibration data; pass needs={who!r}.needs to "
            "collect, and score biases, tables and unused weights by another criterion"
        )
    return total
