"""Criteria that read first derivatives of the loss, taken sample by sample."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from secateur.criteria.criterion import scores_of
from secateur.criteria.parts import Measured, Part, element_parts, slices_of
from secateur.criteria.statistics import (
    GATE_GRADIENTS,
    HESSIAN_DIAGONAL,
    WEIGHT_GRADIENTS,
    Derivatives,
    Statistics,
)
from secateur.errors import ArgumentError
from secateur.types import Group


def gradients_of(parameter: str, statistics: Statistics, who: object) -> Derivatives:
    """Mean over samples of a parameter's derivatives: on the CPU.

    Raises:
        ArgumentError: they were not collected.
    """
    return _mean(parameter, statistics.gradients.get(parameter), statistics, who, "gradients of parameter")


def gates_of(group: Group, statistics: Statistics, who: object) -> Derivatives:
    """Mean over samples of the derivatives by a group's gates.

    Raises:
        ArgumentError: they were not collected.
    """
    return _mean(group.name, statistics.gates.get(group.name), statistics, who, "gradients of group")


def _mean(name: str, found: Derivatives | None, statistics: Statistics, who: object, what: str) -> Derivatives:
    if found is None:
        raise ArgumentError(
            f"{who!r} needs {what} {name!r}, which were not collected; pass needs={who!r}.needs to collect"
        )
    count = max(statistics.samples, 1)
    return Derivatives(*(t.double().cpu() / count for t in (found.total, found.absolute, found.squares)))


def hessian_of(parameter: str, statistics: Statistics, who: object) -> Tensor:
    """Second derivatives of the mean loss by a parameter's elements: on the CPU.

    Raises:
        ArgumentError: they were not collected.
    """
    if parameter not in statistics.hessian_diagonal:
        raise ArgumentError(
            f"{who!r} needs the Hessian's diagonal of parameter {parameter!r}, which was not collected; pass "
            f"needs={who!r}.needs to collect"
        )
    return statistics.hessian_diagonal[parameter].double().cpu()


def weight_of(parameter: str, statistics: Statistics) -> Tensor:
    """The parameter: float64, on the CPU."""
    return statistics.weights[parameter].double().cpu()


@dataclass(frozen=True)
class Gradient:
    """Mean over samples of the absolute derivative by a weight, summed over a unit.

    Source: the "gradient" criterion of Intel Neural Compressor; single samples' derivatives do not vanish
    at a minimum as their mean does.
    """

    @property
    def needs(self) -> frozenset[str]:
        """Gradients of weights: labels, and a backward pass."""
        return frozenset({WEIGHT_GRADIENTS})

    def weights(self, parameter: str, statistics: Statistics) -> Tensor:
        """Scores >= 0, in the parameter's shape."""
        return gradients_of(parameter, statistics, self).absolute

    def measured(self, group: Group, statistics: Statistics) -> Measured:
        """Of each slice the sum."""
        return Measured(element_parts(slices_of(group), statistics, self.weights))

    def __call__(self, group: Group, statistics: Statistics) -> Tensor:
        """Scores >= 0, float64 (units,)."""
        return scores_of(self, group, statistics)


@dataclass(frozen=True)
class SNIP:
    """Absolute product of a weight and the derivative of the mean loss by it, summed over a unit.

    Source: Lee et al. 2019, arXiv:1810.02340.
    """

    @property
    def needs(self) -> frozenset[str]:
        """Gradients of weights: labels, and a backward pass."""
        return frozenset({WEIGHT_GRADIENTS})

    def weights(self, parameter: str, statistics: Statistics) -> Tensor:
        """Scores >= 0, in the parameter's shape."""
        return (weight_of(parameter, statistics) * gradients_of(parameter, statistics, self).total).abs()

    def measured(self, group: Group, statistics: Statistics) -> Measured:
        """Of each slice the sum."""
        return Measured(element_parts(slices_of(group), statistics, self.weights))

    def __call__(self, group: Group, statistics: Statistics) -> Tensor:
        """Scores >= 0, float64 (units,)."""
        return scores_of(self, group, statistics)


