"""Tensors that are not at work lie on disk: memory has a bound, results do not change by a bit.

An operator of torch is shown its tensors' storages before it runs: those that lie on disk are read back, and those that
have been idle for longest are written out to make room. A storage keeps its identity, so that views, ties and
whatever Python frame holds a tensor know nothing of it.
"""

import contextlib
import ctypes
import tempfile
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from secateur.errors import ArgumentError

Storage = torch.UntypedStorage


@dataclass(frozen=True)
class Offload:
    """Where tensors go that are not at work, and how much of them stays in memory.

    Args:
        folder: exists, on a disk with room for the model, its copy, and the calibration activations.
        memory_bytes: of tensors that stay in memory beside what the operator at work needs.
    """

    folder: str | Path
    memory_bytes: int = 2**28

    def __post_init__(self) -> None:
        if not Path(self.folder).is_dir() or self.memory_bytes < 0:
            raise ArgumentError(
                f"Offload({str(self.folder)!r}, memory_bytes={self.memory_bytes}): needed a folder that exists, and "
                "0 bytes or more"
            )


class _Slot:
    """A storage, and where its bytes are."""

    def __init__(self, storage: Storage, path: Path) -> None:
        self.storage, self.path = weakref.ref(storage), path
        self.size = storage.nbytes()
        self.is_here, self.is_written = True, False

    def write(self, storage: Storage) -> None:
        """To the file; memory is given back."""
        if not self.is_written:
            with _disable_current_modes():
                lying = storage.cpu()  # type: ignore[no-untyped-call]
            self.path.write_bytes((ctypes.c_char * self.size).from_address(lying.data_ptr()))
        storage.resize_(0)
        self.is_here, self.is_written = False, True

    def read(self, storage: Storage) -> None:
        """From the file."""
        storage.resize_(self.size)
        with _disable_current_modes():
            mapped = torch.from_file(str(self.path), size=self.size, dtype=torch.uint8)
            torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage).copy_(mapped)
        self.is_here = True


class Parking:
    """Storages of tensors that operators have seen, of which at most so many bytes are in memory.

    Args:
        folder: for the files; they go when the storages do.
        most: bytes that stay in memory beside what the operator at work needs.
    """

    def __init__(self, folder: Path, most: int) -> None:
        self.folder, self.most, self.here, self.count = folder, most, 0, 0
        self.slots: OrderedDict[int, _Slot] = OrderedDict()

    def admit(self, tensors: Iterable[Any]) -> None:
        """From now on these may be written out."""
        for key, storage in _storages(tensors).items():
            if key not in self.slots and storage.nbytes() and storage.resizable():
                self.count += 1
                slot = self.slots[key] = _Slot(storage, self.folder / f"{self.count}.bin")
                self.here += slot.size
                weakref.finalize(storage, self._forget, key, slot).atexit = False
        self._make_room(0, set())

    def fetch(self, tensors: Iterable[Any], *, to_change: bool = False) -> None:
        """Have these in memory, to read or to change them."""
        wanted = _storages(tensors)
        slots = {key: self.slots[key] for key in wanted if key in self.slots}
        self._make_room(sum(slot.size for slot in slots.values() if not slot.is_here), set(slots))
        for key, slot in slots.items():
            if not slot.is_here:
                storage = wanted[key]
                slot.read(storage)
                self.here += slot.size
            slot.is_written = slot.is_written and not to_change
            self.slots.move_to_end(key)

    def release(self, tensors: Iterable[Any]) -> None:
        """Leave these, which are in memory, where they are: somebody knows their address."""
        for key in _storages(tensors):
            if key in self.slots:
                self._forget(key, self.slots[key])

    def fetch_all(self) -> None:
        """Have everything in memory that is still alive."""
        for slot in list(self.slots.values()):
            storage = slot.storage()
            if storage is not None and not slot.is_here:
                slot.read(storage)
                self.here += slot.size

    def _make_room(self, room: int, busy: set[int]) -> None:
        for key, slot in list(self.slots.items()):
            if self.here + room <= self.most:
                return
            storage = slot.storage()
            if storage is None or not slot.is_here or key in busy:
                continue
            slot.write(storage)
            self.here -= slot.size

    def _forget(self, key: int, slot: _Slot) -> None:
        if self.slots.get(key) is slot:
            del self.slots[key]
            self.here -= slot.size if slot.is_here else 0
            slot.path.unlink(missing_ok=True)


@contextlib.contextmanager
def parking(offload: Offload | None) -> Iterator[Parking | None]:
    """Files in a folder of their own; everything is back in memory at the end.

    Operators of this thread find their tensors in memory; what they make stays there, unless they run in `watched`.
    Meanwhile nobody else may use the tensors concerned.

    >>> with tempfile.TemporaryDirectory() as folder, parking(Offload(folder, memory_bytes=4)) as held, watched(held):
    ...     a, b = torch.ones(1) * 2, torch.ones(1) * 3
    ...     lying = a.untyped_storage().nbytes()
    ...     total = (a + b).item()
    >>> lying, total, a.untyped_storage().nbytes()
    (0, 5.0, 4)
    """
    if offload is None:
        yield None
        return
    with tempfile.TemporaryDirectory(dir=offload.folder) as own:
        found = Parking(Path(own), offload.memory_bytes)
        try:
            with watched(found, admits=False):
                yield found
        finally:
            found.fetch_all()


@contextlib.contextmanager
def watched(held: Parking | None, *, admits: bool = True) -> Iterator[None]:
    """Meanwhile, all operators of this thread find their tensors in memory.

    Args:
        held: None: nothing is watched.
        admits: what they make may be written out from then on.
    """
    if held is None:
        yield
        return
    with _BeforePython(held), _BeforeOperators(held, admits=admits):
        yield


class _BeforeOperators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, held: Parking, *, admits: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.held, self.admits = held, admits

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        self.held.fetch(_leaves(args, named), to_change=func._schema.is_mutable)
        made = func(*args, **named)
        if self.admits:
            self.held.admit(_leaves(made))
        return made


COPIED = {Tensor.__deepcopy__, Tensor.tolist}
SHARED = {getattr(Tensor, name) for name in ("__array__", "__dlpack__", "__reduce_ex__", "data_ptr", "numpy")}


class _BeforePython(TorchFunctionMode):
    """What reads a tensor's memory without an operator of torch."""

    def __init__(self, held: Parking) -> None:
        super().__init__()
        self.held = held

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        if func not in COPIED and func not in SHARED:
            return func(*args, **named)
        with _disable_current_modes():
            self.held.fetch(_leaves(args))
            if func in SHARED:
                self.held.release(_leaves(args))
            return func(*args, **named)


def _leaves(*trees: Any) -> list[Any]:
    return pytree.tree_leaves(trees)


def _storages(tensors: Iterable[Any]) -> dict[int, Storage]:
    """Identity -> storage of the tensors that have one."""
    found = (t.untyped_storage() for t in tensors if isinstance(t, Tensor) and _has_memory(t))
    return {int(storage._cdata): storage for storage in found}


def _has_memory(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not tensor.is_meta
