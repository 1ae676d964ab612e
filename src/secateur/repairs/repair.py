"""Repair without labels: least squares for consumers, population moments for batch norm.

The dense and the cut model run side by side on all calibration batches, call by call. Before a call is made,
its weight is fitted: from the inputs that the cut model now has, everything before being repaired already, to
the outputs that the dense model gives. Nothing goes by the names of layers; which rows and columns of a weight
are left is known from the plan. A change is kept only where it is better on held-out samples.
"""

import contextlib
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from secateur.capture.calls import Call, Place
from secateur.capture.gram import some_positions
from secateur.capture.lockstep import End, Event, Norm, in_lockstep
from secateur.capture.recurrent import Layer
from secateur.capture.watch import Places
from secateur.data import Batch, BatchFn, as_batches
from secateur.errors import NumericalError
from secateur.graph.groups import structure_for
from secateur.graph.trace import Program, in_eval_mode, named_state
from secateur.graph.typing import operator_name
from secateur.progress import NoProgress, Progress
from secateur.repairs.least_squares import FOLDS, RIDGES, Products, Solution, in_folds, shift, solve
from secateur.repairs.recurrent import Pair, kept_of, repaired_layer
from secateur.repairs.rows import kept_columns, kept_rows
from secateur.surgery.plan import Plan
from secateur.surgery.tensors import Marked, removed_marks
from secateur.types import Group, Note

_Event = TypeVar("_Event")

Reach = Literal["cut", "all"]
Kind = Literal["least squares", "bias", "batch norm", "recurrent"]

NO_BETTER = "kept as it was: the fitted weights were no better on held-out calibration samples"
READ_OTHERWISE = "weight kept as it was: the model reads it in another way too, which a fit would change"
REORDERED = "kept as it was: its rows in the cut model are not those of one use in the dense model"
OTHER_CALLS = "kept as it was, with all that follows: the dense model does not use it here"
REPEATED_NORM = "kept as it was: called several times, with other inputs each time"
REPEATED_LAYER = "kept as it was: a recurrent layer that is called several times"

LINEAR = ("linear", "conv", "matmul", "mm", "addmm", "bmm", "lstm", "gru", "rnn_tanh", "rnn_relu")
MOVING = (
    "t",
    "transpose",
    "permute",
    "slice",
    "chunk",
    "split",
    "split_with_sizes",
    "unbind",
    "select",
    "detach",
    "alias",
)


@dataclass(frozen=True)
class Change:
    """One thing that was repaired.

    Attributes:
        where: the parameter, or the rows of one (`"attention.in_proj_weight[0:64]"`); of a batch norm, its mean.
        kind: how.
        before: held-out squared error of the outputs before, as a share of their own size.
        after: likewise, after.
    """

    where: str
    kind: Kind
    before: float
    after: float


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
        walk = _Walk(small, dense, plan, batches, program, chosen, reach, ridges, rows_per_column, seed)
        count = sum(walk.calls.values())
        with _restored_on_error(small), (progress or NoProgress()).stage("repair", count) as advance:
            for before, now in walk.pairs():
                walk.mend(before, now)
                advance(1, str(walk.key(now[0], walk.small_places)[1]))
    return Repaired(tuple(walk.changes), tuple(walk.notes))


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


