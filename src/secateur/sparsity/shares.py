"""How much of a sparsity each weight bears: the same, by shape, or by scores."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from secateur.capture.parking import Parking
from secateur.criteria.magnitude import lamp_shares
from secateur.data import Batch
from secateur.errors import ArgumentError
from secateur.graph.trace import named_state
from secateur.progress import Progress
from secateur.sparsity.curvature import curvature_of
from secateur.sparsity.method import Masked, Method
from secateur.sparsity.patterns import Pattern, lowest, removed
from secateur.sparsity.walk import weights_with_inputs
from secateur.sparsity.weights import Weight


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


def _check_any(pattern: Pattern, name: str) -> None:
    if pattern.nearest(0.123) != 0.123:
        raise ArgumentError(
            f"the pattern {pattern} has one sparsity only, which {name} cannot share out: use Uniform() or Measured()"
        )
