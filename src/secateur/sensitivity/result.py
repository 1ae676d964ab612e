"""What a scan found: curves, what they took, and what to doubt."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from scipy.optimize import isotonic_regression
from scipy.stats import spearmanr

from secateur.sensitivity.measure import Tally
from secateur.sensitivity.racing import Racing
from secateur.types import Curve, Floats

NOTHING = 1e-6
"""Greatest loss damage of a sample that rounding may cause."""


@dataclass(frozen=True, eq=False)
class Scan(Mapping[str, Curve]):
    """Curves by the name of their group, and how they were measured. It prints as a table.

    Attributes:
        curves: group name -> curve; with bisection, of the levels that were measured.
        metric: name of the metric.
        tally: samples measured, saved and replayed.
        racing: the rule by which points stopped early; None: all have all samples.
    """

    curves: Mapping[str, Curve]
    metric: str = "metric"
    tally: Tally = field(default_factory=Tally)
    racing: Racing | None = None

    def __getitem__(self, name: str) -> Curve:
        return self.curves[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.curves)

    def __len__(self) -> int:
        return len(self.curves)

    @property
    def suspicious(self) -> tuple[str, ...]:
        """Groups whose removal changed no sample's loss at any sparsity: suspect the probe, do not call them robust."""
        return tuple(name for name, curve in self.curves.items() if changes_nothing(curve))

    def agreement(self, surrogate: Mapping[str, Mapping[int, float]]) -> float | None:
        """Spearman's rank correlation of predicted with measured loss damage, over the points of both.

        Args:
            surrogate: group name -> width kept -> predicted damage, in any unit.

        Returns:
            In [-1, 1]; None where one of the two does not vary.

        >>> curve = Curve("a", (3, 2, 1), (0, 1/3, 2/3), np.zeros((3, 2)), np.array([[0., 0.], [1., 2.], [3., 4.]]))
        >>> Scan({"a": curve}).agreement({"a": {2: 10.0, 1: 50.0}})
        1.0
        """
        pairs = [
            (surrogate[name][width], loss)
            for name, curve in self.curves.items()
            for width, loss in zip(curve.widths[1:], curve.mean_loss()[1:], strict=True)
            if width in surrogate.get(name, {})
        ]
        predicted, measured = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
        if len(pairs) < 2 or (predicted == predicted[0]).all() or (measured == measured[0]).all():
            return None
        return round(float(spearmanr(predicted, measured).statistic), 12)

    def thresholds(self, tolerance: float, *, on: Literal["metric", "loss"] = "metric") -> dict[str, float]:
        """The greatest sparsity of each group whose mean damage, made to rise with sparsity, is within `tolerance`.

        >>> curve = Curve("a", (4, 3, 2), (0, 0.25, 0.5), np.array([[0., 0.], [0., 0.], [0., 1.]]), np.zeros((3, 2)))
        >>> Scan({"a": curve}).thresholds(0.1)
        {'a': 0.25}
        """
        found = {}
        for name, curve in self.curves.items():
            rising = rising_damage(curve, on)
            found[name] = curve.sparsities[int(np.flatnonzero(rising <= max(tolerance, 0.0))[-1])]
        return found

    def __str__(self) -> str:
        levels = sorted({round(s, 2) for curve in self.curves.values() for s in curve.sparsities[1:]})
        width = max([5, *map(len, self.curves)])
        lines = [f"{'group':<{width}}" + "".join(f"{f'{level:.0%}':>16}" for level in levels)]
        for name, curve in self.curves.items():
            cells = dict.fromkeys(levels, "")
            for level, mean, error in zip(curve.sparsities, curve.mean(), curve.standard_error(), strict=True):
                if level > 0:
                    cells[round(level, 2)] = f"{mean:.4f} ± {error:.4f}"
            lines.append(f"{name:<{width}}" + "".join(f"{cells[level]:>16}" for level in levels))
        return "\n".join([f"mean damage to {self.metric} ± standard error, by sparsity", *lines, *self._remarks()])

    def _remarks(self) -> Iterator[str]:
        tally = self.tally
        if tally.stopped and self.racing is not None:
            total = tally.measured + tally.stored + tally.stopped
            yield (
                f"racing saved {tally.stopped / total:.0%} of the samples; each point lies on the wrong side of "
                f"{' or '.join(f'{b:g}' for b in self.racing.boundaries)} with probability at most "
                f"{self.racing.error:g}"
            )
        if tally.unmeasured:
            yield f"could not be measured, and left out: {'; '.join(map(str, tally.unmeasured))}"
        if tally.why and tally.replayed < tally.measured:
            yield f"not replayed, the whole model was run: {tally.why}"
        if self.suspicious:
            yield (
                f"suspicious: removing units of {', '.join(self.suspicious)} changed nothing at any sparsity; suspect "
                "the probe (data that never reaches them, a metric that does not read them) before calling them robust"
            )


def rising_damage(curve: Curve, on: Literal["metric", "loss"] = "metric") -> Floats:
    """Mean damage at each level, made to rise with sparsity from 0; levels weigh as many samples as they have."""
    means = curve.mean() if on == "metric" else curve.mean_loss()
    finite = np.isfinite(means)
    # Infinite damage cannot be averaged; what lies beyond it is as bad.
    last = int(np.argmin(finite)) if not finite.all() else len(means)
    rising = isotonic_regression(means[1:last], weights=curve.seen()[1:last]).x if last > 1 else np.zeros(0)
    return np.concatenate([[0.0], rising, np.full(len(means) - max(last, 1), np.inf)])


def changes_nothing(curve: Curve) -> bool:
    """Whether no sample's loss changed beyond rounding, at any sparsity."""
    return not (np.abs(np.nan_to_num(curve.loss_damage, nan=0.0, posinf=1.0)) > NOTHING).any()
