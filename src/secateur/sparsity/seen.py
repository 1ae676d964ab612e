"""What the calibration data tells of one use of a weight: moments of its inputs, and what its outputs should be."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.capture.calls import Call
from secateur.capture.gram import Gram, gram_of, some_positions, with_constant

ELEMENTS = 2**21
"""Of unfolded inputs that are held at once: what fits a processor's cache is several times faster."""

HELD_EVERY = 4
"""Every so many samples one is held out."""

ROWS_PER_COLUMN = 1000
"""Positions that are drawn for each column of a matrix, if there are more. Of independent ones a fifth would do (the
fit's excess error is one in as many), but those of one image are much alike."""


@dataclass(frozen=True, eq=False)
class Wanted:
    """Sums over positions of what the outputs should be, without the bias.

    Attributes:
        cross: outputs times inputs, the last of which is a constant 1: float64 (groups, rows, columns + 1).
        energy: squares of the outputs.
    """

    cross: Tensor
    energy: float


@dataclass(frozen=True, eq=False)
class Sums:
    """Sums over positions; those of two parts of the data add up.

    Attributes:
        gram: of the inputs.
        wanted: outputs; None: those that the dense weight makes of the same inputs.
    """

    gram: Gram
    wanted: Wanted | None = None

    def __add__(self, other: "Sums") -> "Sums":
        wanted = self.wanted
        if wanted is not None and other.wanted is not None:
            wanted = Wanted(wanted.cross + other.wanted.cross, wanted.energy + other.wanted.energy)
        return Sums(self.gram + other.gram, wanted)


@dataclass(frozen=True, eq=False)
class Seen:
    """Samples to fit on, and every fourth one, held out to judge by."""

    fit: Sums
    held: Sums

    def __add__(self, other: "Seen") -> "Seen":
        return Seen(self.fit + other.fit, self.held + other.held)

    def judged(self) -> Sums:
        """The held-out samples; those of the fit where there are no others."""
        return self.held if self.held.gram.positions else self.fit


def seen_calls(calls: Sequence[Call], targets: Sequence[Call] | None = None, *, first: int = 0) -> Seen:
    """Inputs of one call on all batches, at some positions of each batch, the same for all its samples.

    Args:
        calls: one for each batch.
        targets: the same calls in the dense model, whose outputs are wanted; None: those of its own inputs.
        first: number of the first sample.
    """
    generator = torch.Generator().manual_seed(0)
    samples = sum(len(call.inputs) for call in calls)
    most = -(-ROWS_PER_COLUMN * calls[0].form.matrix(calls[0].values).shape[2] // samples)
    found: Seen | None = None
    for number, call in enumerate(calls):
        positions = some_positions(call, most, generator)
        target = None if targets is None else _outputs(targets[number], positions)
        done = 0
        for design in _designs(call, positions):
            part = None if target is None else target[done : done + len(design)]
            now = seen_rows(design, first + done, part)
            done += len(design)
            found = now if found is None else found + now
        first += done
    assert found is not None
    return found


def _outputs(call: Call, positions: Tensor | None) -> Tensor:
    """What a call gives, without its bias: (samples, positions, groups, rows)."""
    rows = call.form.responses(call.run().detach(), positions)
    return rows if call.offset is None else rows - call.offset.reshape(rows.shape[2:])


def _designs(call: Call, positions: Tensor | None) -> Iterator[Tensor]:
    """The call's inputs as columns, few samples at a time."""
    inputs = call.inputs.detach()
    each = call.form.design(inputs[:1], positions)
    # A bank of experts, a bare vector or an image without a batch has no samples along its first dimension.
    if inputs.ndim < 2 or len(each) != 1 or len(call.form.design(inputs[:2], positions)) != min(2, len(inputs)):
        yield call.design(positions)
        return
    for part in torch.split(inputs, max(1, ELEMENTS // max(each.numel(), 1))):
        yield call.form.design(part, positions)


def seen_rows(design: Tensor, first: int, targets: Tensor | None = None) -> Seen:
    """Inputs as columns (samples, positions, groups, columns), of which the first sample is number `first`.

    Where there is one sample only, positions are held out instead.
    """
    if len(design) == 1 and first == 0 and design.shape[1] > HELD_EVERY:
        design = design.transpose(0, 1)
        targets = None if targets is None else targets.transpose(0, 1)
    held = (first + torch.arange(len(design), device=design.device)) % HELD_EVERY == HELD_EVERY - 1
    return Seen(_sums(design, targets, ~held), _sums(design, targets, held))


def _sums(design: Tensor, targets: Tensor | None, chosen: Tensor) -> Sums:
    inputs = design[chosen]
    if targets is None:
        return Sums(gram_of(inputs))
    x = with_constant(inputs)
    y = targets[chosen].flatten(0, 1).transpose(0, 1).to(x.dtype)
    return Sums(gram_of(inputs), Wanted((y.transpose(1, 2) @ x).double().cpu(), float(y.double().square().sum())))
