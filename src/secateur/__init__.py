"""secateur: measures what a trained network can lose, removes it, and certifies what it cost."""

from secateur.allocation.certificate import Certificate, certify_paired
from secateur.allocation.knapsack import allocate
from secateur.criteria.collect import collect
from secateur.criteria.criterion import Criterion, score
from secateur.criteria.rules import Magnitude, Random, Taylor
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
from secateur.sensitivity.scan import scan
from secateur.storage.saved_model import load_model as load
from secateur.surgery.cut import cut
from secateur.surgery.mask import mask
from secateur.surgery.plan import Plan, plan
from secateur.training.loop import Retraining
from secateur.training.schedules import Schedule
from secateur.types import Budget, Cost, Curve, FixedAxis, Group

__all__ = [
    "ArgumentError",
    "Budget",
    "BudgetError",
    "Certificate",
    "Cost",
    "Criterion",
    "Curve",
    "DataError",
    "FixedAxis",
    "Group",
    "Magnitude",
    "Metric",
    "MetricError",
    "MissingExtraError",
    "NumericalError",
    "Plan",
    "PlanError",
    "Program",
    "Random",
    "RecipeError",
    "Result",
    "Retraining",
    "SavedModelError",
    "Schedule",
    "SecateurError",
    "Statistics",
    "StoreError",
    "SurgeryError",
    "Taylor",
    "TraceError",
    "allocate",
    "certify_paired",
    "collect",
    "cut",
    "find_fixed",
    "find_groups",
    "load",
    "mask",
    "measure",
    "plan",
    "prune",
    "scan",
    "score",
    "trace",
]
