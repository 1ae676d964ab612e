"""Optimal brain surgery on single weights."""

from dataclasses import dataclass

from torch import Tensor

from secateur.criteria.criterion import scores_of
from secateur.criteria.energy import summed_over_maps
from secateur.criteria.group_obs import whitened_inputs
from secateur.criteria.inverse import check_damping
from secateur.criteria.maps import element_scores
from secateur.criteria.parts import Measured
from secateur.criteria.statistics import GRAMS, Consumer, Statistics
from secateur.types import Group


@dataclass(frozen=True)
class OBS:
    """Mean squared error of a row's output when one weight goes and its row's others, and bias, make up for it.

    w² / [H⁻¹]_jj, with H the covariance of the layer's inputs. For units the sum over single weights; `GroupOBS`
    removes a unit's weights together.

    Source: Hassibi and Stork 1993 (OBS); Dong et al. 2017, arXiv:1705.07565 (L-OBS, layer by layer).

    Args:
        damping: added to each input's variance, relative to it.
    """

    damping: float = 1e-2

    def __post_init__(self) -> None:
        check_damping(self.damping, self)

    @property
    def needs(self) -> frozenset[str]:
        """Second moments of inputs."""
        return frozenset({GRAMS})

    def weights(self, parameter: str, statistics: Statistics) -> Tensor:
        """Scores >= 0, in the parameter's shape."""

        def scores(consumer: Consumer, matrix: Tensor) -> Tensor:
            inputs = whitened_inputs(consumer, self.damping, statistics, self)
            by = inputs.scale.square() / inputs.inverse.diagonal(dim1=1, dim2=2)
            return matrix.square() * by.unsqueeze(1)

        return element_scores(parameter, statistics, scores, self)

    def measured(self, group: Group, statistics: Statistics) -> Measured:
        """Of each consumer's slice the sum."""
        return summed_over_maps(self, group, statistics)

    def __call__(self, group: Group, statistics: Statistics) -> Tensor:
        """Scores >= 0, float64 (units,)."""
        return scores_of(self, group, statistics)
