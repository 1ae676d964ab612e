"""What `inspect` and `scan` print."""

from collections import Counter
from pathlib import Path

from rich.table import Table
from rich.text import Text

from secateur.cli.loaders import (
    Splits,
    example_args,
    load_criterion,
    load_dense,
    load_executor,
    load_racing,
    load_scope,
)
from secateur.cli.recipe import Recipe
from secateur.criteria.collect import collect
from secateur.criteria.criterion import needs_of, score
from secateur.data import as_batches
from secateur.graph.trace import trace
from secateur.measures.cost import measure
from secateur.pipeline.calibration import first_samples
from secateur.pipeline.picture import plot
from secateur.pipeline.reporting import curve_data
from secateur.progress_bars import make_progress
from secateur.report.formats import number, shorten
from secateur.report.plots import by_sensitivity
from secateur.report.tables import curves_table, to_text
from secateur.sensitivity.scan import scan
from secateur.storage.curve_store import CurveStore


def inspection(recipe: Recipe, splits: Splits, allowed: tuple[str, ...]) -> str:
    """Groups, causes of what is fixed, and the cost, as text of 80 columns."""
    model = load_dense(recipe.model, allowed)
    args = example_args(splits, recipe.model.example_batch)
    program, scope = trace(model, args), load_scope(recipe)
    found, all_groups = scope.structure(program), scope.groups(program)
    cost = measure(model, args, latency=False)
    groups = Table(title=Text(f"{type(model).__name__}: {len(all_groups)} groups"), title_justify="left")
    for name in ("group", "units", "kind", "parameters", "exact"):
        groups.add_column(name, justify="right" if name in {"units", "parameters"} else "left")
    for group in all_groups:
        exact = "yes" if group.exact else shorten(f"no: {group.note}", 26)
        groups.add_row(
            Text(shorten(group.name, 24)), str(group.size), group.granularity, str(len(group.slices)), Text(exact)
        )
    fixed = Table(title="what is fixed, and why", title_justify="left")
    fixed.add_column("cause")
    fixed.add_column("places", justify="right")
    for reason, count in Counter(f.reason for f in found.fixed).most_common():
        fixed.add_row(Text(reason), str(count))
    text = to_text(groups) + "\n" + to_text(fixed)
    counts = f"{number(cost.macs)} MACs and {number(cost.params)} parameters"
    share = f"{found.coverage():.1%} of the removable positions lie in a group."
    return f"{text}\n" + to_text(f"{share} {counts} with a batch of {len(args[0])}.").rstrip()


def measured_scan(recipe: Recipe, splits: Splits, allowed: tuple[str, ...], out: Path) -> str:
    """Curves of every group that may be cut, as text of 80 columns."""
    model = load_dense(recipe.model, allowed)
    program = trace(model, example_args(splits, recipe.model.example_batch))
    scope = load_scope(recipe)
    groups = [g for g in scope.groups(program) if scope.admits(g)]
    criterion, progress = load_criterion(recipe), make_progress()
    data = first_samples(as_batches(splits.train, "train"), recipe.calibration_samples, seed=recipe.seed)
    statistics = collect(model, groups, data, needs=needs_of(criterion), loss=recipe.loss, progress=progress)
    out.mkdir(parents=True, exist_ok=True)
    with CurveStore.open(out / "curves.sqlite") as store:
        curves = scan(
            program,
            groups,
            score(groups, statistics, criterion),
            splits.validation,
            metric=recipe.metric,
            loss=recipe.loss,
            sparsities=recipe.sparsities,
            racing=load_racing(recipe),
            executor=load_executor(recipe),
            store=store,
            progress=progress,
        )
    picture = plot(curves, out / "curves.svg")
    table = to_text(curves_table(by_sensitivity(curve_data(curves, groups)), recipe.metric))
    remarks = [to_text(Text(remark)).rstrip() for remark in curves.remarks()]
    return "\n".join([table, *remarks, f"curves: {picture}\n"])
