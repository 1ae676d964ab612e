"""What a scan found: curves, what they took, and what to doubt."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from scipy.optimize import isotonic_regression
from scipy.stats import spearmanr

from secateur.errors import ArgumentError
from secateur.sensitivity.measure import Tally
from secateur.sensitivity.racing import Racing
from secateur.sensitivity.slices import Sliced
from secateur.types import Curve, Curves, Floats

NOTHING = 1e-6
"""Greatest loss damage of a sample that rounding may cause."""


CHANCE = 3.0
"""Standard errors that are more than chance."""

NAME, COLUMNS, NEAR = 26, 5, 0.05
"""Of a printed table: longest name, most sparsities, and how far the one shown may be from the heading."""

Surrogate = Mapping[str, Mapping[int, float]]
"""Group name -> width kept -> predicted damage, in any unit."""


@dataclass(frozen=True, eq=False)
class Scan(Mapping[str, Curve]):
    """Curves by the name of their group, and how they were measured. It prints as a table.

    Attributes:
        curves: group name -> curve; with bisection, of the levels that were measured.
        metric: name of the metric.
        tally: samples measured, saved and replayed.
        racing: the rule by which points stopped early; None: all have all samples.
        is_bounded: the damages that raced are bounded, by their metric or a clip, so that the error rate is exact.
        others: curves of further metrics by name; with slices, "accuracy on the worst slice" and the like too.
        by_slice: metric -> group -> damage on each slice at the levels of the group's curve.
        after: what was done to cut models before they were measured; empty = nothing.
        surrogate: what was predicted.
    """

    curves: Mapping[str, Curve]
    metric: str = "metric"
    tally: Tally = field(default_factory=Tally)
    racing: Racing | None = None
    is_bounded: bool = True
    others: Mapping[str, Curves] = field(default_factory=dict)
    by_slice: Mapping[str, Mapping[str, Sliced]] = field(default_factory=dict)
    after: str = ""
    surrogate: Surrogate = field(default_factory=dict)

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

    def agreement(self, surrogate: Surrogate | None = None) -> float | None:
        """Spearman's rank correlation of predicted with measured loss damage, over the points of both.

        Args:
            surrogate: group name -> width kept -> predicted damage, in any unit; None: the scan's own.

        Returns:
            In [-1, 1]; None where there are fewer than two points, or one of the two does not vary.

        >>> curve = Curve("a", (3, 2, 1), (0, 1/3, 2/3), np.zeros((3, 2)), np.array([[0., 0.], [1., 2.], [3., 4.]]))
        >>> Scan({"a": curve}).agreement({"a": {2: 10.0, 1: 50.0}})
        1.0
        """
        predicted, measured = self._beside(self.surrogate if surrogate is None else surrogate)
        if len(predicted) < 2 or (predicted == predicted[0]).all() or (measured == measured[0]).all():
            return None
        return round(float(spearmanr(predicted, measured).statistic), 12)

    def _beside(self, surrogate: Surrogate) -> Floats:
        """Predicted and measured loss damage of the points of both: (2, points)."""
        pairs = [
            (surrogate[name][width], loss)
            for name, curve in self.curves.items()
            for width, loss in zip(curve.widths[1:], curve.mean_loss()[1:], strict=True)
            if width in surrogate.get(name, {})
        ]
        return np.array(pairs, dtype=np.float64).reshape(-1, 2).T

    def of(self, metric: str) -> Curves:
        """The curves of a metric.

        Raises:
            ArgumentError: it was not measured.
        """
        known = {self.metric: self.curves, **self.others}
        if metric not in known:
            raise ArgumentError(f"metric {metric!r} was not measured; there are {list(known)}")
        return known[metric]

    def thresholds(
        self, tolerance: float | Mapping[str, float], *, on: Literal["metric", "loss"] = "metric"
    ) -> dict[str, float]:
        """The greatest sparsity of each group whose mean damage, made to rise with sparsity, is within `tolerance`.

        Args:
            tolerance: of the mean damage; or one a metric by name, all of which must hold.
            on: the damage that is compared with a single tolerance.

        Raises:
            ArgumentError: a metric that was not measured.

        >>> curve = Curve("a", (4, 3, 2), (0, 0.25, 0.5), np.array([[0., 0.], [0., 0.], [0., 1.]]), np.zeros((3, 2)))
        >>> Scan({"a": curve}).thresholds(0.1)
        {'a': 0.25}
        """
        if isinstance(tolerance, Mapping):
            single = [Scan(self.of(name)).thresholds(bound) for name, bound in tolerance.items()]
            return {name: min(found[name] for found in single) for name in self.curves}
        found = {}
        for name, curve in self.curves.items():
            rising = rising_damage(curve, on)
            found[name] = curve.sparsities[int(np.flatnonzero(rising <= max(tolerance, 0.0))[-1])]
        return found

    def finalists(self, tolerance: float, *, on: Literal["metric", "loss"] = "metric") -> dict[str, tuple[float, ...]]:
        """For each group the last sparsity within `tolerance` and the next one: worth measuring after retraining.

        They are what `scan(..., sparsities=)` takes; groups without any are left out.

        >>> curve = Curve("a", (4, 3, 2, 1), (0, 0.25, 0.5, 0.75), np.diag([0.0, 0, 1, 4]), np.zeros((4, 4)))
        >>> Scan({"a": curve}).finalists(0.1)
        {'a': (0.25, 0.5)}
        """
        found = {}
        for name, threshold in self.thresholds(tolerance, on=on).items():
            levels = self.curves[name].sparsities
            at = levels.index(threshold)
            found[name] = tuple(level for level in levels[at : at + 2] if level > 0)
        return {name: levels for name, levels in found.items() if levels}

    def __str__(self) -> str:
        tables = [_table(self.metric, self.curves, self.after)]
        tables += [_table(name, curves, self.after) for name, curves in self.others.items()]
        return "\n".join(["\n\n".join(tables), *self.remarks()])

    def remarks(self) -> Iterator[str]:
        """What to know of how the curves came about, and what to doubt."""
        tally = self.tally
        if tally.stopped and self.racing is not None:
            total = tally.measured + tally.stored + tally.stopped
            saved = f"racing saved {tally.stopped / total:.0%} of the samples"
            yield f"{saved}; {_error_rate(self.racing, self.is_bounded)}"
        if tally.unmeasured:
            yield f"could not be measured, and left out: {'; '.join(map(str, tally.unmeasured))}"
        if tally.why and tally.replayed < tally.measured:
            yield f"not replayed, the whole model was run: {tally.why}"
        agreement = self.agreement()
        if agreement is not None:
            yield (
                f"what was predicted agrees with the measured loss damage to a rank correlation of {agreement:.2f} "
                f"(Spearman, {self._beside(self.surrogate).shape[1]} points)"
            )
        if falls(self.curves.values()):
            yield (
                "the loss is lower without the units, in every group: if more of it is better, as of a likelihood, "
                "turn its sign, as allocations take what it gains for damage"
            )
        if self.suspicious:
            yield (
                f"suspicious: removing units of {', '.join(self.suspicious)} changed nothing at any sparsity; suspect "
                "the probe (data that never reaches them, a metric that does not read them) before calling them robust"
                + (f", unless {self.after} made up for all of it" if self.after else "")
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
    """Whether something was measured, and no sample's metric or loss changed beyond rounding at any sparsity."""
    measured = np.concatenate([curve.damage[1:], curve.loss_damage[1:]])
    return bool(np.isfinite(measured).any()) and not (np.nan_to_num(np.abs(measured), nan=0.0) > NOTHING).any()


