"""Measured latency as a cost: tables of operators, kept for the device, held against whole models."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur.errors import SurgeryError
from secateur.graph.costs import CostModel, costs
from secateur.graph.groups import Structure, structure_for
from secateur.graph.trace import Program
from secateur.measures.evaluate import device_of
from secateur.measures.latency import time_calls, time_models
from secateur.measures.latency_table import LatencyTable, build_table
from secateur.measures.operators import Call
from secateur.progress import NoProgress, Progress
from secateur.sensitivity.levels import SPARSITIES
from secateur.storage.timing_store import TimingStore, device_key, user_cache
from secateur.surgery.cut import cut
from secateur.surgery.plan import kept_width, plan_widths
from secateur.types import Budget, Group

CHECKED = (0.3, 0.6)
"""Sparsities at which a table is held against real cuts."""
BATCH = 500
BLOCKS, BLOCK_S = 25, 2e-3


def latency_costs(
    program: Program,
    groups: Sequence[Group],
    *,
    sparsities: Sequence[float] = SPARSITIES,
    cache: str | Path | None = None,
    progress: Progress | None = None,
) -> CostModel:
    """Costs with measured latency: `costs` of the program, and seconds of a call on this device at any widths.

    Every operator is timed by itself, on the example inputs' sizes, at the widths of these sparsities; a width in
    between counts as the next wider one. The sum is fitted (one factor, one constant) to the dense model and to two
    real cuts; `CostModel.latency.error` is the largest deviation from them. Timings are taken in turn, with torch's
    present number of threads, and are kept for this device, number of threads and version of torch.

    Args:
        program: from `trace`, with inputs of the batch size that counts.
        groups: from `find_groups` of this program.
        sparsities: those of the scan.
        cache: file that keeps timings; None: one in the user's cache directory; ":memory:": none.
        progress: shown while running.

    Raises:
        ArgumentError: a group that the program does not have.
        StoreError: the cache cannot be opened or written.
    """
    counted = costs(program, groups)
    found = structure_for(program, {group.name: group.size for group in groups})
    with TimingStore.open(cache or user_cache()) as store:
        watch = Stopwatch(store, program.model, sparsities, progress or NoProgress())
        table = watch.table(found, groups)
        return replace(counted, latency=table.fitted(watch.whole_models(program, groups)))


@dataclass(frozen=True)
class Timed:
    """A cut model beside the dense one, timed in turn: the fastest block of each, as for operators.

    Attributes:
        dense_s: seconds of the dense model.
        predicted_s: of the cut model, by the table and `dense_s`.
        measured_s: seconds of the cut model.
        allowed_s: what the budget allows.
        corrections: how often the table's prediction was corrected by what was measured.
    """

    dense_s: float
    predicted_s: float
    measured_s: float
    allowed_s: float
    corrections: int

    @property
    def is_met(self) -> bool:
        """Whether the measured latency is within the budget."""
        return self.measured_s <= self.allowed_s


@dataclass(frozen=True, eq=False)
class Clocked:
    """Latency as a cost of one run.

    Attributes:
        watch: times operators.
        fit: the table of the dense model, fitted.
        dense_s: seconds of the dense model when it was fitted.
        in_seconds: the budget is in seconds: no fraction of what the dense model takes at another moment.
    """

    watch: "Stopwatch"
    fit: LatencyTable
    dense_s: float
    in_seconds: bool

    def as_fractions(self, budget: Budget) -> Budget:
        """The budget with seconds told as a fraction of those of the dense model."""
        if budget.latency_s is None:
            return budget
        fraction = budget.latency_s / self.dense_s
        return replace(budget, latency_s=None, latency=min(fraction, budget.latency or fraction, 1.0))

    def table(self, found: Structure, groups: Sequence[Group]) -> LatencyTable:
        """The table of a cut model, with the factor and the constant of the dense one."""
        table = self.watch.table(found, groups)
        return replace(table, scale=self.fit.scale, overhead_s=self.fit.overhead_s, error=self.fit.error)

    def timed(
        self,
        models: Sequence[nn.Module],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        *,
        predicted: float,
        allowed: float,
    ) -> Timed:
        """The dense and a cut model, timed in turn.

        Args:
            models: the dense one and the cut one.
            args: inputs of both.
            kwargs: likewise, by keyword.
            predicted: latency of the cut model as a fraction of the dense one's.
            allowed: likewise, by the budget.
        """
        dense, small = (taken.least_s for taken in time_models(models, args, kwargs, blocks=BLOCKS, block_s=BLOCK_S))
        base = self.dense_s if self.in_seconds else dense
        return Timed(dense, predicted * base, small, allowed * base, 0)


def clock_model(program: Program, groups: Sequence[Group], watch: "Stopwatch", budget: Budget) -> Clocked:
    """Time the operators of the dense model, and hold them against whole models."""
    found = structure_for(program, {group.name: group.size for group in groups})
    whole = watch.whole_models(program, groups)
    fit = watch.table(found, groups).fitted(whole)
    return Clocked(watch, fit, whole[0][1], budget.latency_s is not None)


@dataclass(frozen=True, eq=False)
class Stopwatch:
    """Times operators and models on the device of a model.

    Attributes:
        store: timings that are known.
        model: on the device.
        sparsities: at whose widths operators are timed.
        progress: shown while running.
    """

    store: TimingStore
    model: nn.Module
    sparsities: Sequence[float]
    progress: Progress

    def table(self, found: Structure, groups: Sequence[Group]) -> LatencyTable:
        """The table of a typed program."""
        return build_table(found, {group.name: self._grid(group) for group in groups}, self._seconds)

    def whole_models(self, program: Program, groups: Sequence[Group]) -> list[tuple[Mapping[str, int], float]]:
        """Widths and seconds of the program's model and of real cuts of it, timed in turn."""
        widths: list[dict[str, int]] = [{}]
        models = [program.model]
        order = {group.name: torch.arange(group.size, dtype=torch.float64) for group in groups}
        for sparsity in CHECKED:
            kept = {group.name: kept_width(group, sparsity) for group in groups if group.minimum > 0}
            with contextlib.suppress(SurgeryError):
                models.append(cut(program.model, plan_widths(groups, order, kept), program=program, verify=False))
                widths.append(kept)
        # As short as blocks of operators, and the least of them for the same reason.
        timed = time_models(models, program.args, program.kwargs, blocks=BLOCKS, block_s=BLOCK_S)
        return [(kept, taken.least_s) for kept, taken in zip(widths, timed, strict=True)]

    def _grid(self, group: Group) -> list[int]:
        widths = {kept_width(group, sparsity) for sparsity in self.sparsities} | {group.width}
        return sorted(widths | ({0} if group.minimum == 0 else set()))

    def _seconds(self, calls: Sequence[Call]) -> list[float | None]:
        device = device_key(device_of(self.model))
        known = self.store.known(device)
        new = [call for call in calls if call.key not in known]
        for start in range(0, len(new), BATCH):
            part = new[start : start + BATCH]
            timed = dict(zip((call.key for call in part), time_calls(part, progress=self.progress), strict=True))
            self.store.put(device, timed)
            known.update(timed)
        return [known[call.key] for call in calls]
