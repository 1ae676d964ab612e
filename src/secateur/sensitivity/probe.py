"""Silence units, run what follows on validation data, and compare sample by sample."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set as AbstractSet
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from secateur.data import Batch, Batches
from secateur.errors import ArgumentError, SurgeryError
from secateur.graph.copies import copy_of
from secateur.graph.trace import Program, named_state
from secateur.measures.evaluate import evaluate, sample_values
from secateur.measures.metrics import Metric, PerSample, paired
from secateur.sensitivity.after import After, InPlace, name_of
from secateur.sensitivity.replay import Change, Kept, Replay
from secateur.surgery.cut import cut
from secateur.surgery.mask import masked_tensors
from secateur.surgery.plan import Plan, Scores, plan_widths
from secateur.types import Evaluation, Floats, Group


@dataclass(frozen=True, eq=False)
class Probe:
    """Measures what removing units costs, against a fixed baseline.

    Attributes:
        model: what is measured; it is not changed.
        groups: what can be removed.
        scores: lowest-scored units are removed first.
        data: validation data, read in the same order each time.
        metric: that decides.
        loss: per-sample loss.
        baseline: what damage is measured against.
        program: of `model`; groups that are not exact are cut out of it.
        replay: runs what comes after the first operator that a change reaches; None if the program cannot be run
            so, and the whole model is run for each point.
        why: there is no replay; else empty.
        others: more metrics, measured beside.
        after: what is done to a cut model before it is measured; None: nothing, and units are silenced.
    """

    model: nn.Module
    groups: Sequence[Group]
    scores: Scores
    data: Batches
    metric: Metric
    loss: PerSample
    baseline: Evaluation
    program: Program | None = None
    replay: Replay | None = None
    why: str = "no program was given"
    others: tuple[Metric, ...] = ()
    after: After | InPlace | None = None

    def values(
        self, plans: Sequence[Plan], batch: Batch, kept: Kept | None = None
    ) -> Iterator[tuple[int, Evaluation | Exception]]:
        """What the model gives on a batch with each of `plans`, by replay: (position in `plans`, values or why none).

        Args:
            plans: each by itself; of exact groups, which masking serves.
            batch: on the device of the model, of a kind that the replay does not refuse.
            kept: by earlier walks over this batch.
        """
        assert self.replay is not None
        for number, outputs in self.replay.outputs(batch, [self.change(plan) for plan in plans], kept):
            yield number, outputs if isinstance(outputs, Exception) else self._valued(outputs, batch)

    def _valued(self, outputs: Any, batch: Batch) -> Evaluation | Exception:
        try:
            with torch.no_grad():
                return sample_values(outputs, batch, metric=self.metric, loss=self.loss, others=self.others)
        except Exception as error:
            return error

    def change(self, plan: Plan) -> Change:
        """What masking by `plan` changes, and what makes up for it."""
        touched = [group for group in self.groups if group.name in plan.keep]
        return Change(self.changed(touched), partial(self.tensors, plan))

    def changed(self, groups: Sequence[Group]) -> AbstractSet[str]:
        """The names of the tensors that are other ones without some units of these groups."""
        names = {s.parameter for group in groups for s in group.slices if s.masked}
        return names | self.after.changed(groups) if isinstance(self.after, InPlace) else names

    def tensors(self, plan: Plan) -> Mapping[str, Tensor]:
        """The tensors that are other ones without what the plan removes."""
        if isinstance(self.after, InPlace):
            if self.program is None:
                raise ArgumentError(
                    f"points are measured after {name_of(self.after)}, which needs the program; pass program="
                )
            return self.after.tensors(self.program, self.groups, plan)
        return masked_tensors(self.model, self.groups, plan)

    def damage(self, widths: Mapping[str, int], samples: NDArray[np.int64] | None = None) -> tuple[Floats, Floats]:
        """Metric and loss damage of each sample when each named group keeps `widths[name]` a row.

        Args:
            widths: group name -> units kept in a row.
            samples: positions in the validation data, ascending; None = all.
        """
        plan = plan_widths(self.groups, self.scores, widths)
        where = slice(None) if samples is None else samples
        with self.without(plan) as model:
            after = self.evaluated(model, self.data if samples is None else chosen(self.data, samples))
        return (
            self.metric.damage(self.baseline.metric[where], after.metric),
            paired(self.baseline.loss[where], after.loss, -1),
        )

    @cached_property
    def _copy(self) -> nn.Module:
        """Whose weights are silenced and restored in place; a scan by replay does without."""
        return copy_of(self.model)

    def evaluated(self, model: nn.Module, batches: Iterable[Batch]) -> Evaluation:
        """What a model gives on batches; what is not finite is kept."""
        return evaluate(model, batches, metric=self.metric, loss=self.loss, others=self.others, finite=False)

    def is_masked(self, group: Group) -> bool:
        """Whether points of the group are measured by silencing units, rather than by a cut."""
        return group.exact and (self.after is None or isinstance(self.after, InPlace))

    @contextlib.contextmanager
    def without(self, plan: Plan) -> Iterator[nn.Module]:
        """The model without what the plan removes: masked, or cut where masking would tell something else."""
        touched = [g for g in self.groups if g.name in plan.keep and len(plan.keep[g.name]) < g.size]
        if all(self.is_masked(group) for group in touched):
            with replaced(self._copy, self.tensors(plan)):
                yield self._copy
            return
        if isinstance(self.after, InPlace):
            raise ArgumentError(
                f"groups {[g.name for g in touched if not g.exact]} are not exact, so they are cut, and "
                f"{type(self.after).__name__} serves masked groups only; pass after=AfterRepair(...) for them"
            )
        if self.program is None:
            what = (
                f"groups {[g.name for g in touched if not g.exact]} are not exact"
                if self.after is None
                else f"points are measured after {name_of(self.after)}"
            )
            raise ArgumentError(
                f"{what}, so their damage is measured on a real cut, which needs the program; pass program="
            )
        # A graph takes batches of other sizes only where it was verified to.
        small = cut(self.program.model, plan, program=self.program, verify=plan.fallback == "graph")
        if self.after is None:
            yield small
            return
        found: object = self.after(small, plan, program=self.program, groups=self.groups)
        if not isinstance(found, nn.Module):
            raise ArgumentError(f"after= gave a {type(found).__name__}; needed the model as it is to be measured")
        yield found


def probe(
    model: nn.Module,
    groups: Sequence[Group],
    scores: Scores,
    data: Batches,
    *,
    metric: Metric,
    loss: PerSample,
    baseline: Evaluation,
    program: Program | None = None,
    others: Sequence[Metric] = (),
    after: After | InPlace | None = None,
) -> Probe:
    """A probe of `model`; its program is needed where groups are not exact, and for replay."""
    replay, why = (None, "no program was given") if program is None else _replay(program)
    return Probe(model, groups, scores, data, metric, loss, baseline, program, replay, why, tuple(others), after)


def _replay(program: Program) -> tuple[Replay | None, str]:
    try:
        return Replay.of(program), ""
    except SurgeryError as error:
        return None, str(error)


@contextlib.contextmanager
def replaced(model: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Give tensors of a model other values, in place; put the old ones back afterwards."""
    state = named_state(model)
    saved: dict[str, Tensor] = {}
    try:
        with torch.no_grad():
            for name, values in tensors.items():
                saved[name] = state[name].detach().clone()
                state[name].copy_(values)
        yield
    finally:
        with torch.no_grad():
            for name, old in saved.items():
                state[name].copy_(old)


def chosen(data: Iterable[Batch], samples: NDArray[np.int64]) -> Iterator[Batch]:
    """The given samples, counted over all batches, batch by batch."""
    start = 0
    for batch in data:
        size = batch.size
        rows = samples[(samples >= start) & (samples < start + size)] - start
        if len(rows):
            yield batch.take(torch.from_numpy(rows))
        start += size