def _error_rate(racing: Racing, is_bounded: bool) -> str:
    """How often a race is wrong, in words.

    >>> _error_rate(Racing((0.01, 0.05)), True)
    'each point lies on the wrong side of 0.01, and of 0.05, with probability at most 0.05 each'
    """
    far = f" more than {racing.indifference:g} away" if racing.indifference else ""
    sides, each = ", and of ".join(f"{boundary:g}" for boundary in racing.boundaries), ""
    if len(racing.boundaries) > 1:
        sides, each = f"{sides},", " each"
    point = f"each point{far} lies on the wrong side of {sides} with probability"
    if is_bounded:
        return f"{point} at most {racing.error:g}{each}"
    return (
        f"{point} {racing.error:g}{each} as samples become many: these damages are not bounded, and rare large ones "
        "may come late; a bound, Racing(clip=), makes it hold"
    )


def falls(curves: Iterable[Curve]) -> bool:
    """Whether every group's loss is lower at its highest sparsity, by more than chance, and its metric is worse there.

    >>> worse, lower = np.array([[0.0, 0.0], [1.0, 1.0]]), np.array([[0.0, 0.0], [-2.0, -3.0]])
    >>> falls([Curve("a", (2, 1), (0, 0.5), worse, lower)]), falls([Curve("a", (2, 1), (0, 0.5), worse, worse)])
    (True, False)
    """
    found = []
    for curve in curves:
        loss = replace(curve, damage=curve.loss_damage)
        gained = -loss.mean()[-1]
        found.append(gained > CHANCE * loss.standard_error()[-1] and curve.mean()[-1] > 0)
    return bool(found) and all(found)


