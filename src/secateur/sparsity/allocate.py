"""Plans of sparsity: what settings make of a model."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from secateur.capture.parking import Parking
from secateur.data import Batch, BatchFn, as_batches
from secateur.errors import ArgumentError
from secateur.graph.trace import in_eval_mode
from secateur.progress import NoProgress, Progress
from secateur.sparsity.method import Method
from secateur.sparsity.obc import OBC
from secateur.sparsity.patterns import Pattern, Unstructured, check_sparsity
from secateur.sparsity.plan import SparsityPlan
from secateur.sparsity.precision import exact_products
from secateur.sparsity.shares import Allocation, Asked, Uniform
from secateur.sparsity.weights import Weight, find_weights


@dataclass(frozen=True)
class Sparsity:
    """Settings that a plan is made from.

    Args:
        level: fraction in [0, 1] of the weights that become zero, over all layers.
        pattern: where zeros may be.
        method: chooses them, and the values of the rest.
        allocation: shares the level out.
        leave: names of weights that stay dense; a name stands for all that begin with it.
    """

    level: float
    pattern: Pattern = field(default_factory=Unstructured)
    method: Method = field(default_factory=OBC)
    allocation: Allocation = field(default_factory=Uniform)
    leave: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_sparsity(self.level)


def sparsity_plan(
    model: nn.Module,
    wanted: Sparsity,
    *,
    calibration: Any,
    batch_fn: BatchFn | None = None,
    progress: Progress | None = None,
) -> SparsityPlan:
    """Decide how sparse each weight becomes; nothing is changed.

    Args:
        model: its weights are found by running one sample.
        wanted: settings.
        calibration: inputs; `Uniform`, `ERK` and `Global` look at one sample only.
        batch_fn: takes a batch apart.
        progress: shown while running.

    Raises:
        ArgumentError: nothing is left to make sparse, or the pattern does not fit the allocation.
        DataError: the calibration data is empty.

    >>> sparsity_plan(nn.Linear(2, 3), Sparsity(0.5), calibration=[torch.ones(1, 2)]).sparsity
    {'weight': 0.5}
    """
    batches = list(as_batches(calibration, "calibration", batch_fn))
    with in_eval_mode(model), torch.no_grad(), exact_products():
        weights = find_weights(model, batches[0].take(torch.tensor([0])))
        return planned(model, wanted, weights, batches, progress or NoProgress())


def planned(
    model: nn.Module,
    wanted: Sparsity,
    weights: Sequence[Weight],
    batches: Sequence[Batch],
    progress: Progress,
    held: Parking | None = None,
) -> SparsityPlan:
    """`sparsity_plan` for weights that are known already."""
    chosen = [w for w in weights if not w.name.startswith(wanted.leave or ("\0",))]
    if not chosen:
        raise ArgumentError(f"no weight is left to make sparse: the model has {[w.name for w in weights]}")
    asked = Asked(model, chosen, batches, wanted.level, wanted.pattern, wanted.method, progress, held)
    return SparsityPlan(wanted.allocation.shares(asked), wanted.pattern, wanted.method)
