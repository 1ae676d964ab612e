"""One round: score, allocate, cut, repair, retrain, and compare with the fixed baseline."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from secateur.measures.evaluate import evaluate
from secateur.measures.metrics import resolve_loss
from secateur.pipeline.drafting import cut_in_time
from secateur.pipeline.latency import Timed
from secateur.pipeline.scene import Scene
from secateur.pipeline.task import Damage, Task, summarise
from secateur.pipeline.widths import Allocator
from secateur.repairs.repair import repair
from secateur.storage.saved_model import load_model, read_manifest, save_model
from secateur.surgery.plan import Plan
from secateur.training.loop import retrain
from secateur.types import Note


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
    draft = cut_in_time(task, scene, allocator, target)
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
