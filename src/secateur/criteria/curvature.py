"""Criteria that read second derivatives of the loss."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from secateur.criteria.criterion import scores_of
from secateur.criteria.gradients import gradients_of, hessian_of, weight_of
from secateur.criteria.maps import Lines, element_scores, makers, matrix_of, per_unit, readers
from secateur.criteria.parts import Measured, Part, element_parts, elements_of, slices_of
from secateur.criteria.statistics import (
    GRAMS,
    HESSIAN_DIAGONAL,
    OUTPUT_GRADIENTS,
    WEIGHT_GRADIENTS,
    Consumer,
    Statistics,
)
from secateur.errors import ArgumentError
from secateur.types import Group


@dataclass(frozen=True)
class OBD:
    """Half the curvature times the squared weight, over the weights by which consumers read a unit.

    Negative curvature counts as none: the estimate is meant for a minimum.

    Source: LeCun et al. 1989, "Optimal Brain Damage".

    Args:
        curvature: "hessian": the Hessian's diagonal; "fisher": the mean over samples of squared
            gradients, which equals it in expectation where the loss is the negative log-likelihood of a
            model that fits.
    """

    curvature: Literal["hessian", "fisher"] = "hessian"

    def __post_init__(self) -> None:
        if self.curvature not in {"hessian", "fisher"}:
            raise ArgumentError(f"OBD(curvature={self.curvature!r}): needed 'hessian' or 'fisher'")

    @property
    def needs(self) -> frozenset[str]:
        """The Hessian's diagonal, or gradients of weights."""
        return frozenset({HESSIAN_DIAGONAL if self.curvature == "hessian" else WEIGHT_GRADIENTS})

    def weights(self, parameter: str, statistics: Statistics) -> Tensor:
        """Scores >= 0, in the parameter's shape."""
        if self.curvature == "hessian":
            diagonal = hessian_of(parameter, statistics, self).clamp(min=0)
        else:
            diagonal = gradients_of(parameter, statistics, self).squares
        return diagonal * weight_of(parameter, statistics).square() / 2

    def measured(self, group: Group, statistics: Statistics) -> Measured:
        """Of each consumer's slice the sum."""
        return Measured(element_parts(slices_of(group, masked_only=True), statistics, self.weights))

    def __call__(self, group: Group, statistics: Statistics) -> Tensor:
        """Scores >= 0, float64 (units,)."""
        return scores_of(self, group, statistics)


@dataclass(frozen=True)
class HessianTrace:
    """Half the mean curvature of a unit's weights times the sum of their squares.

    Taken over the weights by which consumers read the unit, slice by slice. Negative mean curvature counts as none.

    Source: Yu et al. 2022, arXiv:2101.08940 (HAP); Dong et al. 2020, arXiv:1911.03852 (HAWQ-V2).
    """

    @property
    def needs(self) -> frozenset[str]:
        """The Hessian's diagonal."""
        return frozenset({HESSIAN_DIAGONAL})

    def measured(self, group: Group, statistics: Statistics) -> Measured:
        """Of each consumer's slice."""
        parts = []
        for s in slices_of(group, masked_only=True):
            diagonal = elements_of(s, hessian_of(s.parameter, statistics, self))
            squares = elements_of(s, weight_of(s.parameter, statistics).square())
            parts.append(Part(s.first, diagonal.mean(1).clamp(min=0) * squares.sum(1) / 2))
        return Measured(tuple(parts))

    def __call__(self, group: Group, statistics: Statistics) -> Tensor:
        """Scores >= 0, float64 (units,)."""
        return scores_of(self, group, statistics)


@dataclass(frozen=True)
class KFAC:
    """Predicted rise of the loss when a unit goes, by Kronecker-factored curvature of its consumers.

    ½ Σ (G D A) ⊙ D, with D what is taken from a consumer's weight, A second moments of its inputs, and
    G those of the loss's derivatives by its outputs: inputs and derivatives are taken for independent.
    `damage` gives the same for any change of a weight.

    Source: Martens and Grosse 2015, arXiv:1503.05671; Grosse and Martens 2016, arXiv:1602.01407
    (convolutions); Wang et al. 2019, arXiv:1905.05934 (EigenDamage, for pruning).
    """

    @property
    def needs(self) -> frozenset[str]:
        """Second moments of inputs and of output gradients."""
        return frozenset({GRAMS, OUTPUT_GRADIENTS})

    def weights(self, parameter: str, statistics: Statistics) -> Tensor:
        """Of removing a single weight: scores >= 0, in the parameter's shape."""

        def scores(consumer: Consumer, matrix: Tensor) -> Tensor:
            inputs, outputs = factors(consumer, statistics, self)
            diagonals = [m.diagonal(dim1=1, dim2=2) for m in (outputs, inputs)]
            return matrix.square() * diagonals[0].unsqueeze(2) * diagonals[1].unsqueeze(1) / 2

        return element_scores(parameter, statistics, scores, self)

    def measured(self, group: Group, statistics: Statistics) -> Measured:
        """Of each consumer."""
        parts = []
        for lines in readers(group, statistics):
            inputs, outputs = factors(lines.consumer, statistics, self)
            matrix = matrix_of(lines.consumer, statistics)
            parts.append(_within_units(lines, inputs * (matrix.mT @ outputs @ matrix), group.size))
        for lines in makers(group, statistics):
            inputs, outputs = factors(lines.consumer, statistics, self)
            matrix = matrix_of(lines.consumer, statistics)
            parts.append(_within_units(lines, outputs * (matrix @ inputs @ matrix.mT), group.size))
        return Measured(tuple(parts))

    def __call__(self, group: Group, statistics: Statistics) -> Tensor:
        """Scores >= 0, float64 (units,)."""
        return scores_of(self, group, statistics)


def _within_units(lines: Lines, products: Tensor, size: int) -> Part:
    """Half the sum of the products (groups, lines, lines) over the pairs of lines that are of one unit."""
    same = lines.units.unsqueeze(1) == lines.units.unsqueeze(2)
    return per_unit(lines, torch.where(same, products, 0.0).sum(2) / 2, size)


def damage(consumer: Consumer, change: Tensor, statistics: Statistics) -> float:
    """Predicted rise of the mean loss when a weight changes: ½ Σ (G D A) ⊙ D.

    One data pass thus scores every layer at every sparsity.

    Args:
        consumer: the weight's use, with Gram and output gradients.
        change: D, float64 (groups, rows, columns).
        statistics: that it came with.

    Raises:
        ArgumentError: they were not collected.
    """
    inputs, outputs = factors(consumer, statistics, KFAC())
    return float((outputs @ change @ inputs * change).sum() / 2)


def factors(consumer: Consumer, statistics: Statistics, who: object) -> tuple[Tensor, Tensor]:
    """Mean over positions of inputs' products, mean over samples of the sum over positions of output gradients'.

    Raises:
        ArgumentError: they were not collected.
    """
    if consumer.gram is None or consumer.output_gradients is None:
        raise ArgumentError(
            f"{who!r} needs second moments of the inputs and output gradients of {consumer.place.name!r}, which were "
            f"not collected; pass needs={who!r}.needs to collect"
        )
    return consumer.gram.mean()[:, :-1, :-1], consumer.output_gradients.double().cpu() / max(statistics.samples, 1)
