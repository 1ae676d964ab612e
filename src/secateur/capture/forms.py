"""How operators use a weight as a linear map: their inputs, outputs and weight as plain matrices.

Every form shows an operator as `groups` independent products: outputs (rows) = matrix (rows, columns) times
inputs (columns), at each position of each sample. Linear layers have one group, grouped convolutions and
banks of experts several.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional


class Form(Protocol):
    """One kind of linear map."""

    def samples(self, inputs: Tensor) -> int:
        """How many samples can be told apart."""

    def positions(self, inputs: Tensor) -> int:
        """Positions of each sample."""

    def design(self, inputs: Tensor, positions: Tensor | None = None) -> Tensor:
        """Inputs as columns: (samples, positions, groups, columns).

        Args:
            inputs: what the operator was given.
            positions: int64; only these positions of every sample. None: all of them.
        """

    def responses(self, outputs: Tensor, positions: Tensor | None = None) -> Tensor:
        """Outputs as rows: (samples, positions, groups, rows)."""

    def matrix(self, weight: Tensor) -> Tensor:
        """The weight as (groups, rows, columns)."""

    def weight(self, matrix: Tensor, shape: Sequence[int]) -> Tensor:
        """The weight of this shape that `matrix` shows."""


def _chosen(table: Tensor, positions: Tensor | None) -> Tensor:
    return table if positions is None else table[:, positions.to(table.device)]


@dataclass(frozen=True)
class Dense:
    """Outputs = inputs times weight, over the last dimension.

    Args:
        transposed: the weight holds (columns, rows), as in `inputs @ weight`; else (rows, columns), as in
            `linear(inputs, weight)`.

    >>> Dense().design(torch.ones(2, 5, 3)).shape
    torch.Size([2, 5, 1, 3])
    """

    transposed: bool = False

    def samples(self, inputs: Tensor) -> int:
        """The first dimension."""
        return len(inputs) if inputs.ndim > 1 else 1

    def positions(self, inputs: Tensor) -> int:
        """All dimensions between the first and the last."""
        return inputs.shape[1:-1].numel() if inputs.ndim > 1 else 1

    def design(self, inputs: Tensor, positions: Tensor | None = None) -> Tensor:
        """(samples, positions, 1, columns)."""
        table = inputs.reshape(1, -1) if inputs.ndim == 1 else inputs
        return _chosen(table.reshape(len(table), -1, 1, table.shape[-1]), positions)

    def responses(self, outputs: Tensor, positions: Tensor | None = None) -> Tensor:
        """(samples, positions, 1, rows)."""
        return self.design(outputs, positions)

    def matrix(self, weight: Tensor) -> Tensor:
        """(1, rows, columns)."""
        return (weight.T if self.transposed else weight).unsqueeze(0)

    def weight(self, matrix: Tensor, shape: Sequence[int]) -> Tensor:
        """(rows, columns), or the other way round."""
        return (matrix[0].T if self.transposed else matrix[0]).reshape(tuple(shape))


@dataclass(frozen=True)
class Bank:
    """A batched product of inputs (groups, positions, columns) with a weight (groups, columns, rows): experts.

    The samples cannot be told apart in its inputs: all its positions count as of one sample.
    """

    def samples(self, inputs: Tensor) -> int:
        """One."""
        return 1

    def positions(self, inputs: Tensor) -> int:
        """Those of all samples."""
        return inputs.shape[1]

    def design(self, inputs: Tensor, positions: Tensor | None = None) -> Tensor:
        """(1, positions, groups, columns)."""
        return _chosen(inputs.movedim(0, 1).unsqueeze(0), positions)

    def responses(self, outputs: Tensor, positions: Tensor | None = None) -> Tensor:
        """(1, positions, groups, rows)."""
        return self.design(outputs, positions)

    def matrix(self, weight: Tensor) -> Tensor:
        """(groups, rows, columns)."""
        return weight.transpose(1, 2)

    def weight(self, matrix: Tensor, shape: Sequence[int]) -> Tensor:
        """(groups, columns, rows)."""
        return matrix.transpose(1, 2).reshape(tuple(shape))


@dataclass(frozen=True)
class Convolution:
    """A convolution of any number of dimensions; a column is one tap of one input channel.

    Args:
        kernel: taps in each dimension.
        stride: likewise.
        before: zeros put before the input in each dimension.
        after: zeros put after it.
        dilation: likewise.
        groups: independent convolutions.

    >>> form = Convolution((3,), (1,), (1,), (1,), (1,))
    >>> form.design(torch.tensor([[[1.0, 2.0]]]))[0, :, 0].tolist()
    [[0.0, 1.0, 2.0], [1.0, 2.0, 0.0]]
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1

    def samples(self, inputs: Tensor) -> int:
        """The first dimension, where there is one for samples."""
        return len(inputs) if inputs.ndim == len(self.kernel) + 2 else 1

    def positions(self, inputs: Tensor) -> int:
        """Positions of the outputs in space."""
        return self.count(inputs.shape[-len(self.kernel) :])

    def count(self, space: Sequence[int]) -> int:
        """Positions of the outputs for inputs of this size in space."""
        return math.prod(self.count_along(d, n) for d, n in enumerate(space))

    def count_along(self, dim: int, size: int) -> int:
        """Positions along one dimension of space."""
        reach = self.dilation[dim] * (self.kernel[dim] - 1)
        return (size + self.before[dim] + self.after[dim] - reach - 1) // self.stride[dim] + 1

    def design(self, inputs: Tensor, positions: Tensor | None = None) -> Tensor:
        """(samples, positions, groups, channels of a group times taps)."""
        rank = len(self.kernel)
        table = inputs if inputs.ndim == rank + 2 else inputs.unsqueeze(0)
        # functional.pad counts the dimensions from the last to the first.
        around = itertools.chain.from_iterable(reversed(list(zip(self.before, self.after, strict=True))))
        table = functional.pad(table, list(around))
        width = table.shape[1] // self.groups * math.prod(self.kernel)
        if positions is None:
            # Laid out with the positions last, as they lie in the input: copying is several times faster.
            seen = self._windows(table)
            taps = seen.movedim(tuple(range(2 + rank, 2 + 2 * rank)), tuple(range(2, 2 + rank)))
            columns = taps.reshape(len(table), self.groups, width, math.prod(seen.shape[2 : 2 + rank]))
            return columns.movedim(3, 1)
        # What an operator sees is read off numbers; only what is seen at the positions is then gathered.
        flat = table.flatten(2)
        numbers = torch.arange(flat.shape[2], device=table.device).reshape(1, 1, *table.shape[2:])
        chosen = self._windows(numbers).reshape(-1, math.prod(self.kernel))[positions.to(table.device)]
        found = flat.gather(2, chosen.flatten().expand(*flat.shape[:2], -1))
        each = found.reshape(*flat.shape[:2], *chosen.shape).transpose(1, 2)
        return each.reshape(len(flat), len(chosen), self.groups, width)

    def _windows(self, table: Tensor) -> Tensor:
        """What each position sees of a padded input: (samples, channels, positions..., taps...)."""
        for d in range(len(self.kernel)):
            reach = self.dilation[d] * (self.kernel[d] - 1) + 1
            table = table.unfold(2 + d, reach, self.stride[d])[..., :: self.dilation[d]]
        return table

    def responses(self, outputs: Tensor, positions: Tensor | None = None) -> Tensor:
        """(samples, positions, groups, rows of a group)."""
        table = outputs if outputs.ndim == len(self.kernel) + 2 else outputs.unsqueeze(0)
        rows = table.flatten(2).transpose(1, 2)
        return _chosen(rows.reshape(len(rows), rows.shape[1], self.groups, -1), positions)

    def matrix(self, weight: Tensor) -> Tensor:
        """(groups, rows of a group, channels of a group times taps)."""
        return weight.reshape(self.groups, len(weight) // self.groups, -1)

    def weight(self, matrix: Tensor, shape: Sequence[int]) -> Tensor:
        """(output channels, channels of a group, taps...)."""
        return matrix.reshape(tuple(shape))


@dataclass(frozen=True)
class TransposedConvolution:
    """A transposed convolution, seen as a convolution of its inputs with zeros between them.

    Args:
        kernel: taps in each dimension.
        stride: one more than the zeros between inputs, in each dimension.
        before: zeros put before the input in each dimension; negative: inputs left out.
        after: likewise, after it.
        dilation: of the taps.
        groups: independent convolutions.

    >>> form = TransposedConvolution((2,), (2,), (1,), (1,), (1,))
    >>> form.design(torch.tensor([[[1.0, 2.0]]]))[0, :, 0].tolist()
    [[0.0, 1.0], [1.0, 0.0], [0.0, 2.0], [2.0, 0.0]]
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1

    def samples(self, inputs: Tensor) -> int:
        """The first dimension, where there is one for samples."""
        return self._plain().samples(inputs)

    def positions(self, inputs: Tensor) -> int:
        """Positions of the outputs in space."""
        space = inputs.shape[-len(self.kernel) :]
        return self._plain().count([s * (n - 1) + 1 for n, s in zip(space, self.stride, strict=True)])

    def design(self, inputs: Tensor, positions: Tensor | None = None) -> Tensor:
        """(samples, positions, groups, channels of a group times taps)."""
        rank = len(self.kernel)
        space = inputs.shape[-rank:]
        apart = inputs.new_zeros(
            *inputs.shape[:-rank], *(s * (n - 1) + 1 for n, s in zip(space, self.stride, strict=True))
        )
        every: list[slice] = [slice(None)] * (inputs.ndim - rank) + [slice(None, None, s) for s in self.stride]
        apart[tuple(every)] = inputs
        return self._plain().design(apart, positions)

    def responses(self, outputs: Tensor, positions: Tensor | None = None) -> Tensor:
        """(samples, positions, groups, rows of a group)."""
        return self._plain().responses(outputs, positions)

    def matrix(self, weight: Tensor) -> Tensor:
        """(groups, rows of a group, channels of a group times taps)."""
        each = weight.reshape(self.groups, len(weight) // self.groups, weight.shape[1], -1)
        return each.flip(3).transpose(1, 2).flatten(2)

    def weight(self, matrix: Tensor, shape: Sequence[int]) -> Tensor:
        """(input channels, output channels of a group, taps...)."""
        each = matrix.reshape(self.groups, shape[1], shape[0] // self.groups, -1)
        return each.transpose(1, 2).flip(3).reshape(tuple(shape))

    def _plain(self) -> Convolution:
        ones = (1,) * len(self.kernel)
        return Convolution(self.kernel, ones, self.before, self.after, self.dilation, self.groups)
