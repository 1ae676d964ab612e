"""How much memory is free."""

import os
from pathlib import Path

import torch

FALLBACK_BYTES = 2**28
"""A quarter of what is taken to be free where the system does not tell."""

CONTROL_GROUPS = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    (
        "memory/memory.limit_in_bytes",
        "memory/memory.usage_in_bytes",
        "memory/memory.stat",
        "total_inactive_file",
    ),
)
"""A container's limit, what it uses, and what of this is files that would make room: versions 2 and 1."""


def quarter_of_free_memory(device: torch.device | None = None) -> int:
    """A quarter of the bytes that are free now on a device; of this machine, or container, by default."""
    if device is not None and device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) // 4
    free = [*_of_machine(Path("/proc")), *_of_container(Path("/sys/fs/cgroup"))]
    return min(free) // 4 if free else FALLBACK_BYTES


def _of_machine(proc: Path) -> list[int]:
    try:
        return [_named(proc / "meminfo", "MemAvailable:") * 1024]
    except (OSError, ValueError):
        pass
    try:
        return [os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    except (ValueError, OSError, AttributeError):
        return []


def _of_container(groups: Path) -> list[int]:
    """What a container may still take, by each kind of control group that sets a limit."""
    found = []
    for limit, used, counts, files in CONTROL_GROUPS:
        try:
            held = int((groups / used).read_text()) - _named(groups / counts, files)
            found.append(max(int((groups / limit).read_text()) - held, 0))
        # There is no such file, or the limit is "max", which is none.
        except (OSError, ValueError):
            continue
    return found


def _named(path: Path, name: str) -> int:
    """The number that follows a name in a file.

    Raises:
        ValueError: there is none.
    """
    for line in path.read_text().splitlines():
        first, *rest = line.split()
        if first == name:
            return int(rest[0])
    raise ValueError(f"{path} has no {name}")
