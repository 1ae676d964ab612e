"""How much memory is free: of the machine, and of a container that may have less."""

from pathlib import Path

import pytest

from secateur.sensitivity import memory
from secateur.sensitivity.memory import quarter_of_free_memory


def written(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def test_what_is_used_by_files_would_make_room(tmp_path: Path) -> None:
    two = written(
        tmp_path / "two", memory__max="100\n", memory__current="60\n", memory__stat="anon 7\ninactive_file 20\n"
    )
    assert memory._of_container(two) == [60]
    counts = "inactive_file 3\ntotal_inactive_file 5\n"
    written(tmp_path / "one" / "memory", memory__limit_in_bytes="50", memory__usage_in_bytes="40", memory__stat=counts)
    assert memory._of_container(tmp_path / "one") == [15]
    full = written(tmp_path / "full", memory__max="100", memory__current="130", memory__stat="inactive_file 0")
    assert memory._of_container(full) == [0]


def test_no_limit_is_no_limit(tmp_path: Path) -> None:
    assert memory._of_container(tmp_path) == []
    free = written(tmp_path / "free", memory__max="max\n", memory__current="60\n", memory__stat="inactive_file 20\n")
    assert memory._of_container(free) == []


def test_a_machine_says_what_is_available_rather_than_what_lies_idle(tmp_path: Path) -> None:
    proc = written(tmp_path / "proc", meminfo="MemTotal: 9 kB\nMemFree: 1 kB\nMemAvailable: 4 kB\n")
    assert memory._of_machine(proc) == [4096]
    # Other systems have no such file, and tell in pages, if at all.
    assert all(free > 0 for free in memory._of_machine(tmp_path))


def test_the_least_of_what_is_free_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_of_machine", lambda proc: [800])
    monkeypatch.setattr(memory, "_of_container", lambda groups: [400])
    assert quarter_of_free_memory() == 100
    monkeypatch.setattr(memory, "_of_container", lambda groups: [])
    assert quarter_of_free_memory() == 200
    monkeypatch.setattr(memory, "_of_machine", lambda proc: [])
    assert quarter_of_free_memory() == memory.FALLBACK_BYTES
