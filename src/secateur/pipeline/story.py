"""Everything that happened in a run."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from secateur.allocation.certificate import Certificate
from secateur.allocation.front import Front
from secateur.allocation.selection import Selection
from secateur.allocation.thresholds import BudgetCurve, Choice
from secateur.pipeline.scene import Scene
from secateur.pipeline.search import Search
from secateur.pipeline.task import Task
from secateur.types import Budget, Curves, Note


@dataclass(frozen=True, eq=False)
class Story:
    """Everything that happened in a run."""

    task: Task
    scene: Scene
    curves: Curves
    picture: BudgetCurve
    choice: Choice | None
    search: Search
    controls: Mapping[str, Search]
    certificate: Certificate | None
    left: tuple[Note, ...]
    unfit: tuple[str, ...]
    small: nn.Module
    tolerance: float | None
    budget: Budget | None
    schedule: str
    timings: Mapping[str, float]
    front: Front | None
    selection: Selection | None
