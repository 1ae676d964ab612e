"""A model at the start of a round: its groups, their scores, and what measures them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from torch import nn

from secateur.allocation.contenders import contended
from secateur.criteria.collect import collect
from secateur.criteria.criterion import needs_of, score
from secateur.graph.costs import CostModel, cost_model, item_bytes
from secateur.graph.groups import Structure
from secateur.graph.trace import Program, trace
from secateur.measures.metrics import resolve_loss
from secateur.pipeline.aims import objective_of
from secateur.pipeline.scope import followed
from secateur.pipeline.task import Task
from secateur.sensitivity.probe import Probe, probe
from secateur.sensitivity.result import Scan
from secateur.sensitivity.scan import measure_curves
from secateur.types import Group


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


def measured_curves(task: Task, scene: Scene, targets: Sequence[float] = ()) -> Scan:
    """Curves of every group of the scene; where points race, those that the targets turn on are measured further."""
    deepen = None
    if targets and task.racing is not None and not task.racing.bisect:
        bounds = [task.limits(scene.cost, target) for target in targets]
        deepen = partial(contended, bounds=bounds, objective=objective_of(task.objective, scene.probe.scores))
    return measure_curves(
        scene.probe, sparsities=task.sparsities, racing=task.racing, deepen=deepen, executor=task.executor,
        store=task.store, progress=task.progress,
    )  # fmt: skip
