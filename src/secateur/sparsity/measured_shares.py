"""How much of a sparsity each weight bears, by the damage that each does alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateur.allocation.knapsack import multiple_choice_knapsack
from secateur.data import Batch, to_device
from secateur.errors import ArgumentError, NumericalError
from secateur.graph.copies import copy_of
from secateur.graph.trace import named_state
from secateur.sparsity.curvature import curvature_of
from secateur.sparsity.patterns import Pattern
from secateur.sparsity.shares import Asked
from secateur.sparsity.walk import weights_with_inputs

Damage = Callable[[nn.Module], float]
"""How much worse a model is than the dense one; 0: not at all."""

FINE = 64
"""Steps of sparsity in which a measured curve is read."""


@dataclass(frozen=True)
class Measured:
    """Each weight is made sparse alone, at several levels, and the damage measured; the least sum is chosen.

    Damages add up at low sparsity only, so this is a choice, not a prediction. Between levels curves are straight.

    Args:
        levels: that are measured, in (0, 1]; n:m patterns have one only, and others are left out.
        damage: of a model; None: squared error of its outputs, relative to their size, on calibration data.
        samples: calibration samples that `damage=None` looks at.
    """

    levels: tuple[float, ...] = (0.25, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
    damage: Damage | None = field(default=None, compare=False)
    samples: int = 256

    def shares(self, asked: Asked) -> dict[str, float]:
        """The knapsack's choice: least total damage with at least the level's zeros.

        Raises:
            ArgumentError: no levels, or none that reach far enough.
        """
        curves = self.curves(asked)
        names = list(curves)
        sizes = np.array([w.size for w in asked.weights], dtype=np.float64)
        grids = [_fine(curves[name], asked.pattern) for name in names]
        damages = [damage for _, damage in grids]
        costs = [size * (1 - levels) for (levels, _), size in zip(grids, sizes, strict=True)]
        budget = (1 - asked.level) * sizes.sum()
        # Costs are rounded up to buckets, which must not make the level just reached unreachable.
        choice = multiple_choice_knapsack(damages, costs, budget * (1 + 1e-9) + 1e-9)
        if choice is None:
            raise ArgumentError(
                f"no choice of the levels {self.levels} makes a sparsity of {asked.level:g}: add higher ones"
            )
        return {name: float(levels[k]) for name, (levels, _), k in zip(names, grids, choice, strict=True)}

    def curves(self, asked: Asked) -> dict[str, list[tuple[float, float]]]:
        """Weight -> (sparsity, damage) at each level, from (0, 0) on."""
        levels = sorted({asked.pattern.nearest(level) for level in self.levels if level > 0})
        if not levels:
            raise ArgumentError("Measured needs levels above 0")
        damage = self.damage or output_error(asked.model, asked.batches, self.samples)
        scratch = copy_of(asked.model)
        state = named_state(scratch)
        found: dict[str, list[tuple[float, float]]] = {}
        with asked.progress.stage("measure", len(asked.weights)) as advance:
            for weight, seen in weights_with_inputs(asked.model, asked.batches, asked.weights, held=asked.held):
                dense, rows = weight.matrix(state), weight.rows(state)
                kept = rows.clone()
                curvature = curvature_of(seen.fit.gram, weight.name, centred=False).to(rows.device)
                at = asked.method.prepared(dense, curvature, asked.pattern)
                found[weight.name] = [(0.0, 0.0)]
                for level in levels:
                    rows.copy_(weight.form.weight(at(level).matrix, weight.shape))
                    found[weight.name].append((level, float(damage(scratch))))
                rows.copy_(kept)
                advance(1, weight.name)
        return {weight.name: found[weight.name] for weight in asked.weights}


def output_error(dense: nn.Module, batches: Sequence[Batch], samples: int) -> Damage:
    """Squared error of a model's outputs against those of `dense`, relative to their size."""
    some, left = [], samples
    for batch in batches:
        if left > 0:
            some.append(batch if batch.size <= left else batch.take(torch.arange(left)))
            left -= batch.size
    wanted = [_outputs(dense, batch) for batch in some]
    size = sum(float(t.square().sum()) for outputs in wanted for t in outputs)

    def damage(model: nn.Module) -> float:
        pairs = zip(some, wanted, strict=True)
        wrong = (
            float((now - then).square().sum())
            for batch, outputs in pairs
            for now, then in zip(_outputs(model, batch), outputs, strict=True)
        )
        return sum(wrong) / max(size, torch.finfo(torch.float64).tiny)

    return damage


@torch.no_grad()
def _outputs(model: nn.Module, batch: Batch) -> list[Tensor]:
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    moved = to_device(batch, device)
    leaves = pytree.tree_leaves(model(*moved.args, **moved.kwargs))
    return [t.double() for t in leaves if isinstance(t, Tensor) and t.is_floating_point()]


def _fine(curve: Sequence[tuple[float, float]], pattern: Pattern) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The curve in small steps, never falling."""
    levels, damages = (np.array(part) for part in zip(*curve, strict=True))
    if np.isnan(damages).any():
        raise NumericalError("a measured damage is NaN: check the damage function and the calibration data")
    damages = np.maximum.accumulate(damages)
    if pattern.nearest(0.123) != 0.123:
        return levels, damages
    steps = np.linspace(0, levels[-1], FINE + 1)
    return steps, np.interp(steps, levels, damages)
