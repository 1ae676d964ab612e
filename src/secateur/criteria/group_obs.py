"""Optimal brain surgery on whole units: which to remove next if all others make up for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from secateur.capture.calls import NONE
from secateur.criteria.criterion import scores_of
from secateur.criteria.inverse import Whitened, check_damping, whitened
from secateur.criteria.maps import Lines, makers, matrix_of, per_unit, readers
from secateur.criteria.parts import Measured, Part
from secateur.criteria.statistics import GRAMS, OUTPUT_GRADIENTS, Consumer, Statistics
from secateur.errors import ArgumentError, PlanError
from secateur.types import Group

Weighting = Literal["variance", "none", "gradients"]


@dataclass(frozen=True, eq=False)
class Elimination:
    """Units of a group in the order in which they go, and the error that is left.

    Attributes:
        order: int64 (units,): the first goes first.
        errors: float64 (units + 1,): with as many of them removed, the others making up for them.
        notes: what was unusual.
    """

    order: Tensor
    errors: Tensor
    notes: tuple[str, ...] = ()

    def scores(self) -> Tensor:
        """The error at which each unit goes: float64 (units,).

        >>> Elimination(torch.tensor([1, 0]), torch.tensor([0.0, 0.5, 2.0])).scores().tolist()
        [2.0, 0.5]
        """
        found = torch.empty(len(self.order), dtype=torch.float64)
        found[self.order] = self.errors[1:].double()
        return found


@dataclass(frozen=True)
class GroupOBS:
    """The error of consumers' outputs at which a unit goes, when units go one by one, the cheapest first.

    Removing the columns S of a consumer W whose inputs have covariance H costs tr(W_S ([H⁻¹]_SS)⁻¹ W_Sᵀ) if
    its other columns and its bias then change so as to make up for it, and the cost of a unit adds up over
    consumers. After each removal H⁻¹ and W are updated, so that of two units that do the same one goes cheaply
    and the other does not. One sweep gives the error at every width (`curve`).

    Units that nothing reads by a weight (dimensions of queries and keys) cost what masking them changes.

    Source: Hassibi and Stork 1993 (OBS); Kurtic et al. 2023, arXiv:2302.04089 (ZipLM, structures); here
    with intercept, over several consumers.

    Args:
        damping: added to each input's variance, relative to it.
        weighting: of consumers. "variance": each error is divided by the variance of the consumer's outputs, so that
            the error of removing all that it reads is 1; "none": squared error as it is; "gradients":
            ½ E[(g·δy)²], the predicted rise of the loss (needs labels).
    """

    damping: float = 1e-2
    weighting: Weighting = "variance"

    def __post_init__(self) -> None:
        check_damping(self.damping, self)
        if self.weighting not in {"variance", "none", "gradients"}:
            raise ArgumentError(f"{self!r}: weighting must be 'variance', 'none' or 'gradients'")

    @property
    def needs(self) -> frozenset[str]:
        """Second moments of inputs, and of output gradients where they weigh."""
        return frozenset({GRAMS, OUTPUT_GRADIENTS} if self.weighting == "gradients" else {GRAMS})

    def curve(self, group: Group, statistics: Statistics) -> Elimination:
        """The whole curve of error against width.

        Raises:
            ArgumentError: Gram matrices were not collected.
            PlanError: no linear map reads or makes some of the units.
            NumericalError: moments that cannot be inverted; names the layer, samples and damping.
        """
        maps = [self._map(lines, group, statistics) for lines in readers(group, statistics)]
        rows = [self._row_costs(lines, group, statistics) for lines in makers(group, statistics)]
        fixed = torch.zeros(group.size, dtype=torch.float64)
        covered = torch.zeros(group.size, dtype=torch.bool)
        for part in rows:
            fixed += part.values
            covered |= torch.ones_like(covered) if part.covered is None else part.covered
        for found in maps:
            covered[found.units[found.units < group.size]] = True
        if not bool(covered.all()):
            raise PlanError(
                f"{self!r}: no linear map that was seen on the calibration data reads or makes "
                f"{int((~covered).sum())} of the {group.size} units of group {group.name!r}; score it by another "
                "criterion (Taylor and Magnitude score every group), or leave it out"
            )
        order, errors = _sweep(maps, fixed)
        return Elimination(order, errors, tuple(found.note for found in maps if found.note))

    def measured(self, group: Group, statistics: Statistics) -> Measured:
        """All consumers at once."""
        found = self.curve(group, statistics)
        return Measured((Part(0, found.scores()),), notes=found.notes)

    def __call__(self, group: Group, statistics: Statistics) -> Tensor:
        """Scores >= 0, float64 (units,)."""
        return scores_of(self, group, statistics)

    def _map(self, lines: Lines, group: Group, statistics: Statistics) -> "_Map":
        inputs = whitened_inputs(lines.consumer, self.damping, statistics, self)
        matrix = self._weighed(lines.consumer, inputs, statistics) * inputs.scale.unsqueeze(1)
        return _map(matrix, inputs, lines.units, group.size)

    def _row_costs(self, lines: Lines, group: Group, statistics: Statistics) -> Part:
        inputs = whitened_inputs(lines.consumer, self.damping, statistics, self)
        matrix = self._weighed(lines.consumer, inputs, statistics, is_rows=True) * inputs.scale.unsqueeze(1)
        return per_unit(lines, (matrix @ inputs.correlation * matrix).sum(2), group.size)

    def _weighed(
        self, consumer: Consumer, inputs: Whitened, statistics: Statistics, *, is_rows: bool = False
    ) -> Tensor:
        """The consumer's weight, such that plain squared error of outputs is what is asked for."""
        matrix = matrix_of(consumer, statistics)
        if self.weighting == "none":
            return matrix
        if self.weighting == "variance":
            scaled = matrix * inputs.scale.unsqueeze(1)
            total = float((scaled @ inputs.correlation * scaled).sum())
            return matrix / total**0.5 if total > 0 else matrix
        if consumer.output_gradients is None:
            raise ArgumentError(
                f"{self!r} needs output gradients of {consumer.place.name!r}, which were not collected; pass "
                f"needs={self!r}.needs to collect"
            )
        moments = consumer.output_gradients.double().cpu() / max(statistics.samples, 1) / 2
        if is_rows:
            # Rows that go make errors of their own; that they go together is left out.
            return matrix * moments.diagonal(dim1=1, dim2=2).clamp(min=0).sqrt().unsqueeze(2)
        values, vectors = torch.linalg.eigh(moments)
        root = vectors * values.clamp(min=0).sqrt().unsqueeze(1)
        return torch.matmul(root.mT, matrix)