@dataclass(frozen=True)
class Taylor:
    """Mean over samples of the first-order change of the loss when the unit is removed.

    The change is the derivative by a gate on what consumers see of the unit: the sum of gradient times
    weight over the consumers' slices; over all slices where consumers choose units rather than sum over
    them, as they do with experts. It is taken for each sample before its size is, so the size of a batch
    does not change the score.

    Source: Molchanov et al. 2019, arXiv:1906.10771 (group-summed, squared); Molchanov et al. 2017,
    arXiv:1611.06440 (absolute).

    Args:
        change: "squared" or "absolute".
    """

    change: Literal["squared", "absolute"] = "squared"

    def __post_init__(self) -> None:
        if self.change not in {"squared", "absolute"}:
            raise ArgumentError(f"Taylor(change={self.change!r}): needed 'squared' or 'absolute'")

    @property
    def needs(self) -> frozenset[str]:
        """Gradients, which take labels and one backward pass for each sample."""
        return frozenset({GATE_GRADIENTS})

    def weights(self, parameter: str, statistics: Statistics) -> Tensor:
        """Of removing a single weight: scores >= 0, in the parameter's shape (needs "weight_gradients")."""
        found, weight = gradients_of(parameter, statistics, self), weight_of(parameter, statistics)
        return weight.square() * found.squares if self.change == "squared" else weight.abs() * found.absolute

    def measured(self, group: Group, statistics: Statistics) -> Measured:
        """The unit as a whole, by its gate."""
        found = gates_of(group, statistics, self)
        return Measured((Part(0, found.squares if self.change == "squared" else found.absolute),))

    def __call__(self, group: Group, statistics: Statistics) -> Tensor:
        """Scores >= 0, float64 (units,)."""
        return scores_of(self, group, statistics)


@dataclass(frozen=True)
class FisherGate:
    """Estimated rise of the loss when a unit goes: half the mean squared derivative by its gate.

    It orders units as `Taylor()` does; its unit is that of the loss. The loss should be a negative log-likelihood.

    Source: Theis et al. 2018, arXiv:1801.05787; Kwon et al. 2022, arXiv:2204.09656 (heads and neurons).
    """

    @property
    def needs(self) -> frozenset[str]:
        """Gradients, which take labels and one backward pass for each sample."""
        return frozenset({GATE_GRADIENTS})

    def measured(self, group: Group, statistics: Statistics) -> Measured:
        """The unit as a whole, by its gate."""
        return Measured((Part(0, gates_of(group, statistics, self).squares / 2),))

    def __call__(self, group: Group, statistics: Statistics) -> Tensor:
        """Scores >= 0, float64 (units,)."""
        return scores_of(self, group, statistics)


@dataclass(frozen=True)
class SecondOrderTaylor:
    """Predicted rise of the mean loss when a unit goes: -g·w + ½ h w², over the weights by which consumers read it.

    With h the Hessian's diagonal, so exact for one weight of a model that is linear with squared loss; over the
    weights of a unit, as if they did not interact. Negative where the loss is predicted to fall.

    Source: Molchanov et al. 2019, arXiv:1906.10771, equation 4.
    """

    @property
    def needs(self) -> frozenset[str]:
        """Gradients of weights and the Hessian's diagonal."""
        return frozenset({WEIGHT_GRADIENTS, HESSIAN_DIAGONAL})

    def weights(self, parameter: str, statistics: Statistics) -> Tensor:
        """Predicted rises, in the parameter's shape."""
        weight = weight_of(parameter, statistics)
        curvature = hessian_of(parameter, statistics, self)
        return curvature * weight.square() / 2 - weight * gradients_of(parameter, statistics, self).total

    def measured(self, group: Group, statistics: Statistics) -> Measured:
        """Of each consumer's slice the sum."""
        return Measured(element_parts(slices_of(group, masked_only=True), statistics, self.weights))

    def __call__(self, group: Group, statistics: Statistics) -> Tensor:
        """Scores, float64 (units,)."""
        return scores_of(self, group, statistics)
