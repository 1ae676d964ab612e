"""Make a copy of a model sparse, weight by weight in the order in which they run, without training.

All calibration batches run in lockstep: before a weight is used its inputs are known, as the sparse model before
it makes them. Memory: the activations that are alive at one call, for all calibration samples, and the second
moments of one weight's inputs; those of weights that are used several times are gathered beforehand. With an
`Offload`, memory is its `memory_bytes` and what one operator needs, whatever the depth: the activations of one batch at
one call, one weight, and the method's work on that (for OBC up to 2^25 numbers), beside the calibration inputs and the
masks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur.capture.lockstep import Norm
from secateur.capture.parking import Offload, parking, watched
from secateur.capture.watch import Places
from secateur.data import BatchFn, as_batches
from secateur.errors import ArgumentError, NumericalError, PlanError
from secateur.graph.copies import copy_of
from secateur.graph.trace import in_eval_mode, named_state
from secateur.progress import NoProgress, Progress
from secateur.sparsity.allocate import Sparsity, planned
from secateur.sparsity.curvature import Task, task_of
from secateur.sparsity.norms import recalibrate
from secateur.sparsity.plan import SparsityPlan
from secateur.sparsity.precision import exact_products
from secateur.sparsity.seen import Seen, Sums
from secateur.sparsity.walk import weights_with_inputs
from secateur.sparsity.weights import Weight, find_weights
from secateur.types import Note


@dataclass(frozen=True)
class SparseWeight:
    """What became of one weight.

    Attributes:
        name: as in the plan.
        size: number of weights.
        zeros: how many are zero.
        before: held-out squared error of its outputs with the zeros alone, as a share of their own size.
        after: likewise, as it is now.
        note: what was unusual; empty if nothing.
    """

    name: str
    size: int
    zeros: int
    before: float
    after: float
    note: str = ""

    @property
    def sparsity(self) -> float:
        """Fraction of its weights that is zero."""
        return self.zeros / self.size


@dataclass(frozen=True, eq=False)
class Sparsified:
    """A sparse model, and what was done.

    Attributes:
        model: a copy with plain tensors; what is removed is exactly zero.
        plan: what was done.
        weights: in the order in which they run.
        masks: parameter -> bool of its shape: True where a weight was kept, or the parameter was left dense.
        notes: what was left as it was, and why.
    """

    model: nn.Module
    plan: SparsityPlan
    weights: tuple[SparseWeight, ...]
    masks: dict[str, Tensor]
    notes: tuple[Note, ...]

    @property
    def sparsity(self) -> float:
        """Fraction of zeros among the weights of the plan."""
        return sum(w.zeros for w in self.weights) / max(sum(w.size for w in self.weights), 1)

    def __str__(self) -> str:
        width = max((len(w.name) for w in self.weights), default=6)
        lines = [f"{'weight':{width}}  zeros    error with zeros alone   error now"]
        for w in self.weights:
            note = f"  {w.note}" if w.note else ""
            lines.append(f"{w.name:{width}}  {w.sparsity:6.1%}  {w.before:21.3g}  {w.after:10.3g}{note}")
        lines.append(f"{'all':{width}}  {self.sparsity:6.1%}   zeros alone save neither time nor memory")
        return "\n".join([*lines, *(f"{note.where}: {note.text}" for note in self.notes)])


def sparsify(
    model: nn.Module,
    wanted: SparsityPlan | Sparsity,
    *,
    calibration: Any,
    batch_fn: BatchFn | None = None,
    recalibrated: bool = True,
    asymmetric: bool = True,
    offload: Offload | None = None,
    progress: Progress | None = None,
) -> Sparsified:
    """A sparse copy of `model`: no training, no labels.

    Source of the sequential order: SparseGPT (Frantar and Alistarh 2023, arXiv:2301.00774).

    Args:
        model: not changed.
        wanted: a plan, or settings that a plan is made from.
        calibration: inputs; labels are not read.
        batch_fn: takes a batch apart.
        recalibrated: give batch norms behind sparse weights moments of what they now see.
        asymmetric: fit outputs to those of the dense model, which runs beside, so that a weight makes up for errors
            before it; else each weight to what it made of the inputs that it now has.
        offload: keep weights and activations that are not at work on disk; nothing changes by a bit. While it runs
            nothing else may use the model; at the end the model and its copy are whole in memory.
        progress: shown while running.

    Raises:
        ArgumentError: a sparsity that the pattern does not have, a pattern that the method cannot make, or offloading
            of a model in TorchScript.
        PlanError: the plan names a weight that the model does not multiply inputs with.
        DataError: the calibration data is empty.
        NumericalError: inputs that are not finite, or moments that cannot be inverted.

    >>> model = nn.Linear(2, 1)
    >>> with torch.no_grad():
    ...     _ = model.weight.copy_(torch.tensor([[2.0, 1.0]]))
    >>> found = sparsify(model, Sparsity(0.5), calibration=[torch.eye(2)])
    >>> found.model.weight.count_nonzero().item(), found.sparsity
    (1, 0.5)
    """
    if offload is not None and any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise ArgumentError(
            "the model has a part in TorchScript, whose operators run unseen, so that it cannot be offloaded: "
            "leave offload= out, or give the model in Python"
        )
    batches = list(as_batches(calibration, "calibration", batch_fn))
    shown = progress or NoProgress()
    with torch.no_grad(), exact_products(), parking(offload) as held:
        if held is not None:
            held.admit(named_state(model).values())
        with watched(held):
            small = copy_of(model)
        with in_eval_mode(small), in_eval_mode(model):
            weights = {w.name: w for w in find_weights(small, batches[0].take(torch.tensor([0])), held)}
            plan = (
                wanted
                if isinstance(wanted, SparsityPlan)
                else planned(small, wanted, list(weights.values()), batches, shown, held)
            )
            made = _Pass(small, plan, recalibrated=recalibrated)
            chosen = _named_in(plan, weights)
            walk = weights_with_inputs(
                small, batches, chosen, dense=model if asymmetric else None, on_norms=made.normalise, held=held
            )
            with shown.stage("sparsify", len(chosen)) as advance:
                for weight, seen in walk:
                    made.make_sparse(weight, seen)
                    advance(1, weight.name)
    return Sparsified(small, plan, tuple(made.done), made.masks, tuple(made.notes))


def _named_in(plan: SparsityPlan, weights: Mapping[str, Weight]) -> list[Weight]:
    unknown = sorted(set(plan.sparsity) - set(weights))
    if unknown:
        raise PlanError(
            f"the plan names {unknown[0]!r}, which the model does not multiply inputs with; there are "
            f"{', '.join(weights)}"
        )
    return [weights[name] for name in plan.sparsity]


class _Pass:
    """One pass through the calibration data."""

    def __init__(self, small: nn.Module, plan: SparsityPlan, *, recalibrated: bool) -> None:
        self.plan, self.recalibrated = plan, recalibrated
        self.state, self.places = named_state(small), Places(small)
        self.done: list[SparseWeight] = []
        self.masks: dict[str, Tensor] = {}
        self.notes: list[Note] = []
        self.normed: set[str] = set()

    def make_sparse(self, weight: Weight, seen: Seen) -> None:
        sparsity = self.plan.sparsity[weight.name]
        rows = weight.rows(self.state)
        dense = weight.matrix(self.state)
        has_bias = weight.bias is not None and weight.uses == 1
        centred = has_bias or (weight.is_normed and self.recalibrated)
        fit = task_of(seen.fit, dense, weight.name, centred=centred)
        held = task_of(seen.judged(), dense, weight.name, centred=centred)
        aim = led(fit, held, dense)
        found = self.plan.method.prepared(aim, fit.curvature, self.plan.pattern)(sparsity)
        if not bool(found.matrix.isfinite().all()):
            raise NumericalError(
                f"the sparse values of {weight.name!r} are not finite; check the weights, or raise the damping"
            )
        zeros_alone = dense * found.keep
        before, after = held.error(zeros_alone), held.error(found.matrix)
        chosen, note = found.matrix, found.note
        if after > before:
            chosen, note = zeros_alone, f"values kept: new ones were no better on held-out samples ({after:.3g})"
            after = before
        rows.copy_(weight.form.weight(chosen, weight.shape))
        if has_bias and weight.bias is not None:
            self._shift_bias(weight, seen.fit, dense, chosen)
        mask = self.masks.setdefault(
            weight.place.name, torch.ones_like(self.state[weight.place.name], dtype=torch.bool)
        )
        mask[weight.place.start : weight.place.stop] = weight.form.weight(found.keep, weight.shape)
        zeros = weight.size - int(weight.rows(self.state).count_nonzero())
        self.done.append(SparseWeight(weight.name, weight.size, zeros, before, after, note))

    def _shift_bias(self, weight: Weight, sums: Sums, dense: Tensor, now: Tensor) -> None:
        """What the weight no longer gives on average, the bias gives."""
        assert weight.bias is not None
        mean = sums.gram.mean()[:, -1, :-1].to(now.device).unsqueeze(2)
        wanted = dense @ mean
        if sums.wanted is not None:
            wanted = (sums.wanted.cross[:, :, -1:] / max(sums.gram.positions, 1)).to(now.device)
        bias = self.state[weight.bias.name].detach()[weight.bias.start : weight.bias.stop]
        bias += (wanted - now @ mean).reshape(bias.shape).to(bias.dtype)

    def normalise(self, norms: Sequence[Norm], targets: Sequence[Norm] | None) -> None:
        """Recalibrate a batch norm that comes after something sparse."""
        place = self.places.find(norms[0].mean)
        if not self.recalibrated or not self.done or place is None or norms[0].variance is None:
            return
        if place.name in self.normed:
            self.notes.append(Note(place.name, "moments of the first of several calls"))
            return
        self.normed.add(place.name)
        recalibrate(norms, targets)


DAMPINGS = (1e-6, 1e-4, 1e-2)
SHARES = (0.5, 1.0)


def led(fit: Task, held: Task, dense: Tensor) -> Tensor:
    """The weight, without zeros, from which to start: the dense one, or one that makes up for errors before it.

    How far to go from one to the other is chosen on held-out samples.

    Source: asymmetric calibration, GPTAQ (Li et al. 2025, arXiv:2504.02692); that its strength needs choosing,
    CoreQ (2026, arXiv:2602.05902).
    """
    best, least = dense, held.error(dense)
    for damping in DAMPINGS:
        step = fit.solution(dense, damping) - dense
        for share in SHARES:
            error = held.error(dense + share * step)
            if error < least:
                best, least = dense + share * step, error
    return best