class _Walk:
    """The way of both models through the calibration data."""

    def __init__(
        self,
        small: nn.Module,
        dense: nn.Module,
        plan: Plan,
        batches: Sequence[Batch],
        program: Program,
        groups: Sequence[Group],
        reach: Reach,
        ridges: Sequence[float],
        rows_per_column: int,
        seed: int,
    ) -> None:
        self.small, self.dense, self.batches, self.program = small, dense, batches, program
        self.reach, self.ridges, self.rows_per_column = reach, ridges, rows_per_column
        self.generator = torch.Generator().manual_seed(seed)
        self.shapes = program.shapes
        self.marks: Mapping[str, Sequence[Marked]] = removed_marks(groups, plan, program.shapes)
        self.state = named_state(small)
        self.small_places, self.dense_places = Places(small), Places(dense)
        self.samples = sum(batch.size for batch in batches)
        self.changes: list[Change] = []
        self.notes: list[Note] = []
        self.done: set[tuple[str, str, int]] = set()
        one = batches[0].take(torch.tensor([0]))
        self.calls = Counter(self.key(events[0], self.small_places) for events in in_lockstep(small, [one]))
        self.together = self._sums_of_repeated()

    def key(self, event: Event, places: Places) -> tuple[str, str, int]:
        """What an event of one model and one of the other have in common: its kind, its tensor, and a row."""
        if isinstance(event, Call):
            return "call", event.weight.name, 0
        if isinstance(event, Layer):
            place = places.find(event.weights.ih)
            return "layer", place.name if place else "", 0
        if isinstance(event, Norm):
            place = places.find(event.mean)
            return "norm", place.name if place else "", 0
        return "end", "", 0

    def pairs(self) -> Iterator[tuple[list[Event], list[Event]]]:
        """The events of both models side by side; what only the dense model does is passed over."""
        steps = in_lockstep(self.dense, self.batches)
        for now in in_lockstep(self.small, self.batches):
            wanted = self.key(now[0], self.small_places)
            before = next(steps)
            while self.key(before[0], self.dense_places) != wanted:
                if isinstance(before[0], End):
                    self.notes.append(Note(wanted[1], OTHER_CALLS))
                    return
                before = next(steps)
            yield before, now

    def mend(self, before: Sequence[Event], now: Sequence[Event]) -> None:
        """Repair what is about to happen."""
        key = self.key(now[0], self.small_places)
        if isinstance(now[0], Call):
            self._mend_call(_only(before, Call), _only(now, Call))
        elif isinstance(now[0], Norm):
            self._mend_norm(_only(before, Norm), _only(now, Norm), key)
        elif isinstance(now[0], Layer):
            self._mend_layer(_only(before, Layer), _only(now, Layer), key)

    # Calls

    def _mend_call(self, before: Sequence[Call], now: Sequence[Call]) -> None:
        call = now[0]
        where = _where(call.weight, len(self.state[call.weight.name]))
        if ("call", where, 0) in self.done or not self._is_wanted(before[0], call):
            return
        self.done.add(("call", where, 0))
        is_repeated = where in self.together
        parts = self.together[where] if is_repeated else self._sums(before, now)
        if parts is None:
            self.notes.append(Note(where, REORDERED))
            return
        old = self._old(call)
        bias = call.bias if call.bias is not None and self._is_own_bias(call.weight.name, call.bias.name) else None
        if _is_read_otherwise(self.program, call.weight.name):
            self.notes.append(Note(where, READ_OTHERWISE))
            if bias is not None:
                self._mend_bias(bias, parts, old)
            return
        if bias is not None:
            solution = solve(parts, old, where, ridges=self.ridges)
        else:
            # A constant that is taken off again by batch norm need not be fitted, and cannot be kept. Any other
            # stays as it is: a fixed part of the outputs.
            is_free = _feeds_batch_norm(self.program, call.weight.name)
            reduced = [part.centred() if is_free else part.less(old[..., -1]).without_constant() for part in parts]
            solution = solve(reduced, old[..., :-1], where, has_constant=False, ridges=self.ridges)
        self._keep(call, bias, where, solution)

    def _keep(self, call: Call, bias: Place | None, where: str, solution: Solution) -> None:
        if solution.share == 0:
            if solution.before > 0:
                self.notes.append(Note(where, NO_BETTER))
            return
        weights = solution.weights
        if bias is not None:
            self._write(bias, weights[..., -1].flatten())
            weights = weights[..., :-1]
        self._write(call.weight, call.form.weight(weights, call.values.shape))
        self.changes.append(Change(where, "least squares", solution.before, solution.after))

    def _mend_bias(self, bias: Place, parts: Sequence[Products], old: Tensor) -> None:
        moved, before, after = shift(parts, old)
        if after < before:
            self._write(bias, (old[..., -1] + moved).flatten())
            where = _where(bias, len(self.state[bias.name]))
            self.changes.append(Change(where, "bias", before, after))

    def _write(self, place: Place, values: Tensor) -> None:
        whole = self.state[place.name]
        part = whole[place.start : place.stop]
        part.copy_(values.reshape(part.shape))

    def _is_wanted(self, before: Call, now: Call) -> bool:
        lost = now.matrix().shape[2] < before.matrix().shape[2]
        return lost or self.reach == "all"

    def _old(self, call: Call) -> Tensor:
        matrix = call.matrix().double().cpu()
        offset = matrix.new_zeros(matrix.shape[:2]) if call.offset is None else call.offset.double().cpu()
        return torch.cat([matrix, offset.reshape(*matrix.shape[:2], 1)], dim=2)

    def _sums(self, before: Sequence[Call], now: Sequence[Call]) -> list[Products] | None:
        """Sums of the cut model's inputs and the dense model's outputs, by folds."""
        name = now[0].weight.name
        dense, small = (before[0].form, before[0].weight), (now[0].form, now[0].weight)
        rows = kept_rows(dense, small, self.shapes[name], self.marks.get(name, ()))
        if rows is None:
            return None
        matrix = before[0].matrix()
        offset = before[0].offset
        wanted = self.rows_per_column * (now[0].matrix().shape[2] + 1)
        most = -(-wanted // self.samples)
        parts: list[Products] | None = None
        first = 0
        for old, new in zip(before, now, strict=True):
            positions = some_positions(new, most, self.generator)
            outputs = torch.einsum("npgc,grc->npgr", old.design(positions), matrix)
            if offset is not None:
                outputs = outputs + offset.reshape(matrix.shape[:2])
            design = new.design(positions)
            targets = outputs.flatten(2)[..., rows.to(outputs.device)]
            found = in_folds(design, targets, first)
            first += len(design)
            parts = found if parts is None else [a + b for a, b in zip(parts, found, strict=True)]
        return parts

    def _sums_of_repeated(self) -> dict[str, list[Products] | None]:
        """Of weights that are used several times: sums over all uses, with the inputs of the unrepaired model."""
        repeated = {key for key, count in self.calls.items() if key[0] == "call" and count > 1}
        sums: dict[str, list[Products] | None] = {}
        counts: Counter[str] = Counter()
        if not repeated:
            return {}
        for before, now in self.pairs():
            call = now[0]
            if not isinstance(call, Call) or self.key(call, self.small_places) not in repeated:
                continue
            first = before[0]
            assert isinstance(first, Call)
            where = _where(call.weight, len(self.state[call.weight.name]))
            counts[where] += 1
            if self._is_wanted(first, call) and sums.get(where, ()) is not None:
                parts = self._sums(_only(before, Call), _only(now, Call))
                earlier = sums.get(where)
                both = None if parts is None else parts
                if earlier is not None and parts is not None:
                    both = [a + b for a, b in zip(earlier, parts, strict=True)]
                sums[where] = both
        # Several rows of one parameter, each used once, need not be fitted together.
        return {where: parts for where, parts in sums.items() if counts[where] > 1}

    def _is_own_bias(self, weight: str, bias: str) -> bool:
        """Whether the bias is read only where the weight is: another layer's fit would change it too."""
        return _readers(self.program, bias) <= _readers(self.program, weight)

    # Batch norm

    def _mend_norm(self, before: Sequence[Norm], now: Sequence[Norm], key: tuple[str, str, int]) -> None:
        mean, variance = now[0].mean, now[0].variance
        if mean is None or variance is None or key in self.done:
            return
        self.done.add(key)
        if self.calls[key] > 1:
            self.notes.append(Note(key[1].removesuffix(".running_mean"), REPEATED_NORM))
            return
        kept = kept_columns((1, self.shapes[key[1]][0]), [((1,), m) for _, m in self.marks.get(key[1], ())])
        where = key[1].removesuffix(".running_mean")
        held = self._held_out([norm.inputs for norm in now])
        shown = [(norm, h) for norm, h in zip(now, held, strict=True) if bool(h.any())]
        others = [_moments(norm.inputs[~h]) for norm, h in zip(now, held, strict=True) if bool((~h).any())]
        whole = _together(others + [_moments(norm.inputs[h]) for norm, h in shown], where)
        fitted = _together(others, where) if others else whole
        index = kept.to(mean.device)
        targets = [
            n.apply(n.inputs[h]).index_select(1, index) for n, h in zip(before, held, strict=True) if bool(h.any())
        ]
        old = mean.clone(), variance.clone()
        errors = []
        for values in (old, fitted):
            _put((mean, variance), values)
            outputs = [norm.apply(norm.inputs[h]) for norm, h in shown]
            errors.append(_relative_error(list(zip(outputs, targets, strict=True))))
        is_better = errors[1] < errors[0]
        _put((mean, variance), whole if is_better else old)
        if is_better:
            self.changes.append(Change(where, "batch norm", errors[0], errors[1]))

    def _held_out(self, batches: Sequence[Tensor]) -> list[Tensor]:
        """Every `FOLDS`-th sample of all, as masks over the samples of the batches; all where there are too few."""
        starts = itertools.accumulate((len(x) for x in batches[:-1]), initial=0)
        held = [
            (n + torch.arange(len(x), device=x.device)) % FOLDS == FOLDS - 1
            for n, x in zip(starts, batches, strict=True)
        ]
        return held if any(bool(h.any()) for h in held) else [torch.ones_like(h) for h in held]

    # Recurrent layers

    def _mend_layer(self, before: Sequence[Layer], now: Sequence[Layer], key: tuple[str, str, int]) -> None:
        name = key[1]
        if key in self.done:
            return
        self.done.add(key)
        pairs = [Pair(old, new) for old, new in zip(before, now, strict=True)]
        own = pairs[0]
        is_cut = any(
            getattr(own.small.weights, role).shape[1] < getattr(own.dense.weights, role).shape[1]
            for role in ("ih", "hh", "hr")
            if getattr(own.small.weights, role) is not None
        )
        if not name or not (is_cut or self.reach == "all"):
            return
        if self.calls[key] > 1:
            self.notes.append(Note(name, REPEATED_LAYER))
            return
        kept = kept_of(own, self._name_in_dense, self.marks)
        if kept is None:
            self.notes.append(Note(name, REORDERED))
            return
        outcome = repaired_layer(pairs, kept, name)
        if not outcome.after < outcome.before:
            self.notes.append(Note(name, NO_BETTER))
            return
        for role, values in outcome.values.items():
            getattr(own.small.weights, role).copy_(values)
        self.changes.append(Change(name, "recurrent", outcome.before, outcome.after))

    def _name_in_dense(self, tensor: Tensor) -> str:
        place = self.dense_places.find(tensor)
        return place.name if place else ""


def _only(events: Sequence[Event], kind: type[_Event]) -> list[_Event]:
    return [event for event in events if isinstance(event, kind)]


def _where(place: Place, rows: int) -> str:
    return place.name if place.stop - place.start == rows else f"{place.name}[{place.start}:{place.stop}]"


def _relative_error(pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Squared error of outputs beside targets, as a share of the targets' size."""
    error = sum(float((y - t).square().sum()) for y, t in pairs)
    return error / max(sum(float(t.square().sum()) for _, t in pairs), torch.finfo(torch.float64).tiny)


Moments = tuple[int, Tensor, Tensor]
"""How many positions of each channel, their mean and their variance: float64 (channels,)."""


def _moments(inputs: Tensor) -> Moments:
    dims = [d for d in range(inputs.ndim) if d != 1]
    variance, mean = torch.var_mean(inputs, dims, correction=0)
    return inputs.numel() // max(inputs.shape[1], 1), mean.double(), variance.double()


def _together(parts: Sequence[Moments], where: str) -> tuple[Tensor, Tensor]:
    """Population mean and variance of all parts.

    Source: Chan, Golub and LeVeque 1979, updating formulae for sample variances.
    """
    count = sum(n for n, _, _ in parts)
    mean = torch.stack([m * n for n, m, _ in parts]).sum(0) / count
    variance = torch.stack([(v + (m - mean).square()) * n for n, m, v in parts]).sum(0) / count
    if not bool((mean.isfinite() & variance.isfinite()).all()):
        raise NumericalError(
            f"the inputs of {where!r} are not finite on the calibration data; nothing was recalibrated"
        )
    return mean, variance


def _put(tensors: tuple[Tensor, Tensor], values: tuple[Tensor, Tensor]) -> None:
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)


def _placeholders(program: Program, name: str) -> list[torch.fx.Node]:
    return [n for n in program.nodes if n.op == "placeholder" and program.names.get(str(n.target)) == name]


def _readers(program: Program, name: str) -> frozenset[torch.fx.Node]:
    """The operators that read a parameter, through views of it or as it is."""
    waiting = _placeholders(program, name)
    found: set[torch.fx.Node] = set()
    while waiting:
        for user in waiting.pop().users:
            (waiting.append if _operator(user) in MOVING else found.add)(user)
    return frozenset(found)


def _operator(node: torch.fx.Node) -> str:
    return operator_name(node).removeprefix("aten.").rstrip("_")


def _is_read_otherwise(program: Program, name: str) -> bool:
    """Whether anything but a linear map reads the parameter: a table of embeddings that decodes, too."""
    return not all(_operator(reader).startswith(LINEAR) for reader in _readers(program, name))


def _feeds_batch_norm(program: Program, name: str) -> bool:
    """Whether every reader of the layer with this weight is a batch norm, which removes any constant."""
    for node in _placeholders(program, name):
        readers = [reader for layer in node.users for reader in layer.users]
        return bool(readers) and all(operator_name(r) == "aten.batch_norm" for r in readers)
    return False
