"""One round: score, allocate, cut, repair, retrain, and compare with the fixed baseline."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from secateur.allocation.allocate import allocate_within
from secateur.allocation.knapsack import uniform_allocation
from secateur.allocation.local_search import refine_within
from secateur.criteria.collect import collect
from secateur.criteria.criterion import needs_of, score
from secateur.errors import BudgetError
from secateur.graph.costs import CostModel, cost_model, item_bytes
from secateur.graph.groups import Structure
from secateur.graph.trace import Program, trace
from secateur.measures.evaluate import evaluate
from secateur.measures.latency_table import LatencyTable
from secateur.measures.metrics import resolve_loss
from secateur.pipeline.aims import objective_of
from secateur.pipeline.latency import Timed
from secateur.pipeline.scope import followed
from secateur.pipeline.task import Damage, Task, summarise
from secateur.repairs.repair import repair
from secateur.sensitivity.probe import Probe, probe
from secateur.sensitivity.result import Scan
from secateur.sensitivity.scan import measure_curves
from secateur.storage.saved_model import load_model, read_manifest, save_model
from secateur.surgery.cut import cut
from secateur.surgery.plan import Plan, plan_widths
from secateur.training.loop import retrain
from secateur.types import Curves, Group, Note, Status

CORRECTIONS = 4
LEAST_CORRECTION = 1.02


@dataclass(frozen=True, eq=False)
class Scene:
    """A model at the start of a round, and all that is known of it.

    Attributes:
        model: as it is now.
        program: traced from it.
        found: all that its types tell, under the user's `ignore`.
        groups: what may be cut.
        names: name of a group -> its name in the dense model.
        cost: what it would cost at other widths.
        share: widths -> what is left of the dense cost.
        probe: measures damage against the fixed baseline.
    """

    model: nn.Module
    program: Program
    found: Structure
    groups: tuple[Group, ...]
    names: Mapping[str, str]
    cost: CostModel
    share: Callable[[Mapping[str, int]], float]
    probe: Probe


@dataclass(frozen=True, eq=False)
class Round:
    """What a round gave.

    Attributes:
        number: counted from 1.
        target: share of the dense cost that was aimed at.
        macs: share of the dense multiply-adds that is left.
        share: share of the dense cost that is left, by the budget's own costs.
        model: the result.
        plan: from the dense model to this one.
        cut: damage right after the cut.
        repaired: damage after repair; None without repair.
        retrained: damage after retraining; None without retraining.
        timed: latency, predicted and measured; None where none is bounded.
        unrepaired: what repair left as it was, and why.
        note: how its widths were found, where that is worth telling.
    """

    number: int
    target: float
    macs: float
    share: float
    model: nn.Module
    plan: Plan
    cut: Damage
    repaired: Damage | None
    retrained: Damage | None
    timed: Timed | None = None
    unrepaired: tuple[Note, ...] = ()
    note: str = ""

    @property
    def damage(self) -> Damage:
        """The damage of the result."""
        return self.retrained or self.repaired or self.cut


class Allocator(Protocol):
    """Chooses the width of every group so that at most `target` of the dense cost is left."""

    def __call__(self, scene: Scene, target: float) -> "Allotted":
        """Units kept in a row of each group."""


@dataclass(frozen=True)
class Allotted:
    """Units kept in a row of each group, and how they were found where that is worth telling."""

    widths: Mapping[str, int]
    note: str = ""


def set_scene(task: Task, model: nn.Module) -> Scene:
    """Trace, find groups, score them, and make ready to measure."""
    program = trace(model, task.args, task.kwargs)
    found = task.scope.structure(program)
    same = followed(task.scope.later_groups(program), task.cuttable)
    groups = tuple(same.values())
    statistics = collect(
        model, groups, task.calibration, needs=needs_of(task.criterion), loss=task.loss, progress=task.progress
    )
    prober = probe(
        model,
        groups,
        score(groups, statistics, task.criterion),
        task.validation,
        metric=task.metric,
        loss=resolve_loss(task.loss),
        baseline=task.baseline,
        program=program,
    )
    cost = cost_model(found, item_bytes(program))
    if task.clocked is not None:
        cost = replace(cost, latency=task.clocked.table(found, groups))
    names = {group.name: name for name, group in same.items()}
    return Scene(model, program, found, groups, names, cost, lambda widths: task.share(cost, widths), prober)


def measured_curves(task: Task, scene: Scene) -> Scan:
    """Curves of every group of the scene."""
    return measure_curves(
        scene.probe, sparsities=task.sparsities, racing=task.racing, executor=task.executor, store=task.store,
        progress=task.progress,
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class ByCurves:
    """Allocate by measured curves: least predicted loss within the budget."""

    task: Task
    known: Curves | None = None

    def __call__(self, scene: Scene, target: float) -> Allotted:
        """Units kept in a row of each group."""
        curves = self.known or measured_curves(self.task, scene)
        bounds = self.task.limits(scene.cost, target)
        found = allocate_within(curves, bounds, objective_of(self.task.objective, scene.probe.scores))
        if found.status is Status.INFEASIBLE:
            raise BudgetError(
                f"no allocation reaches {target:.1%} of the dense cost; the least that the "
                f"scanned sparsities allow is {scene.share(found.widths):.1%}: raise the budget, scan "
                "higher sparsities, or ignore fewer modules"
            )
        if self.task.local_search < 1:
            return Allotted(found.widths)
        with self.task.progress.stage("local search", self.task.local_search) as advance:

            def measure(widths: Mapping[str, int]) -> tuple[float, float]:
                advance(1)
                joint = summarise(scene.probe.damage(widths)[1])
                return joint.mean, joint.standard_error

            searched = refine_within(found, curves, bounds, measure=measure, measurements=self.task.local_search)
        return Allotted(searched.allocation.widths, str(searched))


def uniformly(scene: Scene, target: float) -> Allotted:
    """The same fraction of every group, and of the branches; of these the lowest-scored go first."""
    full = {group.name: group.width for group in scene.groups}
    multiples = {group.name: group.multiple_of for group in scene.groups}
    least = {group.name: group.minimum for group in scene.groups}
    branches = [group.name for group in scene.groups if group.minimum == 0]
    going = sorted(branches, key=lambda name: float(scene.probe.scores[name]))
    return Allotted(
        uniform_allocation(full, target, scene.share, multiple_of=multiples, minimum=least, removable=going)
    )


def run_round(
    task: Task,
    scene: Scene,
    allocator: Allocator,
    *,
    number: int,
    target: float,
    before: Plan,
    directory: Path | None,
) -> Round:
    """Bring the scene's model to `target` times the dense cost, and keep the result in `directory`."""
    draft = _cut_in_time(task, scene, allocator, target)
    widths, step, small = draft.widths, draft.step, draft.small
    after_cut = measured_damage(task, small)
    after_repair = after_training = None
    unrepaired: tuple[Note, ...] = ()
    if task.repair:
        unrepaired = repair(
            small,
            scene.model,
            step,
            task.calibration,
            program=scene.program,
            groups=scene.groups,
            progress=task.progress,
        ).notes
        after_repair = measured_damage(task, small)
    if task.retrain is not None and task.train is not None:
        small = _retrained(task, small, number, directory)
        after_training = measured_damage(task, small)
    result = Round(
        number=number,
        target=target,
        macs=scene.cost.macs(widths) / max(task.dense.macs({}), 1),
        share=scene.share(widths),
        model=small,
        plan=before.then(step.renamed(scene.names)),
        cut=after_cut,
        repaired=after_repair,
        retrained=after_training,
        timed=draft.timed,
        unrepaired=unrepaired,
        note=draft.note,
    )
    if directory is not None:
        _save(task, result, directory)
    return result


