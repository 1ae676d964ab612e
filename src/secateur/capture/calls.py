"""One use of a weight as a linear map, about to be made."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from secateur.capture.forms import Form
from secateur.types import Slice


@dataclass(frozen=True)
class Place:
    """Which rows (positions along dimension 0) of which parameter an operator was given.

    Attributes:
        name: canonical name.
        start: first row.
        stop: one past the last row.
    """

    name: str
    start: int
    stop: int


class Run(Protocol):
    """Does what an operator does."""

    def __call__(self, inputs: Tensor = ...) -> Tensor:
        """With these inputs, or the call's own."""


@dataclass(frozen=True, eq=False)
class Call:
    """A weight, what it is about to be multiplied with, and how to do it.

    Attributes:
        weight: where it lies.
        bias: where the bias lies; None where there is none, or it is no parameter.
        inputs: as the operator was given them.
        values: of the weight, as the operator was given them: a view of the parameter.
        offset: values of the bias, (rows,); None without one.
        form: how inputs, outputs and weight look as matrices.
        run: does what the operator does, with the values that the parameters have then, and with the inputs
            that it is given, or those above.
    """

    weight: Place
    bias: Place | None
    inputs: Tensor
    values: Tensor
    offset: Tensor | None
    form: Form
    run: Run

    def design(self, positions: Tensor | None = None) -> Tensor:
        """Inputs as columns: (samples, positions, groups, columns)."""
        return self.form.design(self.inputs.detach(), positions)

    def matrix(self) -> Tensor:
        """The weight as (groups, rows, columns)."""
        return self.form.matrix(self.values.detach())


NONE = -1


def column_units(form: Form, place: Place, s: Slice, shape: tuple[int, ...]) -> Tensor | None:
    """Which unit of the slice's group each column of a use of its parameter belongs to; `NONE` where to none.

    Args:
        form: how the parameter is used.
        place: which rows of it.
        s: positions along one dimension of the parameter.
        shape: of the parameter.

    Returns:
        int64 (groups, columns); None where the rows of a column differ, as they do if the slice lies along
        rows, or holds other columns in each row.
    """
    table = form.matrix(_labels(s, shape)[place.start : place.stop])
    return table[:, 0] if bool((table == table[:, :1]).all()) else None


def row_units(form: Form, place: Place, s: Slice, shape: tuple[int, ...]) -> Tensor | None:
    """Which unit each row belongs to: int64 (groups, rows); None where the columns of a row differ."""
    table = form.matrix(_labels(s, shape)[place.start : place.stop])
    return table[:, :, 0] if bool((table == table[:, :, :1]).all()) else None


def _labels(s: Slice, shape: tuple[int, ...]) -> Tensor:
    """The unit of each element of a parameter."""
    labels = torch.full(shape, NONE)
    for unit in range(len(s.index)):
        where: list[slice | Tensor] = [slice(None)] * len(shape)
        where[s.dim] = s.index[unit]
        if s.within is None:
            labels[tuple(where)] = s.first + unit
        else:
            beside, rows = s.within
            block = labels.movedim((beside, s.dim), (0, 1))
            block[rows[unit].unsqueeze(1), s.index[unit].unsqueeze(0)] = s.first + unit
    return labels


Visit = Callable[[Call], Tensor]
