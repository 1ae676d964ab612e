"""Points measured after some steps of retraining: what is chosen between, once it is few."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from secateur.data import BatchFn
from secateur.errors import ArgumentError
from secateur.graph.trace import Program
from secateur.measures.metrics import resolve_loss
from secateur.sensitivity.after import After, held, name_of
from secateur.surgery.plan import Plan
from secateur.training.loop import Retraining, retrain
from secateur.types import Group


@dataclass(frozen=True, eq=False)
class AfterRetraining:
    """Points are measured on cut models that are retrained for some steps; for finalists, as it takes long.

    Damage before retraining predicts little of what survives it. `Scan.finalists` gives the points that are
    worth it.

    Attributes:
        train: any source of batches; the first `steps` are read once and held, over several passes if need be.
        steps: how many.
        loss: see `resolve_loss`.
        retraining: how; its epochs do not count.
        first: what is done before it, such as `AfterRepair`; None: nothing.
        seed: of everything random.
        batch_fn: takes apart batches of an unusual shape.
    """

    train: Any
    steps: int = 100
    loss: Any = "cross_entropy"
    retraining: Retraining = field(default_factory=Retraining)
    first: After | None = None
    seed: int = 0
    batch_fn: BatchFn | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ArgumentError(f"steps={self.steps} must be at least 1")
        if self.retraining.epoch_function is not None:
            raise ArgumentError("retraining has an epoch_function, which has no steps; leave it out")
        object.__setattr__(self, "train", held(self.train, "train", self.batch_fn, self.steps))
        object.__setattr__(self, "batch_fn", None)

    @property
    def name(self) -> str:
        """For people."""
        before = "" if self.first is None else f"{name_of(self.first)} and "
        return f"{before}{self.steps} step{'s' if self.steps > 1 else ''} of retraining"

    def __call__(self, small: nn.Module, plan: Plan, *, program: Program, groups: Sequence[Group]) -> nn.Module:
        """`small`, retrained in place."""
        if self.first is not None:
            small = self.first(small, plan, program=program, groups=groups)
        return retrain(
            small,
            self.train,
            resolve_loss(self.loss),
            retraining=replace(self.retraining, epochs=1),
            seed=self.seed,
            teacher=program.model if self.retraining.distill > 0 else None,
        )