@dataclass(frozen=True, eq=False)
class _Draft:
    """A model that was cut, as yet without repair."""

    widths: Mapping[str, int]
    note: str
    step: Plan
    small: nn.Module
    timed: Timed | None


def _cut_in_time(task: Task, scene: Scene, allocator: Allocator, target: float) -> _Draft:
    """Cut to the target; where latency is bounded, correct what is predicted by what is measured until it holds."""
    best = _draft(task, scene, allocator, target)
    last, correction = best.timed, 1.0
    for number in range(1, CORRECTIONS + 1):
        if last is None or last.is_met:
            break
        correction *= max(last.measured_s / last.predicted_s, LEAST_CORRECTION)
        try:
            draft = _draft(task, _slower(task, scene, correction), allocator, target)
        except BudgetError:
            break
        assert draft.timed is not None
        assert best.timed is not None
        last = replace(draft.timed, corrections=number)
        if last.measured_s < best.timed.measured_s or last.is_met:
            best = replace(draft, timed=last)
    return best


def _draft(task: Task, scene: Scene, allocator: Allocator, target: float) -> _Draft:
    allotted = allocator(scene, target)
    widths = allotted.widths
    step = plan_widths(scene.groups, scene.probe.scores, widths)
    small = cut(scene.model, step, program=scene.program)
    if task.clocked is None:
        return _Draft(widths, allotted.note, step, small, None)
    [limit] = (limit for limit in task.limits(scene.cost, target) if limit.name == "latency")
    dense_s = task.dense.prices["latency"]({})
    timed = task.clocked.timed(
        [task.model, small],
        task.args,
        task.kwargs,
        predicted=limit.cost(widths) / dense_s,
        allowed=limit.bound / dense_s,
    )
    return _Draft(widths, allotted.note, step, small, timed)


