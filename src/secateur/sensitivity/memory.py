"""How much memory is free."""

import os
from pathlib import Path

import torch

FALLBACK_BYTES = 2**28
"""A quarter of what is taken to be free where the system does not tell."""

CONTAINER_FILES = (
    ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory.current"),
    ("sys/fs/cgroup/memory/memory.limit_in_bytes", "sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
"""Limit and use of a container's memory: version 2 and version 1 of control groups."""


def quarter_of_free_memory(device: torch.device | None = None) -> int:
    """A quarter of the bytes that are free now on a device; of this machine by default."""
    if device is not None and device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) // 4
    free = [*_of_machine(), *_of_container(Path("/"))]
    return min(free) // 4 if free else FALLBACK_BYTES


def _of_machine() -> list[int]:
    try:
        return [os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    except (ValueError, OSError, AttributeError):
        return []


def _of_container(root: Path) -> list[int]:
    """What a container may still take, by each kind of control group that sets a limit."""
    found = []
    for limit, used in CONTAINER_FILES:
        try:
            found.append(max(int((root / limit).read_text()) - int((root / used).read_text()), 0))
        # No such file, or "max", which is no limit.
        except (OSError, ValueError):
            continue
    return found
