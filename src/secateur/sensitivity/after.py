"""What is done to a cut model before a point is measured."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from secateur.data import Batch, Batches, BatchFn, as_batches
from secateur.graph.trace import Program
from secateur.repairs.repair import repair
from secateur.repairs.walk import Reach
from secateur.surgery.plan import Plan
from secateur.types import Group


@runtime_checkable
class InPlace(Protocol):
    """Recovery that changes values only, of exact groups: then points are replayed as masked ones are.

    Attributes:
        name: for people.
    """

    @property
    def name(self) -> str:
        """For people."""

    def changed(self, groups: Iterable[Group]) -> set[str]:
        """Canonical names of the parameters that may change, besides those that masking changes."""

    def tensors(self, program: Program, groups: Sequence[Group], plan: Plan) -> Mapping[str, Tensor]:
        """The changed parameters, those that masking changes among them."""


class After(Protocol):
    """Recovery of a cut model. It must do the same each time, and be described by its attributes.

    For people it goes by its `name`, such as "100 steps of retraining", if it has one; else by that of its function or
    class.
    """

    def __call__(self, small: nn.Module, plan: Plan, *, program: Program, groups: Sequence[Group]) -> nn.Module:
        """`small`, which may be changed in place, as it is to be measured.

        Args:
            small: cut from the program's model.
            plan: of the cut.
            program: of the dense model.
            groups: those that the plan is for.
        """


def name_of(after: After | InPlace | None) -> str:
    """What people call it; empty for nothing.

    >>> def smoothed(small, plan, *, program, groups):
    ...     return small
    >>> name_of(smoothed), name_of(None)
    ('smoothed', '')
    """
    if after is None:
        return ""
    return str(getattr(after, "name", getattr(after, "__name__", type(after).__name__)))


@dataclass(frozen=True, eq=False)
class AfterRepair:
    """Points are measured on cut models whose weights are repaired by least squares; see `repair`.

    A group that is missed is one thing, a group whose absence the others cannot make up for is another; what is
    going to be repaired anyway should be chosen by its damage after repair.

    Attributes:
        calibration: any source of batches, read once and held.
        reach: "cut": what lost inputs is fitted; "all": everything, which makes up for more and takes longer.
        batch_fn: takes apart batches of an unusual shape.
    """

    calibration: Any
    reach: Reach = "cut"
    batch_fn: BatchFn | None = None

    def __post_init__(self) -> None:
        # What is held is the same in every process, as a loader is not: points are known again by it.
        object.__setattr__(self, "calibration", held(self.calibration, "calibration", self.batch_fn))
        object.__setattr__(self, "batch_fn", None)

    @property
    def name(self) -> str:
        """For people."""
        return "repair"

    def __call__(self, small: nn.Module, plan: Plan, *, program: Program, groups: Sequence[Group]) -> nn.Module:
        """`small`, repaired in place."""
        repair(small, program.model, plan, self.calibration, program=program, groups=groups, reach=self.reach)
        return small


def held(source: Any, name: str, batch_fn: BatchFn | None = None, count: int | None = None) -> Batches:
    """The batches of a source, read now; the first `count` of them, over several passes if need be."""
    data = as_batches(source, name, batch_fn)
    found = (
        list(itertools.islice(itertools.chain.from_iterable(itertools.repeat(data)), count)) if count else list(data)
    )
    return Batches(found, name, _parts)


def _parts(batch: Batch) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    return batch.args, batch.kwargs, batch.targets
