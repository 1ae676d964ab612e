"""A report with every part filled, and names that try to escape."""

from secateur.report.schema import (
    CertificateData,
    ControlRow,
    CostRow,
    CurveData,
    LeftRow,
    QualityRow,
    ReportData,
    RewriteRow,
    RoundRow,
    ThresholdData,
    WidthRow,
)

EVIL = "<script>alert(1)</script>"


def example(**changes) -> ReportData:
    values = {
        "title": f"secateur: {EVIL}",
        "created": "2026-01-01T00:00:00+00:00",
        "versions": {"secateur": "0.1.0"},
        "machine": "Linux x86_64",
        "threads": 2,
        "seed": 0,
        "metric": "accuracy",
        "higher_is_better": True,
        "asked": [("model", EVIL)],
        "costs": [
            CostRow(name="MACs", unit="", before=4e6, after=1e6),
            CostRow(
                name="latency", unit="s", before=3e-3, after=1e-3, spread_before=1e-4, spread_after=1e-5,
                verdict="3.00x faster",
            ),
        ],
        "quality": [QualityRow(name="validation", dense=0.9, pruned=0.89, damage=0.01, standard_error=0.002)],
        "certificate": CertificateData(
            sentence="With 95% confidence the accuracy drops by at most 0.0150.", metric="accuracy", samples=1000,
            before=0.9, after=0.89, drop=0.01, tolerance=0.02, confidence=0.95, p_value=0.001, certified=True,
            bound=0.015, lost=20, gained=10, method="exact", guarantee="exact", assumptions="none",
        ),
        "curves": [
            CurveData(
                group=EVIL, granularity="channel", sparsities=[0.0, 0.5, 0.9], damage=[0.0, 0.1, None],
                standard_error=[0.0, 0.02, None], chosen_sparsity=0.5,
            )
        ],
        "widths": [WidthRow(group=EVIL, granularity="channel", before=32, after=8, parameters=["a.weight"])],
        "thresholds": ThresholdData(
            budgets=[1.0, 0.5], damage=[0.0, 0.01], standard_error=[0.001, 0.002], predicted=[0.0, 0.01], chosen=0.5,
            tolerance=0.02, reason="because",
        ),
        "rounds": [
            RoundRow(
                number=1, target=0.5, macs=0.49, damage_cut=0.2, damage_repaired=0.05, damage_retrained=0.01,
                standard_error=0.002, kept=True, reason="fine",
            )
        ],
        "controls": [
            ControlRow(name="secateur", macs=0.5, damage=0.01, standard_error=0.002),
            ControlRow(name="random", macs=0.5, damage=None, standard_error=None),
        ],
        "left_alone": [LeftRow(where=EVIL, reason="an output of the model", size=3)],
        "coverage": 0.97,
        "rewrites": [RewriteRow(module=EVIL, attribute="groups", before="4", after="2")],
        "warnings": [EVIL],
        "timings": [("scan", 1.5)],
    }  # fmt: skip
    return ReportData(**{**values, **changes})