def _table(metric: str, curves: Curves, after: str) -> str:
    """Mean damage of each group near a few of the measured sparsities; 80 columns wide at most."""
    shown = _columns(curves)
    names = {name: name if len(name) <= NAME else f"{name[: NAME // 2]}…{name[1 - NAME // 2 :]}" for name in curves}
    width = max([5, *map(len, names.values())])
    lines = [f"{'group':<{width}}" + "".join(f"{f'{level:.0%}':>9}" for level in shown) + f"{'± most':>9}"]
    for name, curve in curves.items():
        cells = [_number(curve.mean()[at]) if (at := _near(curve, level)) else "" for level in shown]
        most = _number(np.fmax.reduce(curve.standard_error()))
        lines.append(f"{names[name]:<{width}}" + "".join(f"{cell:>9}" for cell in [*cells, most]))
    how = f" after {after}" if after else ""
    return "\n".join([f"mean damage to {metric}{how} by sparsity, and its largest standard error", *lines])


def _columns(curves: Curves) -> list[float]:
    """At most five of the sparsities that were measured, spread over all of them."""
    levels = sorted({round(s, 2) for curve in curves.values() for s in curve.sparsities[1:]})
    if len(levels) <= COLUMNS:
        return levels
    pooled = np.concatenate([curve.sparsities[1:] for curve in curves.values()])
    spread = np.quantile(pooled, np.linspace(0, 1, COLUMNS), method="nearest")
    return sorted({round(float(level), 2) for level in spread})


def _near(curve: Curve, level: float) -> int | None:
    """The level of a curve, not the first, that is nearest to a sparsity and at most 5 % away."""
    away = np.abs(np.array(curve.sparsities[1:]) - level)
    return 1 + int(away.argmin()) if len(away) and away.min() <= NEAR + 1e-9 else None


def _number(value: float) -> str:
    """Up to eight characters.

    >>> _number(-0.00391), _number(12.3456), _number(-1.5e-7), _number(123456.0), _number(float("inf"))
    ('-0.0039', '12.346', '0.0000', '1.23e+05', 'inf')
    """
    fixed = (
        f"{round(value, 4) + 0.0:.4f}" if abs(value) < 10 else f"{value:.3f}" if abs(value) < 1000 else f"{value:.2e}"
    )
    return f"{value}" if not np.isfinite(value) else fixed
