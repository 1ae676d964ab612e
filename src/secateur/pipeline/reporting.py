"""The report of a run: its results, as plain data."""

import datetime
import math
import platform
from collections.abc import Iterable, Sequence

import torch
from safetensors.torch import save as safetensors_bytes
from torch import fx, nn

from secateur.allocation.certificate import Certificate
from secateur.allocation.front import Point
from secateur.allocation.thresholds import BudgetCurve
from secateur.describe import own_version
from secateur.graph.trace import canonical_names, named_state
from secateur.measures.latency import time_models, verdict
from secateur.measures.macs import count_macs, count_params
from secateur.pipeline.remarks import asked, warnings
from secateur.pipeline.rounds import Round
from secateur.pipeline.search import Search
from secateur.pipeline.story import Story
from secateur.pipeline.task import Damage, Task
from secateur.report.schema import (
    CertificateData,
    ControlRow,
    CostRow,
    CurveData,
    FrontData,
    FrontPoint,
    LeftRow,
    QualityRow,
    ReportData,
    RewriteRow,
    RoundRow,
    ThresholdData,
    WidthRow,
)
from secateur.storage.saved_model import attribute_changes
from secateur.surgery.plan import Plan
from secateur.types import Curves, Group, Rewrite

COSTS = {"macs": "MACs", "params": "parameters", "memory": "memory", "latency": "latency"}


def tell(story: Story) -> ReportData:
    """Measure what is left to measure, and put all of it into the form of the report."""
    task, best = story.task, story.search.best
    return ReportData(
        title=f"secateur: {type(task.model).__name__}",
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        versions={"secateur": own_version(), "torch": torch.__version__, "python": platform.python_version()},
        machine=f"{platform.system()} {platform.machine()}",
        threads=torch.get_num_threads(),
        seed=task.seed,
        metric=task.metric.name,
        higher_is_better=task.metric.higher_is_better,
        asked=asked(story),
        costs=_costs(story),
        quality=_quality(story),
        certificate=_certificate(story.certificate),
        curves=curve_data(story.curves, story.scene.groups, None if best is None else best.plan),
        widths=_widths(story),
        thresholds=_thresholds(story),
        front=_front(story),
        choices=[] if story.selection is None else [story.selection.reason],
        rounds=[_round(r, story.search) for r in story.search.rounds],
        controls=_controls(story) if best is not None else [],
        left_alone=_left_alone(story),
        coverage=story.scene.found.coverage(),
        rewrites=[
            RewriteRow(module=r.module or "(root)", attribute=r.attribute, before=str(r.before), after=str(r.after))
            for r in _rewrites(story)
        ],
        warnings=warnings(story),
        timings=[(name, round(seconds, 2)) for name, seconds in story.timings.items()],
    )


def _costs(story: Story) -> list[CostRow]:
    rows = cost_rows(story.task, story.small)
    timed = None if story.search.best is None else story.search.best.timed
    if timed is None:
        return rows
    best = CostRow(
        name="latency, fastest block",
        unit="s",
        before=timed.dense_s,
        after=timed.measured_s,
        predicted=timed.predicted_s,
    )
    return [*rows, best]


def _rewrites(story: Story) -> list[Rewrite]:
    # A graph has no attributes that its forward pass would read.
    return [] if isinstance(story.small, fx.GraphModule) else attribute_changes(story.task.model, story.small)


def cost_rows(task: Task, small: nn.Module) -> list[CostRow]:
    """Counted and timed, before and after."""
    before, after = time_models([task.model, small], task.args, task.kwargs)
    return [
        CostRow(
            name="MACs",
            unit="",
            before=count_macs(task.model, task.args, task.kwargs),
            after=count_macs(small, task.args, task.kwargs),
        ),
        CostRow(name="parameters", unit="", before=count_params(task.model), after=count_params(small)),
        CostRow(name="file size", unit="B", before=file_bytes(task.model), after=file_bytes(small)),
        CostRow(
            name="latency",
            unit="s",
            before=before.median_s,
            after=after.median_s,
            spread_before=before.iqr_s,
            spread_after=after.iqr_s,
            verdict=verdict(before, after),
        ),
    ]


def file_bytes(model: nn.Module) -> int:
    """Size of the model's weights as a safetensors file."""
    aliases = canonical_names(model)
    own = {n: t.detach().cpu().contiguous() for n, t in named_state(model).items() if aliases[n] == n}
    return len(safetensors_bytes(own))


def _quality(story: Story) -> list[QualityRow]:
    task, best = story.task, story.search.best
    damage = best.damage if best is not None else Damage(0.0, 0.0)
    dense = task.metric.value(task.baseline.metric)
    rows = [
        QualityRow(
            name="validation (was chosen on)",
            dense=dense,
            pruned=dense - task.metric.sign * damage.mean,
            damage=finite(damage.mean),
            standard_error=finite(damage.standard_error),
        )
    ]
    if story.certificate is not None:
        c = story.certificate
        rows.append(
            QualityRow(
                name="test (read once)", dense=c.before, pruned=c.after, damage=c.drop, standard_error=c.drop_error
            )
        )
    return rows


def _certificate(certificate: Certificate | None) -> CertificateData | None:
    if certificate is None:
        return None
    fields = {k: v for k, v in certificate.to_dict().items() if k != "drop_error"}
    fields["assumptions"] = " ".join(certificate.assumptions)
    return CertificateData(sentence=certificate.sentence(), **fields)


