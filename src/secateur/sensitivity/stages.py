"""Validation data in stages: as it comes, or in a fixed random order under a bound on memory."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils import _pytree as pytree

from secateur.data import Batch, Batches

Samples = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Stage:
    """Samples that are measured together.

    Attributes:
        samples: their positions in the validation data.
        batches: the same samples, in the same order.
    """

    samples: Samples
    batches: tuple[Batch, ...]


def as_it_comes(data: Batches) -> Iterator[Stage]:
    """One stage for each batch of the source.

    >>> [stage.samples.tolist() for stage in as_it_comes(Batches([(torch.zeros(2, 1), torch.zeros(2))] * 2))]
    [[0, 1], [2, 3]]
    """
    start = 0
    for batch in data:
        yield Stage(np.arange(start, start + batch.size), (batch,))
        start += batch.size


def drawn(data: Batches, order: Samples, size: int, memory_bytes: int) -> Iterator[Stage]:
    """Stages of `size` samples, taken from `order` in turn; within a stage positions ascend.

    The source is read as often as needed to hold no more than `memory_bytes` of it, at least one stage.

    >>> source = Batches([(torch.arange(6.0), torch.zeros(6))])
    >>> [stage.samples.tolist() for stage in drawn(source, np.array([5, 0, 3, 1, 2, 4]), 4, 0)]
    [[0, 1, 3, 5], [2, 4]]
    """
    parts = [np.sort(order[start : start + size]) for start in range(0, len(order), size)]
    done = 0
    while done < len(parts):
        held: list[list[Batch]] = []
        start = 0
        for batch in data:
            if not held:
                each = max(1, _bytes(batch) // batch.size)
                held = [[] for _ in parts[done : done + max(1, memory_bytes // (each * size))]]
            for pieces, part in zip(held, parts[done:], strict=False):
                rows = part[np.searchsorted(part, start) : np.searchsorted(part, start + batch.size)] - start
                if len(rows):
                    pieces.append(batch.take(torch.from_numpy(rows)))
            start += batch.size
        for number, pieces in enumerate(held):
            yield Stage(parts[done + number], tuple(_joined(pieces)))
            held[number] = []
        done += len(held)


def _bytes(batch: Batch) -> int:
    leaves = pytree.tree_leaves((batch.args, batch.kwargs, batch.targets))
    return sum(leaf.numel() * leaf.element_size() for leaf in leaves if isinstance(leaf, Tensor))


def _joined(pieces: Sequence[Batch]) -> list[Batch]:
    """One batch where the pieces differ in nothing but their samples; else the pieces."""
    flat = [pytree.tree_flatten((piece.args, piece.kwargs, piece.targets)) for piece in pieces]
    columns = list(zip(*(leaves for leaves, _ in flat), strict=False))
    sizes = [piece.size for piece in pieces]
    if any(layout != flat[0][1] for _, layout in flat) or not all(_is_joinable(column, sizes) for column in columns):
        return list(pieces)
    leaves = [torch.cat(column) if _is_batched(column, sizes) else column[0] for column in columns]
    return [Batch(*pytree.tree_unflatten(leaves, flat[0][1]))]


def _is_joinable(column: Sequence[Any], sizes: Sequence[int]) -> bool:
    return _is_batched(column, sizes) or all(_is_same(leaf, column[0]) for leaf in column)


def _is_batched(column: Sequence[Any], sizes: Sequence[int]) -> bool:
    return all(
        isinstance(leaf, Tensor)
        and leaf.shape[:1] == (size,)
        and (leaf.shape[1:], leaf.dtype) == (column[0].shape[1:], column[0].dtype)
        for leaf, size in zip(column, sizes, strict=True)
    )


def _is_same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    return type(a) is type(b) and not isinstance(a, Tensor) and bool(a == b)
