"""Objects for other processes, taken apart: what each gets a copy of, and the memory of tensors, which all share."""

import contextlib
import io
import mmap
import pickle
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.storage import TypedStorage

from secateur.errors import StoreError

Memory = NDArray[np.uint8]

ALIGNMENT = 64
"""Bytes; torch aligns its own memory so, and products may be summed in another order where it differs."""


@dataclass(frozen=True, eq=False)
class Parcel:
    """An object in parts.

    Attributes:
        body: all but the memory of its tensors.
        memories: that of each storage on the CPU; tensors that shared one share it again.
    """

    body: bytes
    memories: tuple[Memory, ...]


def pack(value: Any, pickler: type[pickle.Pickler] = pickle.Pickler) -> Parcel:
    """Take an object apart; the memories are its own, not copies.

    >>> weight = torch.arange(3.0)
    >>> parcel = pack({"a": weight, "the same": weight[1:]})
    >>> len(parcel.memories), unpack(parcel)["the same"].tolist()
    (1, [1.0, 2.0])
    """
    memories: dict[int, Memory] = {}
    places: dict[int, int] = {}

    def persistent_id(part: Any) -> tuple[int, torch.dtype] | None:
        if not isinstance(part, TypedStorage) or part._untyped_storage.device.type != "cpu":
            return None
        storage = part._untyped_storage
        place = places.setdefault(storage._cdata, len(places))
        if place not in memories:
            memories[place] = torch.empty(0, dtype=torch.uint8).set_(storage).numpy()
        return place, part.dtype

    body = io.BytesIO()
    writer = pickler(body, protocol=5)
    writer.persistent_id = persistent_id  # type: ignore[method-assign]
    writer.dump(value)
    return Parcel(body.getvalue(), tuple(memories.values()))


def unpack(parcel: Parcel) -> Any:
    """The object; its tensors lie in the memories of the parcel."""

    def persistent_load(found: tuple[int, torch.dtype]) -> TypedStorage:
        place, dtype = found
        return TypedStorage(wrap_storage=storages[place], dtype=dtype, _internal=True)  # type: ignore[no-untyped-call]

    storages = [_storage(memory) for memory in parcel.memories]
    reader = pickle.Unpickler(io.BytesIO(parcel.body))
    reader.persistent_load = persistent_load  # type: ignore[method-assign]
    return reader.load()


@dataclass(frozen=True)
class Mail:
    """A parcel whose memories lie in a file.

    Attributes:
        body: that of the parcel.
        path: of the file.
        places: first and last byte of each memory.
    """

    body: bytes
    path: Path
    places: tuple[tuple[int, int], ...]

    def open(self) -> Any:
        """The object; its tensors lie in pages of the file that all processes share until one writes to a page."""
        size = self.path.stat().st_size
        with self.path.open("rb") as file:
            mapped = np.frombuffer(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY), dtype=np.uint8)
        return unpack(Parcel(self.body, tuple(mapped[start:stop] for start, stop in self.places)))


@contextlib.contextmanager
def posted(parcel: Parcel) -> Iterator[Mail]:
    """The parcel, with its memories in a temporary file.

    A file, as the memory that containers may share by name is often 64 MB, and going beyond ends the process.

    Raises:
        StoreError: the file cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix="secateur-", ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "tensors"
        try:
            places = _write(path, parcel.memories)
        except OSError as error:
            raise StoreError(
                f"cannot write the tensors that worker processes share to {folder}: {error.strerror}; free space there "
                "or set TMPDIR to another directory"
            ) from error
        yield Mail(parcel.body, path, places)


def _write(path: Path, memories: Sequence[Memory]) -> tuple[tuple[int, int], ...]:
    places = []
    with path.open("wb") as file:
        for memory in memories:
            file.write(bytes(-file.tell() % ALIGNMENT))
            start = file.tell()
            file.write(memory.data)
            places.append((start, file.tell()))
        # A file without a byte cannot be mapped.
        file.write(bytes(1))
    return tuple(places)


def _storage(memory: Memory) -> torch.UntypedStorage:
    if not len(memory):
        return torch.empty(0).untyped_storage()
    with warnings.catch_warnings():
        # That the memory may not be written to: the model is not changed.
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(memory).untyped_storage()
