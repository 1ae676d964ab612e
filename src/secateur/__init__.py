"""secateur: measures what a trained network can lose, removes it, and certifies what it cost.

Public names are imported when they are first used, so that `secateur --help` does not wait for torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from secateur.allocation.allocate import allocate
    from secateur.allocation.certificate import Certificate, certify_agreement, certify_paired
    from secateur.allocation.contenders import Contenders
    from secateur.allocation.front import Front, front
    from secateur.allocation.local_search import Refined, refine
    from secateur.allocation.objectives import EqualDamage, GlobalThreshold, LeastDamage, Objective, UniformDensity
    from secateur.allocation.sample_size import sample_size
    from secateur.allocation.selection import Candidate, Selection, select
    from secateur.capture.parking import Offload
    from secateur.criteria.activations import ActivationNorm, ActiveShare, MeanActivation
    from secateur.criteria.chance import Random
    from secateur.criteria.collect import collect
    from secateur.criteria.criterion import Criterion, score
    from secateur.criteria.curvature import KFAC, OBD, HessianTrace
    from secateur.criteria.depth import BlockCosine
    from secateur.criteria.energy import RIA, ActivationVariance, Wanda, WandaGroup
    from secateur.criteria.flow import GraSP, SynFlow
    from secateur.criteria.gradients import SNIP, FisherGate, Gradient, SecondOrderTaylor, Taylor
    from secateur.criteria.group_obs import GroupOBS
    from secateur.criteria.magnitude import LAMP, BatchNormScale, GeometricMedian, Magnitude
    from secateur.criteria.obs import OBS
    from secateur.criteria.predict import predict
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
        WorkerError,
    )
    from secateur.graph.costs import costs
    from secateur.graph.groups import find_fixed, find_groups
    from secateur.graph.trace import Program, trace
    from secateur.measures.cost import measure
    from secateur.measures.metrics import Metric
    from secateur.pipeline.certification import Certification, SequenceCertification
    from secateur.pipeline.certify import certify, certify_sequence
    from secateur.pipeline.latency import latency_costs
    from secateur.pipeline.picture import plot
    from secateur.pipeline.prune import prune
    from secateur.pipeline.result import Result
    from secateur.progress_bars import make_progress
    from secateur.repairs.folding import fold
    from secateur.repairs.repair import Repaired, repair
    from secateur.sensitivity.after import AfterRepair
    from secateur.sensitivity.executor import Executor, SerialExecutor
    from secateur.sensitivity.processes import ProcessExecutor
    from secateur.sensitivity.racing import Racing
    from secateur.sensitivity.ray_cluster import RayExecutor
    from secateur.sensitivity.refit import AfterRefit
    from secateur.sensitivity.result import Scan
    from secateur.sensitivity.scan import scan
    from secateur.sparsity.allocate import Sparsity, sparsity_plan
    from secateur.sparsity.alps import ALPS
    from secateur.sparsity.hold import hold, release
    from secateur.sparsity.measured_shares import Measured
    from secateur.sparsity.method import Masked
    from secateur.sparsity.obc import OBC
    from secateur.sparsity.patterns import NM, Blocks, Unstructured
    from secateur.sparsity.plan import SparsityPlan
    from secateur.sparsity.runtime import semi_structured, sparse_speed
    from secateur.sparsity.shares import ERK, OWL, Global, Uniform
    from secateur.sparsity.sparsegpt import SparseGPT
    from secateur.sparsity.sparsify import Sparsified, sparsify
    from secateur.storage.curve_store import CurveStore
    from secateur.storage.saved_model import load_model as load, save_model as save
    from secateur.surgery.cut import cut
    from secateur.surgery.mask import mask
    from secateur.surgery.plan import Plan, plan
    from secateur.training.after import AfterRetraining
    from secateur.training.loop import Retraining
    from secateur.training.schedules import Schedule
    from secateur.types import Allocation, Budget, Cost, Curve, FixedAxis, Group

# Public name -> where it lives.
_HOMES = {
    "ALPS": "secateur.sparsity.alps:ALPS",
    "ActivationNorm": "secateur.criteria.activations:ActivationNorm",
    "ActivationVariance": "secateur.criteria.energy:ActivationVariance",
    "ActiveShare": "secateur.criteria.activations:ActiveShare",
    "AfterRefit": "secateur.sensitivity.refit:AfterRefit",
    "AfterRepair": "secateur.sensitivity.after:AfterRepair",
    "AfterRetraining": "secateur.training.after:AfterRetraining",
    "Allocation": "secateur.types:Allocation",
    "ArgumentError": "secateur.errors:ArgumentError",
    "BatchNormScale": "secateur.criteria.magnitude:BatchNormScale",
    "BlockCosine": "secateur.criteria.depth:BlockCosine",
    "Blocks": "secateur.sparsity.patterns:Blocks",
    "Budget": "secateur.types:Budget",
    "BudgetError": "secateur.errors:BudgetError",
    "Candidate": "secateur.allocation.selection:Candidate",
    "Certificate": "secateur.allocation.certificate:Certificate",
    "Certification": "secateur.pipeline.certification:Certification",
    "Contenders": "secateur.allocation.contenders:Contenders",
    "Cost": "secateur.types:Cost",
    "Criterion": "secateur.criteria.criterion:Criterion",
    "Curve": "secateur.types:Curve",
    "CurveStore": "secateur.storage.curve_store:CurveStore",
    "DataError": "secateur.errors:DataError",
    "ERK": "secateur.sparsity.shares:ERK",
    "EqualDamage": "secateur.allocation.objectives:EqualDamage",
    "Executor": "secateur.sensitivity.executor:Executor",
    "FisherGate": "secateur.criteria.gradients:FisherGate",
    "FixedAxis": "secateur.types:FixedAxis",
    "Front": "secateur.allocation.front:Front",
    "GeometricMedian": "secateur.criteria.magnitude:GeometricMedian",
    "Global": "secateur.sparsity.shares:Global",
    "GlobalThreshold": "secateur.allocation.objectives:GlobalThreshold",
    "GraSP": "secateur.criteria.flow:GraSP",
    "Gradient": "secateur.criteria.gradients:Gradient",
    "Group": "secateur.types:Group",
    "GroupOBS": "secateur.criteria.group_obs:GroupOBS",
    "HessianTrace": "secateur.criteria.curvature:HessianTrace",
    "KFAC": "secateur.criteria.curvature:KFAC",
    "LAMP": "secateur.criteria.magnitude:LAMP",
    "LeastDamage": "secateur.allocation.objectives:LeastDamage",
    "Magnitude": "secateur.criteria.magnitude:Magnitude",
    "Masked": "secateur.sparsity.method:Masked",
    "MeanActivation": "secateur.criteria.activations:MeanActivation",
    "Measured": "secateur.sparsity.measured_shares:Measured",
    "Metric": "secateur.measures.metrics:Metric",
    "MetricError": "secateur.errors:MetricError",
    "MissingExtraError": "secateur.errors:MissingExtraError",
    "NM": "secateur.sparsity.patterns:NM",
    "NumericalError": "secateur.errors:NumericalError",
    "OBC": "secateur.sparsity.obc:OBC",
    "OBD": "secateur.criteria.curvature:OBD",
    "OBS": "secateur.criteria.obs:OBS",
    "OWL": "secateur.sparsity.shares:OWL",
    "Objective": "secateur.allocation.objectives:Objective",
    "Offload": "secateur.capture.parking:Offload",
    "Plan": "secateur.surgery.plan:Plan",
    "PlanError": "secateur.errors:PlanError",
    "ProcessExecutor": "secateur.sensitivity.processes:ProcessExecutor",
    "Program": "secateur.graph.trace:Program",
    "RIA": "secateur.criteria.energy:RIA",
    "Racing": "secateur.sensitivity.racing:Racing",
    "Random": "secateur.criteria.chance:Random",
    "RayExecutor": "secateur.sensitivity.ray_cluster:RayExecutor",
    "RecipeError": "secateur.errors:RecipeError",
    "Refined": "secateur.allocation.local_search:Refined",
    "Repaired": "secateur.repairs.repair:Repaired",
    "Result": "secateur.pipeline.result:Result",
    "Retraining": "secateur.training.loop:Retraining",
    "SNIP": "secateur.criteria.gradients:SNIP",
    "SavedModelError": "secateur.errors:SavedModelError",
    "Scan": "secateur.sensitivity.result:Scan",
    "Schedule": "secateur.training.schedules:Schedule",
    "SecateurError": "secateur.errors:SecateurError",
    "SecondOrderTaylor": "secateur.criteria.gradients:SecondOrderTaylor",
    "Selection": "secateur.allocation.selection:Selection",
    "SequenceCertification": "secateur.pipeline.certification:SequenceCertification",
    "SerialExecutor": "secateur.sensitivity.executor:SerialExecutor",
    "SparseGPT": "secateur.sparsity.sparsegpt:SparseGPT",
    "Sparsified": "secateur.sparsity.sparsify:Sparsified",
    "Sparsity": "secateur.sparsity.allocate:Sparsity",
    "SparsityPlan": "secateur.sparsity.plan:SparsityPlan",
    "Statistics": "secateur.criteria.statistics:Statistics",
    "StoreError": "secateur.errors:StoreError",
    "SurgeryError": "secateur.errors:SurgeryError",
    "SynFlow": "secateur.criteria.flow:SynFlow",
    "Taylor": "secateur.criteria.gradients:Taylor",
    "TraceError": "secateur.errors:TraceError",
    "Uniform": "secateur.sparsity.shares:Uniform",
    "UniformDensity": "secateur.allocation.objectives:UniformDensity",
    "Unstructured": "secateur.sparsity.patterns:Unstructured",
    "Wanda": "secateur.criteria.energy:Wanda",
    "WandaGroup": "secateur.criteria.energy:WandaGroup",
    "WorkerError": "secateur.errors:WorkerError",
    "allocate": "secateur.allocation.allocate:allocate",
    "certify": "secateur.pipeline.certify:certify",
    "certify_agreement": "secateur.allocation.certificate:certify_agreement",
    "certify_paired": "secateur.allocation.certificate:certify_paired",
    "certify_sequence": "secateur.pipeline.certify:certify_sequence",
    "collect": "secateur.criteria.collect:collect",
    "costs": "secateur.graph.costs:costs",
    "cut": "secateur.surgery.cut:cut",
    "find_fixed": "secateur.graph.groups:find_fixed",
    "find_groups": "secateur.graph.groups:find_groups",
    "fold": "secateur.repairs.folding:fold",
    "front": "secateur.allocation.front:front",
    "hold": "secateur.sparsity.hold:hold",
    "latency_costs": "secateur.pipeline.latency:latency_costs",
    "load": "secateur.storage.saved_model:load_model",
    "make_progress": "secateur.progress_bars:make_progress",
    "mask": "secateur.surgery.mask:mask",
    "measure": "secateur.measures.cost:measure",
    "plan": "secateur.surgery.plan:plan",
    "plot": "secateur.pipeline.picture:plot",
    "predict": "secateur.criteria.predict:predict",
    "prune": "secateur.pipeline.prune:prune",
    "refine": "secateur.allocation.local_search:refine",
    "release": "secateur.sparsity.hold:release",
    "repair": "secateur.repairs.repair:repair",
    "sample_size": "secateur.allocation.sample_size:sample_size",
    "save": "secateur.storage.saved_model:save_model",
    "scan": "secateur.sensitivity.scan:scan",
    "score": "secateur.criteria.criterion:score",
    "select": "secateur.allocation.selection:select",
    "semi_structured": "secateur.sparsity.runtime:semi_structured",
    "sparse_speed": "secateur.sparsity.runtime:sparse_speed",
    "sparsify": "secateur.sparsity.sparsify:sparsify",
    "sparsity_plan": "secateur.sparsity.allocate:sparsity_plan",
    "trace": "secateur.graph.trace:trace",
}

__all__ = [
    "ALPS",
    "ERK",
    "KFAC",
    "LAMP",
    "NM",
    "OBC",
    "OBD",
    "OBS",
    "OWL",
    "RIA",
    "SNIP",
    "ActivationNorm",
    "ActivationVariance",
    "ActiveShare",
    "AfterRefit",
    "AfterRepair",
    "AfterRetraining",
    "Allocation",
    "ArgumentError",
    "BatchNormScale",
    "BlockCosine",
    "Blocks",
    "Budget",
    "BudgetError",
    "Candidate",
    "Certificate",
    "Certification",
    "Contenders",
    "Cost",
    "Criterion",
    "Curve",
    "CurveStore",
    "DataError",
    "EqualDamage",
    "Executor",
    "FisherGate",
    "FixedAxis",
    "Front",
    "GeometricMedian",
    "Global",
    "GlobalThreshold",
    "GraSP",
    "Gradient",
    "Group",
    "GroupOBS",
    "HessianTrace",
    "LeastDamage",
    "Magnitude",
    "Masked",
    "MeanActivation",
    "Measured",
    "Metric",
    "MetricError",
    "MissingExtraError",
    "NumericalError",
    "Objective",
    "Offload",
    "Plan",
    "PlanError",
    "ProcessExecutor",
    "Program",
    "Racing",
    "Random",
    "RayExecutor",
    "RecipeError",
    "Refined",
    "Repaired",
    "Result",
    "Retraining",
    "SavedModelError",
    "Scan",
    "Schedule",
    "SecateurError",
    "SecondOrderTaylor",
    "Selection",
    "SequenceCertification",
    "SerialExecutor",
    "SparseGPT",
    "Sparsified",
    "Sparsity",
    "SparsityPlan",
    "Statistics",
    "StoreError",
    "SurgeryError",
    "SynFlow",
    "Taylor",
    "TraceError",
    "Uniform",
    "UniformDensity",
    "Unstructured",
    "Wanda",
    "WandaGroup",
    "WorkerError",
    "allocate",
    "certify",
    "certify_agreement",
    "certify_paired",
    "certify_sequence",
    "collect",
    "costs",
    "cut",
    "find_fixed",
    "find_groups",
    "fold",
    "front",
    "hold",
    "latency_costs",
    "load",
    "make_progress",
    "mask",
    "measure",
    "plan",
    "plot",
    "predict",
    "prune",
    "refine",
    "release",
    "repair",
    "sample_size",
    "save",
    "scan",
    "score",
    "select",
    "semi_structured",
    "sparse_speed",
    "sparsify",
    "sparsity_plan",
    "trace",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'secateur' has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