def whitened_inputs(consumer: Consumer, damping: float, statistics: Statistics, who: object) -> Whitened:
    """The inverse correlations of a consumer's inputs.

    Raises:
        ArgumentError: its Gram matrix was not collected.
    """
    if consumer.gram is None:
        raise ArgumentError(
            f"{who!r} needs the Gram matrix of the inputs of {consumer.place.name!r}, which was not collected; pass "
            f"needs={who!r}.needs to collect (and, for a wide layer, most_columns)"
        )
    return whitened(consumer.gram, damping, consumer.place.name, statistics.samples)


@dataclass(eq=False)
class _Map:
    """One consumer during a sweep. Its columns stand in slots, one a unit, of equally many columns.

    The last slot of each group is empty: units that the group does not read are there.

    Attributes:
        inverse: float64 (groups, slots, span, slots, span).
        matrix: float64 (groups, rows, slots, span); zero for units that are gone.
        units: int64 (groups, slots): the unit of each; the number of units where of none.
        slots: int64 (groups, units + 1): the slot of each unit.
        note: from the inverse.
    """

    inverse: Tensor
    matrix: Tensor
    units: Tensor
    slots: Tensor
    note: str

    def costs(self, size: int) -> Tensor:
        """What the removal of each unit alone costs: float64 (units,)."""
        own = self.inverse.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2)
        products = torch.einsum("grsa,grsb->gsab", self.matrix, self.matrix)
        found = torch.linalg.solve(own, products).diagonal(dim1=2, dim2=3).sum(2)
        total = torch.zeros(size + 1, dtype=torch.float64)
        return total.index_add_(0, self.units.flatten(), found.clamp(min=0).flatten())[:size]

    def remove(self, unit: int) -> None:
        """Take a unit out, and let the other columns make up for it."""
        groups = torch.arange(len(self.slots))
        slot = self.slots[:, unit]
        span, width = self.matrix.shape[3], self.inverse.shape[1] * self.inverse.shape[2]
        columns = self.inverse[groups, :, :, slot].reshape(len(groups), width, span)
        own = self.inverse[groups, slot][groups, :, slot]
        share = torch.linalg.solve(own, columns.mT)
        flat = self.matrix.flatten(2)
        flat -= self.matrix[groups, :, slot] @ share
        inverse = self.inverse.reshape(len(groups), width, width)
        inverse -= columns @ share
        # What is left of them is rounding; the slot becomes an empty one.
        self.matrix[groups, :, slot] = 0
        self.inverse[groups, slot] = 0
        self.inverse[groups, :, :, slot] = 0
        eye = torch.eye(span, dtype=torch.float64)
        for group, place in zip(groups.tolist(), slot.tolist(), strict=True):
            self.inverse[group, place, :, place] = eye


