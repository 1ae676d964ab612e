"""How much of a sparsity each weight bears: the same, by shape, by score, or as measured."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateur.allocation.knapsack import multiple_choice_knapsack
from secateur.capture.parking import Parking
from secateur.criteria.magnitude import lamp_shares
from secateur.data import Batch, BatchFn, as_batches, to_device
from secateur.errors import ArgumentError, NumericalError
from secateur.graph.copies import copy_of
from secateur.graph.trace import in_eval_mode, named_state
from secateur.progress import NoProgress, Progress
from secateur.sparsity.curvature import curvature_of
from secateur.sparsity.method import Masked, Method
from secateur.sparsity.obc import OBC
from secateur.sparsity.patterns import Pattern, Unstructured, check_sparsity, lowest, removed
from secateur.sparsity.plan import SparsityPlan
from secateur.sparsity.precision import exact_products
from secateur.sparsity.walk import weights_with_inputs
from secateur.sparsity.weights import Weight, find_weights


@dataclass(frozen=True, eq=False)
class Asked:
    """What an allocation may know.

    Attributes:
        model: dense; not to be changed.
        weights: that share the sparsity.
        batches: calibration data.
        level: fraction of all their entries that is to be zero.
        pattern: what may be zero.
        method: chooses the zeros.
        progress: shown while running.
        held: keeps what is not at work on disk.
    """

    model: nn.Module
    weights: Sequence[Weight]
    batches: Sequence[Batch]
    level: float
    pattern: Pattern
    method: Method
    progress: Progress
    held: Parking | None = None

    def matrices(self) -> dict[str, Tensor]:
        """Weight -> its values: float64 (groups, rows, columns)."""
        state = named_state(self.model)
        return {weight.name: weight.matrix(state) for weight in self.weights}


class Allocation(Protocol):
    """One way to share a sparsity out."""

    def shares(self, asked: Asked) -> dict[str, float]:
        """Weight -> fraction of it that is to be zero."""


@dataclass(frozen=True)
class Uniform:
    """The same for every weight."""

    def shares(self, asked: Asked) -> dict[str, float]:
        """The level."""
        return {weight.name: asked.level for weight in asked.weights}


@dataclass(frozen=True)
class ERK:
    """Density in proportion to the sum of a weight's dimensions over their product: small weights stay denser.

    Source: Mocanu et al. 2018 (arXiv:1707.04780); with kernels, Evci et al. 2020 (arXiv:1911.11134).
    """

    def shares(self, asked: Asked) -> dict[str, float]:
        """1 - density."""
        _check_any(asked.pattern, "ERK")
        raw = {w.name: sum(w.shape) / w.size for w in asked.weights}
        return scaled_densities(raw, {w.name: w.size for w in asked.weights}, asked.level)


def scaled_densities(raw: Mapping[str, float], sizes: Mapping[str, int], level: float) -> dict[str, float]:
    """Sparsities whose densities are in proportion to `raw`, none above 1, that make `level` altogether.

    >>> scaled_densities({"a": 3.0, "b": 1.0}, {"a": 10, "b": 30}, 0.5)
    {'a': 0.0, 'b': 0.6666666666666667}
    """
    full: set[str] = set()
    kept = (1 - level) * sum(sizes.values())
    while True:
        rest = kept - sum(sizes[name] for name in full)
        weight = sum(raw[name] * sizes[name] for name in sizes if name not in full)
        scale = rest / weight if weight else 0.0
        more = {name for name in sizes if name not in full and raw[name] * scale > 1}
        if not more:
            return {name: 0.0 if name in full else 1 - raw[name] * scale for name in sizes}
        full |= more


@dataclass(frozen=True)
class Global:
    """All weights of all layers compete.

    Source of LAMP: Lee et al. 2021 (arXiv:2010.07611): w² over the sum of the squares in its layer that are no
    smaller.

    Args:
        score: "magnitude" or "lamp".
    """

    score: Literal["magnitude", "lamp"] = "lamp"

    def shares(self, asked: Asked) -> dict[str, float]:
        """How many of the lowest scores lie in each weight."""
        _check_any(asked.pattern, "Global")
        score = lamp_shares if self.score == "lamp" else torch.abs
        flat = {name: score(matrix).flatten() for name, matrix in asked.matrices().items()}
        scores = torch.cat([values.cpu() for values in flat.values()])
        gone = lowest(scores.unsqueeze(0), removed(len(scores), asked.level))[0]
        parts = torch.split(gone, [len(values) for values in flat.values()])
        return {name: float(part.double().mean()) for name, part in zip(flat, parts, strict=True)}


@dataclass(frozen=True)
class OWL:
    """Weights with more outliers among their Wanda scores stay denser.

    Source: Yin et al. 2024 (arXiv:2310.05175).

    Args:
        multiple: an outlier's score is more than so many times the mean of the weight's.
        spread: sparsities lie within this of the level, before they are moved to make it exactly.
    """

    multiple: float = 5.0
    spread: float = 0.08

    def shares(self, asked: Asked) -> dict[str, float]:
        """The fewer outliers, the sparser."""
        _check_any(asked.pattern, "OWL")
        state = named_state(asked.model)
        outliers: dict[str, float] = {}
        with asked.progress.stage("outliers", len(asked.weights)) as advance:
            for weight, seen in weights_with_inputs(asked.model, asked.batches, asked.weights, held=asked.held):
                curvature = curvature_of(seen.fit.gram, weight.name, centred=False)
                scores = Masked("wanda").scores(weight.matrix(state), curvature.to(state[weight.place.name].device))
                outliers[weight.name] = float((scores > self.multiple * scores.mean()).double().mean())
                advance(1, weight.name)
        low, high = min(outliers.values()), max(outliers.values())
        reach = 2 * self.spread / (high - low) if high > low else 0.0
        wanted = {name: asked.level - (share - low) * reach for name, share in outliers.items()}
        return shifted(wanted, {w.name: w.size for w in asked.weights}, asked.level)


def shifted(wanted: Mapping[str, float], sizes: Mapping[str, int], level: float) -> dict[str, float]:
    """Sparsities moved by one number, within [0, 1], so that they make `level` altogether.

    >>> found = shifted({"a": 0.4, "b": 0.6}, {"a": 10, "b": 10}, 0.7)
    >>> {name: round(value, 9) for name, value in found.items()}
    {'a': 0.6, 'b': 0.8}
    """
    low, high = -2.0, 2.0
    for _ in range(60):
        middle = (low + high) / 2
        total = sum(sizes[name] * min(1.0, max(0.0, value + middle)) for name, value in wanted.items())
        low, high = (middle, high) if total < level * sum(sizes.values()) else (low, middle)
    return {name: min(1.0, max(0.0, value + high)) for name, value in wanted.items()}


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


def _check_any(pattern: Pattern, name: str) -> None:
    if pattern.nearest(0.123) != 0.123:
        raise ArgumentError(
            f"the pattern {pattern} has one sparsity only, which {name} cannot share out: use Uniform() or Measured()"
        )


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
