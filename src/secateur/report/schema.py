"""The content of `report.json`: everything that the report shows, and nothing else."""

import math
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator

SCHEMA_VERSION: Final = 1
OURS = "secateur"


def finite_or_none(value: Any) -> Any:
    """None in place of NaN and the infinities, which JSON does not have.

    >>> finite_or_none(float("nan")), finite_or_none(0.5)
    (None, 0.5)
    """
    return None if isinstance(value, float) and not math.isfinite(value) else value


Number = Annotated[float | None, BeforeValidator(finite_or_none)]
"""A finite number; None = not measured, or not finite."""


class Part(BaseModel):
    """A strict, immutable part of the report."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class CostRow(Part):
    """One cost before and after.

    Attributes:
        name: "MACs", "parameters", "file size" or "latency".
        unit: "" for counts, "B" for bytes, "s" for seconds.
        before: of the dense model.
        after: of the pruned model.
        spread_before: interquartile range of the timings; None for costs that are counted.
        spread_after: likewise.
        verdict: what the timings allow one to say; None for costs that are counted.
        predicted: the cost after, as it was predicted; None where that is no prediction.
    """

    name: str
    unit: str
    before: Number
    after: Number
    spread_before: Number = None
    spread_after: Number = None
    verdict: str | None = None
    predicted: Number = None

    @property
    def ratio(self) -> float | None:
        """Before divided by after; None where that is not a number.

        >>> CostRow(name="MACs", unit="", before=300, after=100).ratio
        3.0
        """
        return self.before / self.after if self.before is not None and self.after else None


class QualityRow(Part):
    """The metric on one split, dense and pruned; damage is positive where pruning made it worse.

    `higher_is_better` is None where the direction is that of the report's metric.
    """

    name: str
    dense: Number
    pruned: Number
    damage: Number
    standard_error: Number
    higher_is_better: bool | None = None


class CertificateData(Part):
    """The outcome of the test on test data, and its statement in words.

    Attributes:
        sentence: the statement.
        metric: its name.
        samples: number of test samples.
        before: mean metric of the dense model.
        after: mean metric of the pruned model.
        drop: mean damage, positive = worse.
        tolerance: the drop that was to be ruled out; None if only a bound was asked for.
        confidence: of the statement, in (0, 1).
        p_value: of the hypothesis that the drop exceeds the tolerance; None without one.
        certified: whether that was ruled out; without a tolerance, whether there is a bound at all.
        bound: the smallest tolerance that these data certify.
        lost: samples that only the dense model gets right; None if the metric is not 0/1.
        gained: samples that only the pruned model gets right.
        method: the test.
        guarantee: "exact", "anytime" or "asymptotic".
        assumptions: what must be true of the data.
        needed: about how many samples would certify the tolerance; None = no tolerance, or no number would.
        unit: what `samples` counts.
        not_finite: samples whose metric is not finite after pruning.
    """

    sentence: str
    metric: str
    samples: int
    before: Number
    after: Number
    drop: Number
    tolerance: Number
    confidence: float
    p_value: Number
    certified: bool
    bound: Number
    lost: int | None
    gained: int | None
    method: str
    guarantee: str
    assumptions: str
    needed: int | None = None
    unit: str = "samples"
    not_finite: int = 0


class CurveData(Part):
    """Damage against sparsity for one group; None where the network broke down."""

    group: str
    granularity: str
    sparsities: list[float]
    damage: list[Number]
    standard_error: list[Number]
    loss_damage: list[Number] = []
    chosen_sparsity: Number = None

    @model_validator(mode="after")
    def _same_lengths(self) -> Self:
        columns = {"damage": self.damage, "standard_error": self.standard_error}
        _check_lengths(f"curve {self.group!r}", "sparsities", len(self.sparsities), columns)
        if self.loss_damage:
            _check_lengths(f"curve {self.group!r}", "sparsities", len(self.sparsities), {"loss": self.loss_damage})
        return self


class WidthRow(Part):
    """Units of a group before and after, and the tensors that it ties together."""

    group: str
    granularity: str
    before: int
    after: int
    parameters: list[str]


class ThresholdData(Part):
    """Cross-validated damage against budget, and the choice; `of` is the cost that budgets are fractions of."""

    budgets: list[float]
    damage: list[Number]
    standard_error: list[Number]
    predicted: list[Number]
    chosen: Number
    tolerance: Number
    reason: str
    of: str = "MACs"

    @property
    def interaction(self) -> float | None:
        """Joint damage less the sum of single damages at the chosen budget; None where either is not known.

        >>> ThresholdData(budgets=[1.0, 0.5], damage=[0, 0.75], standard_error=[0, 0], predicted=[0, 0.5], chosen=0.5,
        ...     tolerance=None, reason="").interaction
        0.25
        """
        if self.chosen not in self.budgets:
            return None
        at = self.budgets.index(self.chosen)
        joint, single = self.damage[at], self.predicted[at]
        return None if joint is None or single is None else joint - single

    @model_validator(mode="after")
    def _same_lengths(self) -> Self:
        columns = {"damage": self.damage, "standard_error": self.standard_error, "predicted": self.predicted}
        _check_lengths("thresholds", "budgets", len(self.budgets), columns)
        return self


class FrontPoint(Part):
    """A measured allocation.

    Attributes:
        rule: the objective.
        budget: the fraction that was asked for.
        share: the fraction of the bounded cost that is left.
        damage: measured, as cut and nothing else.
        standard_error: of the damage.
        predicted: sum of the damages of single groups, to the same metric.
        is_dominated: another point is nowhere worse and somewhere better.
        is_chosen: the run went there, or next to there.
        costs: each cost and the fraction of it that is left.
        widths: each group and its units before and after.
    """

    rule: str
    budget: float
    share: float
    damage: Number
    standard_error: Number
    predicted: Number
    is_dominated: bool
    is_chosen: bool = False
    costs: list[tuple[str, float]] = []
    widths: list[tuple[str, int, int]] = []


class FrontData(Part):
    """Measured points of cost against damage; `of` is the cost whose share they are ordered by."""

    of: str
    points: list[FrontPoint]


class RoundRow(Part):
    """One round of cut, repair and retraining; `macs` is a fraction of the dense MACs, `target` of what is bounded."""

    number: int
    target: Number
    macs: Number
    damage_cut: Number
    damage_repaired: Number
    damage_retrained: Number
    standard_error: Number
    kept: bool
    reason: str


class ControlRow(Part):
    """A way of pruning at the same MACs; the row named "secateur" is this run's own result."""

    name: str
    macs: Number
    damage: Number
    standard_error: Number
    metric: Number = None
    note: str = ""


