"""Files are whole or not there, whatever happens in between."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from secateur.errors import StoreError
from secateur.storage import atomic


def test_round_trip_and_permissions(tmp_path: Path) -> None:
    target = tmp_path / "new" / "file"
    atomic.write_bytes(target, b"one")
    atomic.write_bytes(target, b"two")
    assert target.read_bytes() == b"two"
    mask = os.umask(0)
    os.umask(mask)
    assert target.stat().st_mode & 0o777 == 0o666 & ~mask
    assert [p.name for p in target.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    target = tmp_path / "file"
    atomic.write_bytes(target, b"old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(StoreError, match=r"file: No space left on device.*nothing was overwritten"):
        atomic.write_bytes(target, b"new")
    monkeypatch.undo()
    assert target.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_kill_leaves_the_old_file(tmp_path: Path, step: str) -> None:
    target = tmp_path / "file"
    atomic.write_bytes(target, b"old")
    code = (
        "import os, signal, pathlib, sys\n"
        "from secateur.storage import atomic\n"
        f"os.{step} = lambda *a: os.kill(os.getpid(), signal.SIGKILL)\n"
        "atomic.write_bytes(pathlib.Path(sys.argv[1]), b'new')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(target)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert target.read_bytes() == b"old"


def test_json_refuses_nan(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="finite"):
        atomic.write_json(tmp_path / "x.json", {"a": float("nan")})
    assert not (tmp_path / "x.json").exists()


def test_safetensors_keep_values_of_views(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    value = torch.arange(6.0).reshape(2, 3).T
    atomic.write_safetensors(tmp_path / "t", {"a": value})
    assert torch.equal(load_file(tmp_path / "t")["a"], value)
