"""Run points on a stage of the data: together by replay, or one of them by a model that is without its units."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Protocol

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateur.data import Batch, to_device
from secateur.measures.evaluate import device_of
from secateur.sensitivity.activation_cache import ActivationCache
from secateur.sensitivity.probe import Probe
from secateur.sensitivity.stages import Samples, Stage
from secateur.sensitivity.values import fill
from secateur.surgery.plan import Plan
from secateur.types import Evaluation

Wanted = tuple[Plan, Evaluation]
"""What is removed, and the values to fill in."""

Ran = Callable[[int], None]
"""Told of samples that were run for one of those that are wanted."""


class Runner(Protocol):
    """Fills in the values of points on one stage of the data.

    Attributes:
        replayed: samples times points that were run from the first operator that a change reaches.
        why: some were not; else empty.
        walked: samples for which some of the program was walked, once for all points together.
    """

    @property
    def walked(self) -> int:
        """Samples for which some of the program was walked, once for all points together."""

    @property
    def replayed(self) -> int:
        """Samples times points that were run from the first operator that a change reaches."""

    @property
    def why(self) -> str:
        """Why some were not; else empty."""

    def __call__(self, wanted: Sequence[Wanted], stage: Stage, ran: Ran) -> Mapping[int, Exception]:
        """Fill in the samples of `stage`.

        Returns:
            Position in `wanted` -> why it could not be run; the others were run all the same.
        """


class Alone:
    """Runs one point by a model that is made when it is first needed, and stays in place for all stages."""

    replayed = walked = 0

    def __init__(self, prober: Probe, why: str) -> None:
        self.prober, self.why = prober, why
        self._model: nn.Module | None = None
        self._stack = ExitStack()

    def __call__(self, wanted: Sequence[Wanted], stage: Stage, ran: Ran) -> Mapping[int, Exception]:
        """Fill in the samples of `stage`."""
        # One, or none where it has the samples of this stage.
        for plan, values in wanted:
            try:
                if self._model is None:
                    self._model = self._stack.enter_context(self.prober.without(plan))
                fill(values, self.prober.evaluated(self._model, stage.batches), stage.samples)
            except Exception as error:
                return {0: error}
            ran(len(stage.samples))
        return {}

    def close(self) -> None:
        """Let go of the model."""
        self._stack.close()


class Together:
    """Runs points that silence units, by replay where it serves, else by the whole model."""

    def __init__(self, prober: Probe, cache: ActivationCache) -> None:
        self.prober, self.cache = prober, cache
        self.replayed = self.walked = 0
        self.why = prober.why
        self._refusals: dict[Any, str] = {}

    def __call__(self, wanted: Sequence[Wanted], stage: Stage, ran: Ran) -> Mapping[int, Exception]:
        """Fill in the samples of `stage`."""
        failed: dict[int, Exception] = {}
        start = 0
        for batch in stage.batches:
            where = stage.samples[start : start + batch.size]
            start += batch.size
            left = [number for number in range(len(wanted)) if number not in failed]
            for at, found in self._outcomes([wanted[number][0] for number in left], batch, where):
                if isinstance(found, Exception):
                    failed[left[at]] = found
                else:
                    fill(wanted[left[at]][1], found, where)
                    ran(batch.size)
        return failed

    def _outcomes(
        self, plans: Sequence[Plan], batch: Batch, samples: Samples
    ) -> Iterator[tuple[int, Evaluation | Exception]]:
        moved = to_device(batch, device_of(self.prober.model))
        refusal = self._refusal(moved)
        if refusal:
            self.why = refusal
            yield from ((number, self._whole(plan, batch)) for number, plan in enumerate(plans))
            return
        kept = self.cache.of(moved, samples)
        for number, found in self.prober.values(plans, moved, kept):
            self.replayed += batch.size * (not isinstance(found, Exception))
            yield number, found
        self.walked += batch.size * kept.walked

    def _whole(self, plan: Plan, batch: Batch) -> Evaluation | Exception:
        try:
            with self.prober.without(plan) as model:
                return self.prober.evaluated(model, [batch])
        except Exception as error:
            return error

    def _refusal(self, batch: Batch) -> str:
        """Why batches like this one cannot be replayed; tried once for all of the same shapes."""
        if self.prober.replay is None:
            return self.prober.why
        outline = tuple(
            (tuple(leaf.shape), leaf.dtype) if isinstance(leaf, Tensor) else (type(leaf), repr(leaf))
            for leaf in pytree.tree_leaves((batch.args, batch.kwargs))
        )
        if outline not in self._refusals:
            self._refusals[outline] = self.prober.replay.refusal(batch)
        return self._refusals[outline]