def _slower(task: Task, scene: Scene, factor: float) -> Scene:
    """The scene in which all predicted latencies are multiplied by `factor`."""
    assert isinstance(scene.cost.latency, LatencyTable)
    cost = replace(scene.cost, latency=scene.cost.latency.slower(factor))
    return replace(scene, cost=cost, share=lambda widths: task.share(cost, widths))


def measured_damage(task: Task, model: nn.Module) -> Damage:
    """Mean paired damage of `model` on the validation data, against the dense model."""
    after = evaluate(model, task.validation, metric=task.metric, loss=resolve_loss(task.loss), finite=False)
    return summarise(task.metric.damage(task.baseline.metric, after.metric))


def _retrained(task: Task, small: nn.Module, number: int, directory: Path | None) -> nn.Module:
    assert task.retrain is not None
    assert task.train is not None
    with task.progress.stage(f"retraining, round {number}", None) as advance:
        return retrain(
            small,
            task.train,
            resolve_loss(task.loss),
            retraining=task.retrain,
            seed=task.seed + number,
            teacher=task.model if task.retrain.distill > 0 else None,
            checkpoint=None if directory is None else directory / "training",
            progress=lambda step, total, value: advance(1, f"of {total}, loss {value:.3f}"),
        )


def _save(task: Task, result: Round, directory: Path) -> None:
    record: dict[str, Any] = {
        "target": result.target,
        "macs": result.macs,
        "share": result.share,
        "note": result.note,
        "timed": None if result.timed is None else asdict(result.timed),
        "damage": [
            None if d is None else [d.mean, d.standard_error] for d in (result.cut, result.repaired, result.retrained)
        ],
        "unrepaired": [[note.where, note.text] for note in result.unrepaired],
    }
    save_model(result.model, directory, original=task.model, plan=result.plan, extra=record)


def saved_round(task: Task, directory: Path | None, number: int) -> Round | None:
    """The round that a run before this one kept in `directory`; None if there is none."""
    if directory is None or not (directory / "manifest.json").exists():
        return None
    manifest = read_manifest(directory)
    record = manifest["extra"]
    after = [None if d is None else Damage(*d) for d in record["damage"]]
    assert after[0] is not None
    return Round(
        number=number,
        target=record["target"],
        macs=record["macs"],
        share=record["share"],
        model=load_model(task.factory, directory).eval(),
        plan=Plan.from_json(manifest["plan"]),
        cut=after[0],
        repaired=after[1],
        retrained=after[2],
        note=record.get("note", ""),
        timed=None if record.get("timed") is None else Timed(**record["timed"]),
        unrepaired=tuple(Note(where, text) for where, text in record.get("unrepaired", ())),
    )