def curve_data(curves: Curves, groups: Iterable[Group] = (), plan: Plan | None = None) -> list[CurveData]:
    """Curves in the form of the report, with the sparsity that `plan` gives each group.

    >>> import numpy as np
    >>> from secateur.types import Curve
    >>> curve = Curve("a", (2, 1), (0.0, 0.5), np.array([[0.0, 0.0], [0.0, 1.0]]), np.zeros((2, 2)))
    >>> [(c.group, c.granularity, c.damage) for c in curve_data({"a": curve}, [Group("a", 2, ())])]
    [('a', 'channel', [0.0, 0.5])]
    """
    granularity = {group.name: group.granularity for group in groups}
    return [
        CurveData(
            group=name,
            granularity=granularity.get(name, "unit"),
            sparsities=[round(s, 6) for s in curve.sparsities],
            damage=[finite(v) for v in curve.mean()],
            standard_error=[finite(v) for v in curve.standard_error()],
            loss_damage=[finite(v) for v in curve.mean_loss()],
            chosen_sparsity=plan.sparsity(name) if plan is not None and name in plan.keep else None,
        )
        for name, curve in curves.items()
    ]


def _widths(story: Story) -> list[WidthRow]:
    best = story.search.best
    return [
        WidthRow(
            group=g.name,
            granularity=g.granularity,
            before=g.size,
            after=len(best.plan.keep[g.name]) if best is not None and g.name in best.plan.keep else g.size,
            parameters=sorted({s.parameter for s in g.slices}),
        )
        for g in story.scene.groups
    ]


def _thresholds(story: Story) -> ThresholdData:
    picture, choice = story.picture, story.choice
    bounds = story.task.bounds
    least = min(bounds, key=lambda name: bounds[name])
    reason = choice.reason if choice is not None else "the budget was given"
    return threshold_data(
        picture,
        chosen=choice.budget if choice is not None else bounds[least],
        of=COSTS[least],
        tolerance=story.tolerance,
        reason=reason,
    )


def threshold_data(
    picture: BudgetCurve, *, chosen: float | None, of: str, tolerance: float | None, reason: str
) -> ThresholdData:
    """Damage against budget in the form of the report."""
    return ThresholdData(
        budgets=list(picture.budgets),
        damage=[finite(v) for v in picture.mean],
        standard_error=[finite(v) for v in picture.standard_error],
        predicted=[finite(v) for v in picture.predicted],
        chosen=chosen,
        of=of,
        tolerance=tolerance,
        reason=reason,
    )


def _front(story: Story) -> FrontData | None:
    """The measured points; costs are those of the dense model at the widths of each point."""
    if story.front is None:
        return None
    bounds, prices, dense = story.task.bounds, story.scene.cost.prices, story.task.dense.prices
    full = {group.name: group.width for group in story.scene.groups}
    wanted = None if story.search.best is None else story.search.best.share
    points = story.front.points
    near = None if wanted is None else min(points, key=lambda p: abs(p.share - wanted), default=None)
    return FrontData(
        of=COSTS[next(iter(bounds))],
        points=[
            front_point(
                p,
                is_chosen=p is near,
                costs=[(COSTS[n], price(p.allocation.widths) / (dense[n]({}) or 1)) for n, price in prices.items()],
                widths=[(name, full[name], width) for name, width in p.allocation.widths.items()],
            )
            for p in points
        ],
    )


def front_point(
    point: Point,
    *,
    is_chosen: bool,
    costs: Sequence[tuple[str, float]] = (),
    widths: Sequence[tuple[str, int, int]] = (),
) -> FrontPoint:
    """A measured point in the form of the report."""
    return FrontPoint(
        rule=point.rule,
        budget=point.budget,
        share=point.share,
        damage=finite(point.damage),
        standard_error=finite(point.standard_error),
        predicted=finite(point.predicted),
        is_dominated=point.is_dominated,
        is_chosen=is_chosen,
        costs=list(costs),
        widths=list(widths),
    )


def _round(result: Round, search: Search) -> RoundRow:
    def mean(damage: Damage | None) -> float | None:
        return None if damage is None else finite(damage.mean)

    return RoundRow(
        number=result.number,
        target=result.target,
        macs=result.macs,
        damage_cut=mean(result.cut),
        damage_repaired=mean(result.repaired),
        damage_retrained=mean(result.retrained),
        standard_error=finite(result.damage.standard_error),
        kept=result.number in search.kept,
        reason="; ".join(filter(None, [search.reasons[result.number], result.note])),
    )


def _controls(story: Story) -> list[ControlRow]:
    found = {"secateur": story.search.best, **{name: s.best for name, s in story.controls.items()}}
    return [
        ControlRow(
            name=name,
            macs=result.macs,
            damage=finite(result.damage.mean),
            standard_error=finite(result.damage.standard_error),
        )
        for name, result in found.items()
        if result is not None
    ]


def _left_alone(story: Story) -> list[LeftRow]:
    fixed, best = story.scene.found.fixed, story.search.best
    rows = [LeftRow(where=f"group {note.where}", reason=note.text) for note in story.left]
    rows += [LeftRow(where=f"{f.parameter}, dimension {f.dim}", reason=f.reason, size=f.size) for f in fixed]
    unrepaired = () if best is None else best.unrepaired
    return rows + [LeftRow(where=f"repair of {note.where}", reason=note.text) for note in unrepaired]


def finite(value: float) -> float | None:
    """The value, or None where it is not finite (JSON has no infinity)."""
    return float(value) if math.isfinite(value) else None