def _map(matrix: Tensor, inputs: Whitened, units: Tensor, size: int) -> _Map:
    """Sort the columns into slots."""
    groups, columns = units.shape
    here = [sorted(set(row.tolist()) - {NONE}) for row in units]
    counts = torch.stack([torch.bincount(row[row != NONE], minlength=size) for row in units])
    slots_in_all, span = max(len(row) for row in here) + 1, int(counts.max())
    # Column number `columns` is an empty one: it goes with no other, and nothing is multiplied with it.
    places = torch.full((groups, slots_in_all, span), columns)
    of_slot = torch.full((groups, slots_in_all), size)
    slots = torch.full((groups, size + 1), slots_in_all - 1)
    for group, (own, row) in enumerate(zip(here, units, strict=True)):
        for slot, unit in enumerate(own):
            found = (row == unit).nonzero().flatten()
            places[group, slot, : len(found)] = found
            of_slot[group, slot] = unit
            slots[group, unit] = slot
    flat = places.flatten(1)
    padded = torch.zeros(groups, matrix.shape[1], columns + 1, dtype=torch.float64)
    padded[:, :, :columns] = matrix
    chosen = padded.gather(2, flat.unsqueeze(1).expand(-1, matrix.shape[1], -1))
    is_empty = flat == columns
    inside = flat.clamp(max=columns - 1)
    near = torch.stack([inverse[own][:, own] for inverse, own in zip(inputs.inverse, inside, strict=True)])
    near = near.masked_fill(is_empty.unsqueeze(1) | is_empty.unsqueeze(2), 0.0) + torch.diag_embed(is_empty.double())
    shape = (groups, slots_in_all, span)
    return _Map(near.reshape(*shape, *shape[1:]), chosen.reshape(groups, -1, *shape[1:]), of_slot, slots, inputs.note)


def _sweep(maps: Sequence[_Map], fixed: Tensor) -> tuple[Tensor, Tensor]:
    """Remove the cheapest unit until none is left: order, and error before each removal and after the last."""
    size = len(fixed)
    order, errors = [], [0.0]
    alive = torch.ones(size, dtype=torch.bool)
    for _ in range(size):
        costs = fixed + sum(found.costs(size) for found in maps)
        unit = int(torch.where(alive, costs, torch.inf).argmin())
        order.append(unit)
        errors.append(errors[-1] + float(costs[unit]))
        alive[unit] = False
        for found in maps:
            found.remove(unit)
    return torch.tensor(order), torch.tensor(errors, dtype=torch.float64)
