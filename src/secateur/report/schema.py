"""The content of `report.json`: everything that the report shows, and nothing else."""

from pydantic import BaseModel, ConfigDict

SCHEMA_VERSION = 1


class Part(BaseModel):
    """A strict, immutable part of the report."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="null")


class CostRow(Part):
    """One cost before and after; `verdict` says what timings allow."""

    name: str
    unit: str
    before: float
    after: float
    spread_before: float | None = None
    spread_after: float | None = None
    verdict: str | None = None

    @property
    def ratio(self) -> float:
        """Before divided by after."""
        return self.before / self.after if self.after else float("inf")


class QualityRow(Part):
    """A metric on one split, dense and pruned."""

    name: str
    dense: float
    pruned: float
    damage: float | None
    standard_error: float | None


class CertificateData(Part):
    """The certificate, as `Certificate.to_dict` and its sentence give it."""

    sentence: str
    metric: str
    samples: int
    before: float
    after: float
    drop: float
    tolerance: float
    confidence: float
    p_value: float
    certified: bool
    bound: float
    lost: int | None
    gained: int | None
    method: str
    guarantee: str
    assumptions: str


class CurveData(Part):
    """Damage against sparsity for one group; None where the network broke down."""

    group: str
    granularity: str
    sparsities: list[float]
    damage: list[float | None]
    standard_error: list[float | None]
    chosen_sparsity: float | None = None


class WidthRow(Part):
    """Units of a group before and after."""

    group: str
    granularity: str
    before: int
    after: int
    parameters: list[str]


class ThresholdData(Part):
    """Cross-validated damage against budget, and the choice."""

    budgets: list[float]
    damage: list[float | None]
    standard_error: list[float | None]
    predicted: list[float | None]
    chosen: float | None
    tolerance: float | None
    reason: str


class RoundRow(Part):
    """One round of cut, repair and retraining; budgets are fractions of the dense multiply-adds."""

    number: int
    target: float
    macs: float
    damage_cut: float | None
    damage_repaired: float | None
    damage_retrained: float | None
    standard_error: float | None
    kept: bool
    reason: str


class ControlRow(Part):
    """A way of pruning at the same multiply-adds."""

    name: str
    macs: float
    damage: float | None
    standard_error: float | None


class LeftRow(Part):
    """Something that was not cut, and why."""

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
    """Everything that the report shows."""

    schema_version: int = SCHEMA_VERSION
    title: str
    created: str
    versions: dict[str, str]
    machine: str
    threads: int
    seed: int
    metric: str
    higher_is_better: bool
    asked: list[tuple[str, str]]
    costs: list[CostRow]
    quality: list[QualityRow]
    certificate: CertificateData | None
    curves: list[CurveData]
    widths: list[WidthRow]
    thresholds: ThresholdData | None
    rounds: list[RoundRow]
    controls: list[ControlRow]
    left_alone: list[LeftRow]
    coverage: float | None
    rewrites: list[RewriteRow]
    warnings: list[str]
    timings: list[tuple[str, float]]
