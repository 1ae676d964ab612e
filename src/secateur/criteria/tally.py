"""What goes in and out of every consumer, added up call by call; no labels are needed for what goes in."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from secateur.capture.calls import Call, Place
from secateur.capture.forms import Form
from secateur.capture.gram import Gram, gram_of_inputs, single, some_positions
from secateur.capture.shifts import BLOCK
from secateur.criteria.statistics import GRAMS, INPUT_MOMENTS, OUTPUT_GRADIENTS, Consumer, Moments
from secateur.types import Note

Key = tuple[Place, Form]
_Sum = TypeVar("_Sum", Moments, Gram)


def moments_of(form: Form, inputs: Tensor) -> Moments:
    """Moments of the inputs of a call, column by column.

    Samples are summed before they are laid out as columns, so a convolution costs no more than a few sums.

    >>> from secateur.capture.forms import Dense
    >>> moments = moments_of(Dense(), torch.tensor([[1.0, 0.0], [-3.0, 2.0]]))
    >>> moments.total.tolist(), moments.absolute.tolist(), moments.zeros.tolist()
    ([[-2.0, 2.0]], [[4.0, 2.0]], [[0.0, 1.0]])
    """
    x = single(inputs.detach())
    samples = form.samples(x)
    positions = samples * form.positions(x)

    def columns(values: Tensor) -> Tensor:
        whole = values.sum(0, keepdim=True) if samples == len(x) and x.ndim > 1 else values
        return form.design(whole.double()).sum((0, 1)).cpu()

    sizes = x.abs()
    return Moments(
        positions, columns(x), columns(sizes), columns(x.square()), positions - columns((x != 0).to(x.dtype))
    )


def outer_products(rows: Tensor) -> Tensor:
    """Sum over samples and positions of (samples, positions, groups, rows) times itself: float64, on the CPU."""
    flat = single(rows.flatten(0, 1).transpose(0, 1))
    total = flat.new_zeros(flat.shape[0], flat.shape[2], flat.shape[2], dtype=torch.float64)
    for block in torch.split(flat, BLOCK, dim=1):
        total += torch.bmm(block.transpose(1, 2), block).double()
    return total.cpu()


@dataclass(eq=False)
class _Sums:
    bias: Place | None
    calls: int = 0
    moments: Moments | None = None
    gram: Gram | None = None
    output_gradients: Tensor | None = None


@dataclass(frozen=True, eq=False)
class _Read:
    """What the last call read: queries, keys and values, or two branches, often read the same.

    Attributes:
        form: of the call.
        inputs: of the call.
        version: how often the inputs were written to by then; None where nobody counts.
        moments: of the inputs, if asked for.
        gram: likewise.
    """

    form: Form
    inputs: Tensor
    version: int | None
    moments: Moments | None
    gram: Gram | None

    def is_of(self, call: Call) -> bool:
        """Whether the call reads the same in the same way, and nothing was written there since."""
        is_same = self.inputs is call.inputs and self.version is not None
        return is_same and self.version == _version(call.inputs) and self.form == call.form


@dataclass(eq=False)
class Tally:
    """Sums over the calls of each consumer; filled while the model runs.

    Args:
        needs: which of INPUT_MOMENTS, GRAMS and OUTPUT_GRADIENTS to add up.
        positions: the most positions of each sample that a Gram reads; None: all.
        most_columns: no Gram (or output gradients) of more columns (rows) than this.
        generator: draws the positions.
    """

    needs: Collection[str]
    positions: int | None
    most_columns: int
    generator: torch.Generator
    sums: dict[Key, _Sums] = field(default_factory=dict)
    notes: dict[tuple[str, str], Note] = field(default_factory=dict)
    now: Counter[Key] = field(default_factory=Counter)
    last: _Read | None = None

    def start(self) -> None:
        """A batch begins."""
        self.now, self.last = Counter(), None

    def add(self, call: Call) -> None:
        """What goes into a call."""
        key = (call.weight, call.form)
        sums = self.sums.setdefault(key, _Sums(call.bias))
        self.now[key] += 1
        sums.calls = max(sums.calls, self.now[key])
        has_gram = GRAMS in self.needs and self._fits(call.weight, "Gram", "columns", _columns(call))
        if self.last is None or not self.last.is_of(call):
            self.last = self._read(call, has_gram=has_gram)
        sums.moments = _sum(sums.moments, self.last.moments)
        sums.gram = _sum(sums.gram, self.last.gram)

    def _read(self, call: Call, *, has_gram: bool) -> _Read:
        inputs = call.inputs
        moments = moments_of(call.form, inputs) if INPUT_MOMENTS in self.needs else None
        gram = None
        if has_gram:
            gram = gram_of_inputs(call.form, inputs.detach(), some_positions(call, self.positions, self.generator))
        return _Read(call.form, inputs, _version(inputs), moments, gram)

    def add_gradients(self, place: Place, form: Form, outputs: Sequence[Tensor]) -> None:
        """Gradients of what came out of the calls of a consumer."""
        sums = self.sums[place, form]
        # In one product, for a recurrent layer has a call for each step.
        rows = torch.cat([form.responses(g).flatten(0, 1) for g in outputs]).unsqueeze(0)
        if OUTPUT_GRADIENTS in self.needs and self._fits(place, "output gradients", "rows", rows.shape[3]):
            total = outer_products(rows)
            sums.output_gradients = total if sums.output_gradients is None else sums.output_gradients + total

    def _fits(self, place: Place, what: str, of: str, count: int) -> bool:
        if count <= self.most_columns:
            return True
        text = f"no {what}: {count} {of}, more than most_columns={self.most_columns}"
        self.notes[place.name, what] = Note(place.name, text)
        return False

    def consumers(self) -> tuple[Consumer, ...]:
        """In the order of first use."""
        return tuple(
            Consumer(place, s.bias, form, s.calls, s.moments, s.gram, s.output_gradients)
            for (place, form), s in self.sums.items()
        )


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version


def _columns(call: Call) -> int:
    return call.form.matrix(call.values).shape[2]


def _sum(before: _Sum | None, now: _Sum | None) -> _Sum | None:
    return before + now if before is not None and now is not None else now if before is None else before


def bytes_of(call: Call, needs: Collection[str], most_columns: int) -> int:
    """What the sums of a consumer hold at last."""
    groups, rows, columns = call.form.matrix(call.values).shape
    total = 4 * 8 * groups * columns if INPUT_MOMENTS in needs else 0
    total += 8 * groups * (columns + 1) ** 2 if GRAMS in needs and columns <= most_columns else 0
    total += 8 * groups * rows**2 if OUTPUT_GRADIENTS in needs and rows <= most_columns else 0
    return total
