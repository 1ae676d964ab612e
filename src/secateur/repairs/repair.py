"""Repair without labels: least squares for consumers, population moments for batch norm.

The dense and the cut model run side by side on all calibration batches, call by call. Before a call is made,
its weight is fitted: from the inputs that the cut model now has, everything before being repaired already, to
the outputs that the dense model gives. Nothing goes by the names of layers; which rows and columns of a weight
are left is known from the plan. A change is kept only where it is better on held-out samples.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from secateur.capture.calls import Call
from secateur.capture.lockstep import Norm
from secateur.capture.recurrent import Layer
from secateur.data import BatchFn, as_batches
from secateur.graph.groups import structure_for
from secateur.graph.trace import Program, in_eval_mode, named_state
from secateur.progress import NoProgress, Progress
from secateur.repairs.calls import Sums, mended_call, sums_of_repeated
from secateur.repairs.changes import OTHER_CALLS, Change, Mended, left
from secateur.repairs.layers import mended_layer
from secateur.repairs.least_squares import RIDGES
from secateur.repairs.norms import mended_norm
from secateur.repairs.walk import Models, Reach, Step, calls_of, models_of, side_by_side, uses_of
from secateur.surgery.plan import Plan
from secateur.surgery.tensors import removed_marks
from secateur.types import Group, Note


@dataclass(frozen=True, eq=False)
class Repaired:
    """What was repaired.

    Attributes:
        changes: in the order in which they were made.
        notes: what was left as it was, and why.
    """

    changes: tuple[Change, ...]
    notes: tuple[Note, ...]

    def __str__(self) -> str:
        counts = Counter(change.kind for change in self.changes)
        lines = ["repaired: " + (", ".join(f"{count} by {kind}" for kind, count in counts.items()) or "nothing")]
        width = max((len(change.where) for change in self.changes), default=0)
        lines += [f"  {c.where:<{width}}  error {c.before:8.2%} -> {c.after:8.2%}" for c in self.changes]
        lines += [f"  {note.where}: {note.text}" for note in self.notes]
        return "\n".join(lines)

    @property
    def refitted(self) -> tuple[str, ...]:
        """What got new weights."""
        return tuple(c.where for c in self.changes if c.kind in {"least squares", "recurrent"})

    @property
    def recalibrated(self) -> tuple[str, ...]:
        """Batch norms that got new moments."""
        return tuple(c.where for c in self.changes if c.kind == "batch norm")


def repair(
    small: nn.Module,
    dense: nn.Module,
    plan: Plan,
    calibration: Any,
    *,
    program: Program,
    groups: Sequence[Group] | None = None,
    batch_fn: BatchFn | None = None,
    reach: Reach = "all",
    ridges: Sequence[float] = RIDGES,
    rows_per_column: int = 100,
    seed: int = 0,
    progress: Progress | None = None,
) -> Repaired:
    """Repair `small` in place.

    The memory is that of the activations that are alive at one call, for all calibration samples, in both models.

    Source: asymmetric least squares with intercept, from dense targets and pruned inputs, as in ThiNet
    (Luo et al. 2017, arXiv:1707.06342) and GPTAQ (Li et al. 2025, arXiv:2504.02692); batch-norm
    recalibration as in EagleEye (Li et al. 2020, arXiv:2007.02491), with population moments.

    Args:
        small: the cut model; its tensors are changed.
        dense: the model that it was cut from.
        plan: the plan of the cut.
        calibration: any source of batches; labels are not read.
        program: of `dense`.
        groups: those that the plan is for; None: all of `program`.
        batch_fn: takes apart batches of an unusual shape.
        reach: "all": every linear map, to make up for errors that come down the stream too; "cut": those that
            lost inputs.
        ridges: candidates, relative to the mean diagonal of the Gram matrix.
        rows_per_column: so many positions are drawn for each column of a fit, if there are more; the fit's excess
            error is then about one part in as many.
        seed: of that drawing.
        progress: shown while running.

    Raises:
        NumericalError: inputs that are not finite, or a Gram matrix that cannot be factored with any ridge. The
            model is then as it was.
    """
    with in_eval_mode(small), in_eval_mode(dense), torch.no_grad():
        batches = list(as_batches(calibration, "calibration", batch_fn))
        chosen = structure_for(program, plan.sizes).units if groups is None else groups
        marks = removed_marks(chosen, plan, program.shapes)
        models = models_of(small, dense, program, marks, batches, reach, ridges, rows_per_column)
        with _restored_on_error(small):
            return _repaired(models, torch.Generator().manual_seed(seed), progress or NoProgress())


def _repaired(models: Models, generator: torch.Generator, progress: Progress) -> Repaired:
    uses = uses_of(models)
    seen = calls_of(uses)
    is_any_repeated = any(kind is Call and count > 1 for (kind, _), count in uses.items())
    repeated = sums_of_repeated(models, generator) if is_any_repeated else {}
    done: set[tuple[type, str]] = set()
    found: list[Mended] = []
    with progress.stage("repair", sum(uses.values())) as advance:
        for step in side_by_side(models):
            what = type(step.now[0]), step.where
            if not step.before:
                found.append(left(step.where, OTHER_CALLS))
            elif what not in done:
                found.append(_mended(step, models, repeated, seen, generator, is_repeated=uses[what] > 1))
            done.add(what)
            advance(1, step.where)
    return Repaired(tuple(c for each in found for c in each.changes), tuple(n for each in found for n in each.notes))


def _mended(
    step: Step,
    models: Models,
    repeated: Sums,
    seen: Mapping[str, int],
    generator: torch.Generator,
    *,
    is_repeated: bool,
) -> Mended:
    """Repair what is about to happen."""
    event = step.now[0]
    if isinstance(event, Call):
        return mended_call(step, models, repeated, seen, generator)
    if isinstance(event, Norm):
        return mended_norm(step, models, is_repeated=is_repeated)
    if isinstance(event, Layer):
        return mended_layer(step, models, is_repeated=is_repeated)
    return Mended()


@contextlib.contextmanager
def _restored_on_error(model: nn.Module) -> Iterator[None]:
    """Put the tensors of `model` back as they were if something fails."""
    saved = {name: tensor.clone() for name, tensor in named_state(model).items()}
    try:
        yield
    except BaseException:
        for name, tensor in named_state(model).items():
            tensor.copy_(saved[name])
        raise
