"""Which outputs of the dense model's weight are left in the cut one."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from secateur.capture.calls import NONE, Place
from secateur.capture.forms import Form
from secateur.surgery.tensors import Marked, gather


def kept_rows(
    dense: tuple[Form, Place], small: tuple[Form, Place], shape: tuple[int, ...], marks: Iterable[Marked]
) -> Tensor | None:
    """For each row of the cut weight's matrix, the row of the dense one's that it was.

    Args:
        dense: how the dense model uses the weight, and which rows of it.
        small: likewise, the cut model.
        shape: of the dense parameter.
        marks: what was removed of it.

    Returns:
        int64 (groups, rows), counted over all groups of the dense matrix; None where the two do not fit
        together: rows of one use went to another.

    >>> from secateur.capture.forms import Dense
    >>> gone = [((0,), torch.tensor([False, True, False]))]
    >>> kept_rows((Dense(), Place("w", 0, 3)), (Dense(), Place("w", 0, 2)), (3, 4), gone)
    tensor([[0, 2]])
    """
    form, place = dense
    labels = torch.full(shape, NONE)
    part = labels[place.start : place.stop]
    matrix = form.matrix(part)
    numbers = torch.arange(matrix.shape[0] * matrix.shape[1]).reshape(*matrix.shape[:2], 1).expand(matrix.shape)
    labels[place.start : place.stop] = form.weight(numbers.contiguous(), part.shape)
    left = small[0].matrix(gather(labels, marks)[small[1].start : small[1].stop])
    rows = left[:, :, 0] if left.shape[2] else left.new_full(left.shape[:2], NONE)
    is_sound = bool((left == rows.unsqueeze(2)).all()) and bool((rows != NONE).all())
    return rows if is_sound else None


def kept_columns(shape: Sequence[int], marks: Iterable[Marked]) -> Tensor:
    """For each column of a cut matrix, the column that it was.

    >>> kept_columns((2, 3), [((1,), torch.tensor([True, False, False]))])
    tensor([1, 2])
    """
    return gather(torch.arange(shape[1]).expand(tuple(shape)), marks)[0]