class LeftRow(Part):
    """Something that was not cut, and why; `size` counts positions."""

    where: str
    reason: str
    size: int | None = None


class RewriteRow(Part):
    """An attribute of a module that was changed."""

    module: str
    attribute: str
    before: str
    after: str


class ReportData(Part):
    """Everything that the report shows.

    Attributes:
        title: one line.
        created: ISO 8601.
        versions: of secateur, torch, python and whatever else matters.
        machine: the device in words.
        threads: of torch while timing.
        seed: of the run.
        command: how the run was started; empty if it was a call from Python.
        metric: name of what the damages are about.
        higher_is_better: its direction.
        is_share: whether the metric lies in [0, 1] and reads best in per cent; None = by its name.
        asked: label and value of everything that the user chose.
        choices: what was chosen among several ways, and why, in sentences.
        coverage: share of the removable positions that lie in a group, in [0, 1].
        timings: stage and seconds.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    title: str
    created: str
    versions: dict[str, str]
    machine: str
    threads: int
    seed: int
    command: str = ""
    metric: str
    higher_is_better: bool
    is_share: bool | None = None
    asked: list[tuple[str, str]]
    costs: list[CostRow]
    quality: list[QualityRow]
    certificate: CertificateData | None
    curves: list[CurveData]
    widths: list[WidthRow]
    thresholds: ThresholdData | None
    front: FrontData | None = None
    choices: list[str] = []
    rounds: list[RoundRow]
    controls: list[ControlRow]
    left_alone: list[LeftRow]
    coverage: Number
    rewrites: list[RewriteRow]
    warnings: list[str]
    timings: list[tuple[str, float]]

    @property
    def shows_points(self) -> bool:
        """Whether damage reads best in percentage points."""
        return "accuracy" in self.metric.lower() if self.is_share is None else self.is_share


def _check_lengths(where: str, of: str, count: int, columns: dict[str, list[Number]]) -> None:
    for name, values in columns.items():
        if len(values) != count:
            raise ValueError(f"{where}: {len(values)} values of {name} for {count} {of}; give one for each")
