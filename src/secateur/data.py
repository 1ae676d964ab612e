"""Batches of any common shape, turned into arguments and targets of the model.

A data source is anything that can be iterated more than once and gives batches whose tensors have
the samples along their first dimension. A batch is

- a tuple or list: the last element holds the targets, the others are positional arguments;
- a mapping: one of the keys `labels`, `label`, `targets`, `target` holds the targets, the others are
  keyword arguments;
- a tensor: the only argument, no targets;
- anything else, with `batch_fn(batch) -> (args, kwargs, targets)` to take it apart.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from secateur.describe import content_hash
from secateur.errors import DataError

TARGET_KEYS = ("labels", "label", "targets", "target")

BatchFn = Callable[[Any], tuple[tuple[Any, ...], dict[str, Any], Any]]


@dataclass(frozen=True, eq=False)
class Batch:
    """What one call of the model takes, and what its outputs are compared with."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    targets: Any

    @property
    def size(self) -> int:
        """Number of samples: the first dimension of the first tensor argument."""
        for leaf in pytree.tree_leaves((self.args, self.kwargs)):
            if isinstance(leaf, Tensor) and leaf.ndim > 0:
                return int(leaf.shape[0])
        raise DataError(
            "a batch holds no tensor argument, so its samples cannot be counted; "
            "pass batch_fn=lambda batch: (args, kwargs, targets)"
        )

    def take(self, rows: Tensor) -> "Batch":
        """The samples `rows` (int64 positions) of this batch."""
        size = self.size

        def pick(leaf: Any) -> Any:
            is_batched = isinstance(leaf, Tensor) and leaf.ndim > 0 and leaf.shape[0] == size
            return leaf[rows] if is_batched else leaf

        args, kwargs, targets = pytree.tree_map(pick, (self.args, self.kwargs, self.targets))
        return Batch(args, kwargs, targets)


@dataclass(frozen=True, eq=False)
class Batches:
    """A data source seen as `Batch` objects; checked while it is read.

    >>> source = Batches([(torch.zeros(3, 2), torch.tensor([0, 1, 1]))], name="validation")
    >>> [batch.size for batch in source], source.count()
    ([3], 3)
    """

    source: Iterable[Any]
    name: str = "data"
    batch_fn: BatchFn | None = None

    def __post_init__(self) -> None:
        if isinstance(self.source, Iterator):
            raise DataError(
                f"{self.name} is a one-shot iterator ({type(self.source).__name__}); it is read more "
                "than once: pass a list of batches, a DataLoader, or an object whose __iter__ starts anew"
            )

    def __iter__(self) -> Iterator[Batch]:
        empty = True
        for number, raw in enumerate(self.source):
            batch = taken_apart(raw, self.name, self.batch_fn) if self.batch_fn else split_batch(raw, self.name)
            _check_finite(batch, self.name, number)
            if batch.size == 0:
                continue
            empty = False
            yield batch
        if empty:
            raise DataError(
                f"{self.name} is empty: it gave no samples; pass at least one batch, in a source that starts anew each "
                "time it is read"
            )

    def length(self) -> int:
        """Number of batches in one pass: what the source says of itself, or by counting."""
        try:
            return len(self.source)  # type: ignore[arg-type]
        except TypeError:
            return sum(1 for _ in self)

    def count(self) -> int:
        """Number of samples in one pass."""
        return sum(batch.size for batch in self)


def taken_apart(raw: Any, name: str, batch_fn: BatchFn) -> Batch:
    """A raw batch as the user's function takes it apart.

    Raises:
        DataError: it gave something else than (args, kwargs, targets).
    """
    found: Any = batch_fn(raw)
    if isinstance(found, tuple | list) and len(found) == 3:
        args, kwargs, targets = found
        if isinstance(args, tuple | list) and isinstance(kwargs, Mapping):
            return Batch(tuple(args), dict(kwargs), targets)
    kinds = ", ".join(type(part).__name__ for part in found) if isinstance(found, tuple) else type(found).__name__
    raise DataError(
        f"batch_fn gave ({kinds}) for a batch of {name}; needed (args, kwargs, targets): positional arguments, a dict "
        "of named ones, and targets or None, as in batch_fn=lambda b: ((b['x'],), {}, b['y'])"
    )


def split_batch(raw: Any, name: str) -> Batch:
    """Take a raw batch apart by the conventions at the head of this file."""
    if isinstance(raw, Tensor):
        return Batch((raw,), {}, None)
    if isinstance(raw, Mapping):
        key = next((k for k in TARGET_KEYS if k in raw), None)
        kwargs = {k: v for k, v in raw.items() if k != key}
        return Batch((), kwargs, raw[key] if key else None)
    if isinstance(raw, tuple | list) and len(raw) > 1:
        return Batch(tuple(raw[:-1]), {}, raw[-1])
    if isinstance(raw, tuple | list) and len(raw) == 1:
        return Batch(tuple(raw), {}, None)
    raise DataError(
        f"{name} gave a batch of type {type(raw).__name__}; needed a tensor, a tuple (inputs..., targets) "
        "or a mapping; pass batch_fn=lambda batch: (args, kwargs, targets)"
    )


def as_batches(source: Any, name: str, batch_fn: BatchFn | None = None) -> Batches:
    """`source` as `Batches`; one that is already is returned as it is."""
    if isinstance(source, Batches):
        return source
    if not isinstance(source, Iterable):
        raise DataError(f"{name} is a {type(source).__name__}; needed an iterable of batches, such as a DataLoader")
    return Batches(source, name, batch_fn)


def check_repeats(data: Batches) -> None:
    """Read the first batch twice: samples are compared one by one, which needs the same ones in the same order.

    Raises:
        DataError: they differ.

    >>> check_repeats(Batches([torch.zeros(2)]))
    """
    one, two = (
        content_hash([batch.args, batch.kwargs, batch.targets]) for batch in (next(iter(data)), next(iter(data)))
    )
    if one != two:
        raise DataError(
            f"{data.name} gives another first batch each time it is read, so samples cannot be compared one by one: "
            "pass a loader that neither shuffles nor augments, or list(loader)"
        )


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The same batch with its tensors on `device`."""

    def move(leaf: Any) -> Any:
        return leaf.to(device) if isinstance(leaf, Tensor) else leaf

    return Batch(*pytree.tree_map(move, (batch.args, batch.kwargs, batch.targets)))


def _check_finite(batch: Batch, name: str, number: int) -> None:
    for leaf in pytree.tree_leaves((batch.args, batch.kwargs, batch.targets)):
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and not bool(leaf.isfinite().all()):
            raise DataError(
                f"{name}, batch {number}: a tensor of shape {tuple(leaf.shape)} holds NaN or infinity; "
                "clean the data, or drop the samples concerned"
            )
