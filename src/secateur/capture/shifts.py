"""Gram matrices of convolutions without laying their inputs out as columns.

Two taps of a convolution of stride 1 see the same image, one of them shifted. Summed over all positions at which any
tap sees anything, their product depends on the shift alone, and of shifts there are far fewer than pairs of taps:
25 for a 3x3 kernel, half of them by symmetry, instead of 81. Positions around the outputs, which that counts
too, are taken off again: there only some taps see anything.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from secateur.capture.forms import Convolution, Form

BLOCK = 16384
"""Positions in one product."""

MOST_AROUND = 4
"""So many times the positions of the outputs may be summed over: what is taken off again costs digits."""


def is_cheaper(form: Form, inputs: Tensor, positions: int) -> bool:
    """Whether all positions by shifts cost less than so many of them, of each sample, laid out as columns."""
    if not isinstance(form, Convolution) or form.groups != 1 or any(step != 1 for step in form.stride):
        return False
    if inputs.ndim != len(form.kernel) + 2 or not inputs.numel():
        return False
    space = inputs.shape[2:]
    everywhere = math.prod(_apart(form, space))
    around = [slab for slab in _around(form, space) if slab.form.count(slab.space)]
    cost = everywhere * (len(_shifts(form)) + 1) / 2
    cost += sum(slab.form.count(slab.space) * math.prod(slab.form.kernel) ** 2 for slab in around)
    is_sound = everywhere <= MOST_AROUND * form.count(space)
    return is_sound and cost < positions * math.prod(form.kernel) ** 2


def gram_by_shifts(form: Convolution, inputs: Tensor) -> Tensor:
    """Sums over all positions of products of input columns: float64 (columns, columns), in their order.

    Args:
        form: of stride 1 and a single group.
        inputs: (samples, channels, ...).

    >>> form = Convolution((2,), (1,), (0,), (0,), (1,))
    >>> gram_by_shifts(form, torch.tensor([[[1.0, 2.0, 3.0]]])).tolist()
    [[5.0, 8.0], [8.0, 13.0]]
    """
    channels, space = inputs.shape[1], inputs.shape[2:]
    taps = math.prod(form.kernel)
    total = _everywhere(form, inputs).reshape(channels, taps, channels, taps)
    for slab in _around(form, space):
        design = slab.form.design(slab.of(inputs)).flatten(0, 1).squeeze(1)
        outside = _blocked(design, design).reshape(channels, len(slab.taps), channels, len(slab.taps))
        here = torch.tensor(slab.taps, device=inputs.device)
        total[:, here.unsqueeze(1), :, here] -= outside.permute(1, 3, 0, 2)
    found = total.reshape(channels * taps, channels * taps)
    return (found + found.T) / 2


def _blocked(a: Tensor, b: Tensor) -> Tensor:
    """Sums over rows of a times b, in the precision of the data, blocks of rows added up in float64."""
    total = a.new_zeros(a.shape[1], b.shape[1], dtype=torch.float64)
    for x, y in zip(torch.split(a, BLOCK), torch.split(b, BLOCK), strict=True):
        total += (x.T @ y).double()
    return total


def _apart(form: Convolution, space: Sequence[int]) -> list[int]:
    """Size of an image with as many zeros behind it, in each dimension, as a shift may be long."""
    return [n + d * (k - 1) for n, d, k in zip(space, form.dilation, form.kernel, strict=True)]


def _shifts(form: Convolution) -> list[tuple[int, ...]]:
    """From any tap to any other, counted in taps; those of one sign come first."""
    every = list(itertools.product(*(range(1 - k, k) for k in form.kernel)))
    # In the order of `product` they are symmetric about the middle.
    return every[len(every) // 2 :] + every[: len(every) // 2]


def _everywhere(form: Convolution, inputs: Tensor) -> Tensor:
    """Sums over all positions at which any tap sees anything: float64 (channels, taps, channels, taps)."""
    size = _apart(form, inputs.shape[2:])
    behind = [(0, s - n) for s, n in zip(size, inputs.shape[2:], strict=True)]
    # One line for each channel. A shift beyond the end of an image lands among the zeros between two.
    lines = functional.pad(inputs.transpose(0, 1), [*itertools.chain.from_iterable(reversed(behind))]).flatten(1)
    step = [math.prod(size[i + 1 :]) for i in range(len(size))]
    every = _shifts(form)
    forwards = every[: len(every) // 2 + 1]
    along = [sum(e * d * s for e, d, s in zip(shift, form.dilation, step, strict=True)) for shift in forwards]
    channels, stop = len(lines), lines.shape[1] - along[-1]
    total = lines.new_zeros(len(forwards), channels, channels, dtype=torch.float64)
    # Shifts along the last dimension alone lie equally far apart: one batch of products, which threads share.
    runs = [len(list(run)) for _, run in itertools.groupby(forwards, key=lambda shift: shift[:-1])]
    # What is left out at the end is the zeros behind the last image.
    for start in range(0, stop, BLOCK):
        here = lines[:, start : min(start + BLOCK, stop)]
        first = 0
        for count in runs:
            shape, strides = (count, here.shape[1], channels), (form.dilation[-1], 1, lines.stride(0))
            moved = lines.as_strided(shape, strides, lines.storage_offset() + start + along[first])
            total[first : first + count] += (here @ moved).double()
            first += count
    # The other half is the same the other way round, in reverse.
    both = torch.cat([total, total[1:].flip(0).transpose(1, 2)])
    number = {shift: k for k, shift in enumerate(every)}
    taps = list(itertools.product(*(range(k) for k in form.kernel)))
    pairs = [[number[tuple(y - x for x, y in zip(a, b, strict=True))] for b in taps] for a in taps]
    return both[torch.tensor(pairs, device=both.device)].permute(2, 0, 3, 1)


@dataclass(frozen=True)
class _Slab:
    """Positions with one coordinate outside the outputs, and the convolution that gives what is seen there.

    Attributes:
        dim: of the coordinate, in space.
        rows: of the inputs along it that are seen, (first, one past the last, step).
        space: size of those inputs.
        form: of the taps that see them.
        taps: numbers of these.
    """

    dim: int
    rows: tuple[int, int, int]
    space: tuple[int, ...]
    form: Convolution
    taps: tuple[int, ...]

    def of(self, inputs: Tensor) -> Tensor:
        """What is seen."""
        every = [slice(None)] * inputs.ndim
        every[self.dim + 2] = slice(*self.rows)
        return inputs[tuple(every)]


def _around(form: Convolution, space: Sequence[int]) -> Iterator[_Slab]:
    """All positions at which some tap sees something, but for those of the outputs, each once."""
    rank = len(form.kernel)
    outputs = [form.count_along(d, space[d]) for d in range(rank)]
    for dim in range(rank):
        n, k, step, before = space[dim], form.kernel[dim], form.dilation[dim], form.before[dim]
        for place in range(before - step * (k - 1), before + n):
            seen = [t for t in range(k) if 0 <= place + step * t - before < n]
            if 0 <= place < outputs[dim] or not seen:
                continue
            first = place + step * seen[0] - before
            wide = [step * (k - 1) for k, step in zip(form.kernel, form.dilation, strict=True)]
            kernel = (*form.kernel[:dim], len(seen), *form.kernel[dim + 1 :])
            # Earlier coordinates lie within the outputs, later ones anywhere.
            sub = Convolution(
                kernel,
                (1,) * rank,
                (*form.before[:dim], 0, *wide[dim + 1 :]),
                (*form.after[:dim], 0, *wide[dim + 1 :]),
                (*form.dilation[:dim], 1, *form.dilation[dim + 1 :]),
            )
            taps = [
                t for t, at in enumerate(itertools.product(*(range(k) for k in form.kernel))) if at[dim] in set(seen)
            ]
            size = (*space[:dim], len(seen), *space[dim + 1 :])
            yield _Slab(dim, (first, place + step * seen[-1] - before + 1, step), size, sub, tuple(taps))
