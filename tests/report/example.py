"""A made-up report of a residual network, realistic in its shapes, with some awkward names and gaps."""

import math

import numpy as np

from secateur.report.schema import (
    CertificateData,
    ControlRow,
    CostRow,
    CurveData,
    FrontData,
    FrontPoint,
    LeftRow,
    QualityRow,
    ReportData,
    RewriteRow,
    RoundRow,
    ThresholdData,
    WidthRow,
)

EVIL = "<script>alert(1)</script>"
SPARSITIES = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
BUDGETS = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.35, 0.3, 0.25, 0.2]
EVERY_PART = (
    "asked", "costs", "quality", "certificate", "curves", "widths", "thresholds", "front", "rounds", "controls",
    "left_alone", "coverage", "rewrites", "warnings", "timings",
)  # fmt: skip


def example(curves: int = 22) -> ReportData:
    """A report with every part."""
    rng = np.random.default_rng(0)
    names = [f"layer{1 + k // 6}.{k // 2 % 3}.conv{1 + k % 2}" for k in range(curves - 1)] + [f"head.{EVIL}"]
    return ReportData(
        title="ResNet-20 on CIFAR-10",
        created="2026-11-21T09:30:00+00:00",
        versions={"secateur": "0.1.0", "torch": "2.13.0+cpu", "python": "3.11.7"},
        machine="Linux x86_64, 16-core CPU",
        threads=4,
        seed=0,
        command="secateur prune recipes/resnet20-cifar10.yaml --out runs/resnet20",
        metric="accuracy",
        higher_is_better=True,
        asked=[
            ("model", "torchvision_like.models.ResNet20"),
            ("goal", "lose at most 0.01 of accuracy"),
            ("calibration data", "512 samples"),
            ("validation data", "5000 samples in 5 folds"),
            ("test data", "10000 samples, read once"),
            ("criterion", "Taylor(order=1, squared=True)"),
            ("schedule", "3 rounds, cubic"),
            ("repair", "least squares and batch-norm moments"),
            ("retraining", "2 epochs a round, SGD(lr=0.01, momentum=0.9), distilled from the dense model"),
        ],
        costs=[
            CostRow(name="MACs", unit="", before=40_813_184, after=13_121_536),
            CostRow(name="parameters", unit="", before=272_474, after=98_310),
            CostRow(name="file size", unit="B", before=1_104_512, after=409_088),
            CostRow(
                name="latency", unit="s", before=0.00412, after=0.00217, spread_before=0.00011, spread_after=0.00009,
                verdict="1.90x faster",
            ),
        ],
        quality=[
            QualityRow(name="validation", dense=0.9214, pruned=0.9182, damage=0.0032, standard_error=0.0021),
            QualityRow(name="test", dense=0.9203, pruned=0.9167, damage=0.0036, standard_error=0.0019),
        ],
        certificate=certificate(),
        curves=[_curve(name, rng, chosen=(k % 7) / 10 if k % 5 else None) for k, name in enumerate(names)],
        widths=[
            WidthRow(
                group=name, granularity="channel", before=16 * 2 ** (k // 8),
                after=int(16 * 2 ** (k // 8) * (1 - (k % 7) / 10)),
                parameters=[f"{name}.weight", f"{name}.bias", "bn.weight", "bn.bias"],
            )
            for k, name in enumerate(names)
        ],
        thresholds=ThresholdData(
            budgets=BUDGETS,
            damage=[0.0, 0.0004, 0.0008, 0.0016, 0.0034, 0.0058, 0.0081, 0.0127, 0.0224, 0.061, math.nan],
            standard_error=[0.0, 0.0007, 0.0008, 0.0010, 0.0012, 0.0014, 0.0016, 0.0019, 0.0024, 0.004, math.nan],
            predicted=[0.0, 0.0003, 0.0006, 0.0013, 0.0026, 0.0043, 0.0062, 0.0090, 0.0143, 0.033, 0.07],
            chosen=0.4,
            tolerance=0.01,
            reason="the smallest budget whose damage plus one standard error is within the tolerance",
        ),
        front=FrontData(
            of="MACs",
            points=[
                FrontPoint(
                    rule="least damage", budget=share, share=share, damage=damage, standard_error=0.001,
                    predicted=damage, is_dominated=share == 0.8, is_chosen=share == 0.4,
                    costs=[("MACs", share), ("parameters", share / 2)],
                    widths=[(f"head.{EVIL}", 64, int(64 * share))],
                )
                for share, damage in ((1.0, 0.0), (0.8, 0.01), (0.6, 0.005), (0.4, 0.02), (0.2, math.nan))
            ],
        ),
        choices=["taylor: 40% is the most aggressive budget"],
        rounds=[
            RoundRow(
                number=1, target=0.62, macs=0.617, damage_cut=0.031, damage_repaired=0.0042, damage_retrained=-0.0004,
                standard_error=0.0016, kept=True, reason="within the tolerance",
            ),
            RoundRow(
                number=2, target=0.38, macs=0.322, damage_cut=0.412, damage_repaired=0.021, damage_retrained=0.0032,
                standard_error=0.0021, kept=True, reason="within the tolerance",
            ),
            RoundRow(
                number=3, target=0.22, macs=0.219, damage_cut=None, damage_repaired=0.187, damage_retrained=0.0192,
                standard_error=0.0031, kept=False, reason="rolled back: breaks the tolerance",
            ),
        ],
        controls=[
            ControlRow(name="secateur", macs=0.322, damage=0.0032, standard_error=0.0021, metric=0.9182),
            ControlRow(name="uniform-magnitude", macs=0.321, damage=0.0141, standard_error=0.0027, metric=0.9073),
            ControlRow(name="random", macs=0.322, damage=0.0226, standard_error=0.0031, metric=0.8988, note="seed 0"),
            ControlRow(name="global-threshold", macs=0.323, damage=None, standard_error=None, note="it broke down"),
        ],
        left_alone=[
            LeftRow(where="conv1.weight, dimension 1", reason="an input of the model", size=3),
            *(LeftRow(where=f"layer{k}.0.conv1.weight, dim 2", reason="a tap of a kernel", size=3) for k in "123"),
            LeftRow(where="fc.weight, dimension 0", reason="an output of the model", size=10),
            LeftRow(where="group layer1.shortcut", reason="its cut could not be rewritten in the module's own code"),
        ],
        coverage=0.962,
        rewrites=[
            RewriteRow(module=f"layer{k}.{b}.conv1", attribute="out_channels", before="32", after="19")
            for k in (1, 2, 3)
            for b in (0, 1, 2)
        ],
        warnings=[f"Silencing units of head.{EVIL} changed nothing at any sparsity: suspect the probe."],
        timings=[("baseline", 4.2), ("scores", 11.8), ("curves", 96.3), ("cross-validation", 41.0), ("rounds", 388.5)],
    )  # fmt: skip


def certificate(**changes: object) -> CertificateData:
    """A certificate that was given, or with `changes`."""
    given: dict[str, object] = {
        "sentence": "With 95% confidence the accuracy drops by at most 0.0081; the tolerance of 0.01 is certified "
        "on 10000 test samples.",
        "metric": "accuracy",
        "samples": 10000,
        "before": 0.9203,
        "after": 0.9167,
        "drop": 0.0036,
        "tolerance": 0.01,
        "confidence": 0.95,
        "p_value": 0.0113,
        "certified": True,
        "bound": 0.0081,
        "lost": 214,
        "gained": 178,
        "method": "exact paired score test with Berger-Boos correction",
        "guarantee": "exact",
        "assumptions": "The test samples are exchangeable with those the model will meet, were used for nothing "
        "before, and are used for this one test.",
    }
    return CertificateData.model_validate(given | changes)


def bare() -> ReportData:
    """A report with nothing in it but what it must have."""
    nothing = {name: None if name in ("certificate", "thresholds", "front", "coverage") else [] for name in EVERY_PART}
    return example().model_copy(update=nothing)


def _curve(name: str, rng: np.random.Generator, chosen: float | None) -> CurveData:
    steepness, height = rng.uniform(1.5, 9), rng.uniform(0.02, 0.5)
    damage = [float(height * s**steepness + (0.002 * rng.standard_normal() if s else 0)) for s in SPARSITIES]
    error = [0.001 + 0.03 * abs(d) ** 0.7 if s else 0.0 for s, d in zip(SPARSITIES, damage, strict=True)]
    if rng.uniform() < 0.1:
        damage[-1] = math.nan
    return CurveData(
        group=name, granularity="channel", sparsities=SPARSITIES, damage=damage, standard_error=error,
        loss_damage=[3 * d for d in damage], chosen_sparsity=chosen,
    )  # fmt: skip
