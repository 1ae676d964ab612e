"""Run points on a stage of the data: together by replay, or one of them by a model that is without its units."""

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateur.data import Batch, to_device
from secateur.measures.evaluate import device_of
from secateur.sensitivity.probe import Probe
from secateur.sensitivity.stages import Samples, Stage
from secateur.sensitivity.values import fill
from secateur.surgery.plan import Plan
from secateur.types import Evaluation

Wanted = tuple[Plan, Evaluation]
"""What is removed, and the values to fill in."""


class Runner(Protocol):
    """Fills in the values of points on one stage of the data.

    Attributes:
        replayed: samples times points that were run from the first operator that a change reaches.
        why: some were not; else empty.
        walked: samples for which the program was walked from its start, for all points together.
    """

    @property
    def walked(self) -> int:
        """Samples for which the program was walked from its start, for all points together."""

    @property
    def replayed(self) -> int:
        """Samples times points that were run from the first operator that a change reaches."""

    @property
    def why(self) -> str:
        """Why some were not; else empty."""

    def __call__(self, wanted: Sequence[Wanted], stage: Stage) -> None:
        """Fill in the samples of `stage`."""


class Alone:
    """Runs one point by a model that stays in place for all stages."""

    replayed = walked = 0

    def __init__(self, prober: Probe, model: nn.Module, why: str) -> None:
        self.prober, self.model, self.why = prober, model, why

    def __call__(self, wanted: Sequence[Wanted], stage: Stage) -> None:
        """Fill in the samples of `stage`."""
        for _, values in wanted:
            fill(values, self.prober.evaluated(self.model, stage.batches), stage.samples)


class Together:
    """Runs points that silence units, by replay where it serves, else by the whole model."""

    def __init__(self, prober: Probe) -> None:
        self.prober = prober
        self.replayed = self.walked = 0
        self.why = prober.why
        self._refusals: dict[Any, str] = {}

    def __call__(self, wanted: Sequence[Wanted], stage: Stage) -> None:
        """Fill in the samples of `stage`."""
        start = 0
        for batch in stage.batches:
            where = stage.samples[start : start + batch.size]
            start += batch.size
            refusal = self._refusal(batch)
            if refusal:
                self.why = refusal
                self._run_whole(wanted, batch, where)
            else:
                for number, after in self.prober.values([plan for plan, _ in wanted], batch):
                    fill(wanted[number][1], after, where)
                self.replayed += len(wanted) * batch.size
                self.walked += batch.size

    def _run_whole(self, wanted: Sequence[Wanted], batch: Batch, where: Samples) -> None:
        for plan, values in wanted:
            with self.prober.without(plan) as model:
                fill(values, self.prober.evaluated(model, [batch]), where)

    def _refusal(self, batch: Batch) -> str:
        """Why batches like this one cannot be replayed; tried once for all of the same shapes."""
        if self.prober.replay is None:
            return self.prober.why
        outline = tuple(
            (tuple(leaf.shape), leaf.dtype) if isinstance(leaf, Tensor) else (type(leaf), repr(leaf))
            for leaf in pytree.tree_leaves((batch.args, batch.kwargs))
        )
        if outline not in self._refusals:
            moved = to_device(batch, device_of(self.prober.model))
            self._refusals[outline] = self.prober.replay.refusal(moved)
        return self._refusals[outline]
