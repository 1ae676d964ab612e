"""secateur: measures what a trained network can lose, removes it, and certifies what it cost.

Public names are imported when they are first used, so that `secateur --help` does not wait for torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from secateur.allocation.certificate import Certificate, certify_paired
    from secateur.allocation.knapsack import allocate
    from secateur.criteria.activations import ActivationNorm, ActiveShare, MeanActivation
    from secateur.criteria.chance import Random
    from secateur.criteria.collect import collect
    from secateur.criteria.criterion import Criterion, score
    from secateur.criteria.curvature import KFAC, OBD, HessianTrace
    from secateur.criteria.energy import RIA, ActivationVariance, Wanda, WandaGroup
    from secateur.criteria.flow import GraSP, SynFlow
    from secateur.criteria.gradients import SNIP, FisherGate, Gradient, SecondOrderTaylor, Taylor
    from secateur.criteria.group_obs import GroupOBS
    from secateur.criteria.magnitude import LAMP, BatchNormScale, GeometricMedian, Magnitude
    from secateur.criteria.obs import OBS
    from secateur.criteria.statistics import Statistics
    from secateur.errors import (
        ArgumentError,
        BudgetError,
        DataError,
        MetricError,
        MissingExtraError,
        NumericalError,
        PlanError,
        RecipeError,
        SavedModelError,
        SecateurError,
        StoreError,
        SurgeryError,
        TraceError,
    )
    from secateur.graph.groups import find_fixed, find_groups
    from secateur.graph.trace import Program, trace
    from secateur.measures.cost import measure
    from secateur.measures.metrics import Metric
    from secateur.pipeline.prune import prune
    from secateur.pipeline.result import Result
    from secateur.repairs.folding import fold
    from secateur.repairs.repair import Repaired, repair
    from secateur.sensitivity.scan import scan
    from secateur.storage.saved_model import load_model as load, save_model as save
    from secateur.surgery.cut import cut
    from secateur.surgery.mask import mask
    from secateur.surgery.plan import Plan, plan
    from secateur.training.loop import Retraining
    from secateur.training.schedules import Schedule
    from secateur.types import Budget, Cost, Curve, FixedAxis, Group

# Public name -> where it lives.
_HOMES = {
    "ActivationNorm": "secateur.criteria.activations:ActivationNorm",
    "ActivationVariance": "secateur.criteria.energy:ActivationVariance",
    "ActiveShare": "secateur.criteria.activations:ActiveShare",
    "ArgumentError": "secateur.errors:ArgumentError",
    "BatchNormScale": "secateur.criteria.magnitude:BatchNormScale",
    "Budget": "secateur.types:Budget",
    "BudgetError": "secateur.errors:BudgetError",
    "Certificate": "secateur.allocation.certificate:Certificate",
    "Cost": "secateur.types:Cost",
    "Criterion": "secateur.criteria.criterion:Criterion",
    "Curve": "secateur.types:Curve",
    "DataError": "secateur.errors:DataError",
    "FisherGate": "secateur.criteria.gradients:FisherGate",
    "FixedAxis": "secateur.types:FixedAxis",
    "GeometricMedian": "secateur.criteria.magnitude:GeometricMedian",
    "GraSP": "secateur.criteria.flow:GraSP",
    "Gradient": "secateur.criteria.gradients:Gradient",
    "Group": "secateur.types:Group",
    "GroupOBS": "secateur.criteria.group_obs:GroupOBS",
    "HessianTrace": "secateur.criteria.curvature:HessianTrace",
    "KFAC": "secateur.criteria.curvature:KFAC",
    "LAMP": "secateur.criteria.magnitude:LAMP",
    "Magnitude": "secateur.criteria.magnitude:Magnitude",
    "MeanActivation": "secateur.criteria.activations:MeanActivation",
    "Metric": "secateur.measures.metrics:Metric",
    "MetricError": "secateur.errors:MetricError",
    "MissingExtraError": "secateur.errors:MissingExtraError",
    "NumericalError": "secateur.errors:NumericalError",
    "OBD": "secateur.criteria.curvature:OBD",
    "OBS": "secateur.criteria.obs:OBS",
    "Plan": "secateur.surgery.plan:Plan",
    "PlanError": "secateur.errors:PlanError",
    "Program": "secateur.graph.trace:Program",
    "RIA": "secateur.criteria.energy:RIA",
    "Random": "secateur.criteria.chance:Random",
    "RecipeError": "secateur.errors:RecipeError",
    "Repaired": "secateur.repairs.repair:Repaired",
    "Result": "secateur.pipeline.result:Result",
    "Retraining": "secateur.training.loop:Retraining",
    "SNIP": "secateur.criteria.gradients:SNIP",
    "SavedModelError": "secateur.errors:SavedModelError",
    "Schedule": "secateur.training.schedules:Schedule",
    "SecateurError": "secateur.errors:SecateurError",
    "SecondOrderTaylor": "secateur.criteria.gradients:SecondOrderTaylor",
    "Statistics": "secateur.criteria.statistics:Statistics",
    "StoreError": "secateur.errors:StoreError",
    "SurgeryError": "secateur.errors:SurgeryError",
    "SynFlow": "secateur.criteria.flow:SynFlow",
    "Taylor": "secateur.criteria.gradients:Taylor",
    "TraceError": "secateur.errors:TraceError",
    "Wanda": "secateur.criteria.energy:Wanda",
    "WandaGroup": "secateur.criteria.energy:WandaGroup",
    "allocate": "secateur.allocation.knapsack:allocate",
    "certify_paired": "secateur.allocation.certificate:certify_paired",
    "collect": "secateur.criteria.collect:collect",
    "cut": "secateur.surgery.cut:cut",
    "find_fixed": "secateur.graph.groups:find_fixed",
    "find_groups": "secateur.graph.groups:find_groups",
    "fold": "secateur.repairs.folding:fold",
    "load": "secateur.storage.saved_model:load_model",
    "mask": "secateur.surgery.mask:mask",
    "measure": "secateur.measures.cost:measure",
    "plan": "secateur.surgery.plan:plan",
    "prune": "secateur.pipeline.prune:prune",
    "repair": "secateur.repairs.repair:repair",
    "save": "secateur.storage.saved_model:save_model",
    "scan": "secateur.sensitivity.scan:scan",
    "score": "secateur.criteria.criterion:score",
    "trace": "secateur.graph.trace:trace",
}

__all__ = [
    "KFAC",
    "LAMP",
    "OBD",
    "OBS",
    "RIA",
    "SNIP",
    "ActivationNorm",
    "ActivationVariance",
    "ActiveShare",
    "ArgumentError",
    "BatchNormScale",
    "Budget",
    "BudgetError",
    "Certificate",
    "Cost",
    "Criterion",
    "Curve",
    "DataError",
    "FisherGate",
    "FixedAxis",
    "GeometricMedian",
    "GraSP",
    "Gradient",
    "Group",
    "GroupOBS",
    "HessianTrace",
    "Magnitude",
    "MeanActivation",
    "Metric",
    "MetricError",
    "MissingExtraError",
    "NumericalError",
    "Plan",
    "PlanError",
    "Program",
    "Random",
    "RecipeError",
    "Repaired",
    "Result",
    "Retraining",
    "SavedModelError",
    "Schedule",
    "SecateurError",
    "SecondOrderTaylor",
    "Statistics",
    "StoreError",
    "SurgeryError",
    "SynFlow",
    "Taylor",
    "TraceError",
    "Wanda",
    "WandaGroup",
    "allocate",
    "certify_paired",
    "collect",
    "cut",
    "find_fixed",
    "find_groups",
    "fold",
    "load",
    "mask",
    "measure",
    "plan",
    "prune",
    "repair",
    "save",
    "scan",
    "score",
    "trace",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'secateur' has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
