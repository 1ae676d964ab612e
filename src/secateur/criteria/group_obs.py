"""Optimal brain surgery on whole units: which to remove next if all others make up for it."""

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
from secateur.criteria.sweep import Map, map_of, sweep
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

    Cost: for each consumer of n columns about 2 n³ multiply-adds, and at most some nine matrices of n x n in float64.
    CPU seconds of one thread of a busy machine, inverse and sweep: 2 and 5 at 3,072 columns, 8 and 32 at 5,504; at
    11,008 eight times as many are to be expected, and 9 GB.

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
        read = readers(group, statistics)
        inputs = [whitened_inputs(lines.consumer, self.damping, statistics, self) for lines in read]
        rows = [self._row_costs(lines, group, statistics) for lines in makers(group, statistics)]
        fixed = torch.zeros(group.size, dtype=torch.float64)
        covered = torch.zeros(group.size, dtype=torch.bool)
        for part in rows:
            fixed += part.values
            covered |= torch.ones_like(covered) if part.covered is None else part.covered
        for lines in read:
            covered[lines.units[lines.units != NONE]] = True
        if not bool(covered.all()):
            raise PlanError(
                f"{self!r}: no linear map that was seen on the calibration data reads or makes "
                f"{int((~covered).sum())} of the {group.size} units of group {group.name!r}; score it by another "
                "criterion (Taylor and Magnitude score every group), or leave it out"
            )
        maps = [m for pair in zip(read, inputs, strict=True) for m in self._maps(*pair, statistics)]
        order, errors = sweep(maps, fixed)
        return Elimination(order, errors, tuple(found.note for found in inputs if found.note))

    def measured(self, group: Group, statistics: Statistics) -> Measured:
        """All consumers at once."""
        found = self.curve(group, statistics)
        return Measured((Part(0, found.scores()),), notes=found.notes)

    def __call__(self, group: Group, statistics: Statistics) -> Tensor:
        """Scores >= 0, float64 (units,)."""
        return scores_of(self, group, statistics)

    def _maps(self, lines: Lines, inputs: Whitened, statistics: Statistics) -> list[Map]:
        """One for each group of a consumer."""
        matrix = self._weighed(lines.consumer, inputs, statistics) * inputs.scale.unsqueeze(1)
        return [map_of(*each) for each in zip(matrix, inputs.inverse, lines.units, strict=True)]

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
