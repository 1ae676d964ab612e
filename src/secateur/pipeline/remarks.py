"""What a report says in words: what was asked, and what to doubt."""

from collections.abc import Iterator

from torch import fx

from secateur.describe import describe, without_addresses
from secateur.pipeline.rounds import Round
from secateur.pipeline.scope import Scope
from secateur.pipeline.story import Story
from secateur.sensitivity.result import Scan, changes_nothing


def asked(story: Story) -> list[tuple[str, str]]:
    """What the run was to do, as (name, words)."""
    task = story.task
    goal = (
        f"lose at most {story.tolerance:g} of {task.metric.name}" if story.tolerance is not None else str(story.budget)
    )
    return [
        ("model", f"{type(task.model).__module__}.{type(task.model).__qualname__}"),
        ("goal", goal),
        ("metric", f"{task.metric.name}, {'higher' if task.metric.higher_is_better else 'lower'} is better"),
        ("criterion", without_addresses(repr(task.criterion))),
        ("objective", task.objective if isinstance(task.objective, str) else without_addresses(repr(task.objective))),
        ("calibration", f"{task.calibration.count()} samples"),
        ("validation", f"{len(task.baseline.metric)} samples"),
        ("test", f"{story.certificate.samples} samples" if story.certificate else "none"),
        ("schedule", story.schedule),
        ("repair", "least squares and batch-norm moments" if task.repair else "none"),
        ("retraining", without_addresses(repr(task.retrain)) if task.retrain is not None else "none"),
        *_wishes(task.scope),
    ]


def _wishes(scope: Scope) -> list[tuple[str, str]]:
    """What the caller let go and what not; defaults only where their absence would surprise."""
    ignored = ", ".join(part if isinstance(part, str) else describe(part) for part in scope.ignore)
    found = [("ignored", ignored or "nothing")]
    for label, value in (("widths are multiples of", scope.multiple_of), ("least width", scope.minimum)):
        if value != 1:
            text = str(value) if isinstance(value, int) else ", ".join(f"{k}: {v}" for k, v in value.items())
            found.append((label, text))
    if scope.branches:
        found.append(("residual branches", "may go as a whole"))
    found.append(("may go though not exact", ", ".join(scope.inexact) or "nothing"))
    if scope.split_stacks:
        found.append(("layers of recurrent stacks", "may end at different widths"))
    if scope.fallback == "graph":
        found.append(("fallback", "a graph, where the model's own forward pass cannot follow"))
    return found


def warnings(story: Story) -> list[str]:
    """What to doubt, a paragraph each."""
    found = []
    if story.certificate is None:
        found.append("There was no test data, so nothing is certified.")
    if story.search.best is None:
        found.append("No round stayed within the tolerance: the model is as it was.")
    timed = None if story.search.best is None else story.search.best.timed
    if timed is not None and not timed.is_met:
        found.append(
            f"The latency is not within the budget: measured {timed.measured_s:.4g} s, allowed {timed.allowed_s:.4g} "
            f"s, predicted {timed.predicted_s:.4g} s. Corrections of the prediction by what was measured did not help: "
            "raise the budget, or scan higher sparsities."
        )
    if isinstance(story.small, fx.GraphModule) and not isinstance(story.task.model, fx.GraphModule):
        found.append(
            "The model's own forward pass could not follow: the result is a graph, in evaluation mode for good, and "
            "what only a module has (dropout, batch norm in training) does not apply to it."
        )
    if story.unfit and story.search.best is not None:
        found.append(
            f"{', '.join(story.unfit)}: reached in training mode only, and left as before; in that mode the pruned "
            "model may not run. Take them out of it before you train it."
        )
    unmeasured = story.curves.tally.unmeasured if isinstance(story.curves, Scan) else ()
    if unmeasured:
        found.append(f"Could not be measured, and left out of the curves: {'; '.join(map(str, unmeasured))}.")
    suspicious = [name for name, curve in story.curves.items() if changes_nothing(curve)]
    if suspicious:
        found.append(
            f"Silencing units of {', '.join(suspicious[:5])} changed nothing at all at any sparsity: "
            "suspect the probe before calling them robust."
        )
    beaten = [] if story.search.best is None else list(_as_good(story, story.search.best))
    if beaten:
        found.append(f"At the same multiply-adds, within one standard error as good: {', '.join(beaten)}.")
    return found


def _as_good(story: Story, best: Round) -> Iterator[str]:
    """The controls that lose no more than the result and one standard error."""
    for name, control in story.controls.items():
        if control.best is not None and control.best.damage.mean <= best.damage.mean + best.damage.standard_error:
            yield name
