"""Run directories and curve stores: resumed, locked, set aside, never lost."""

import logging
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from secateur.errors import StoreError
from secateur.storage.curve_store import CurveStore
from secateur.storage.run_directory import open_run


def test_points_survive_closing(tmp_path: Path) -> None:
    arrays = {"damage": np.array([[0.5, np.inf], [1.0, -2.0]]), "loss_damage": np.arange(3.0)}
    with CurveStore.open(tmp_path / "c.sqlite") as store:
        assert store.get("k") is None
        store.put("k", arrays, "a point")
    with CurveStore.open(tmp_path / "c.sqlite") as store:
        found = store.get("k")
        assert found is not None and store.count() == 1
        assert all(np.array_equal(found[name], array) for name, array in arrays.items())


def test_a_damaged_point_is_measured_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "c.sqlite"
    with CurveStore.open(path) as store:
        store.put("k", {"damage": np.ones(4)}, "a point")
    with sqlite3.connect(path) as raw:
        raw.execute("UPDATE points SET data = ?", (np.zeros(4).tobytes(),))
    raw.close()
    with caplog.at_level(logging.WARNING), CurveStore.open(path) as store:
        assert store.get("k") is None
    assert "measured again" in caplog.text


def test_a_damaged_file_is_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "c.sqlite"
    path.write_bytes(b"not a database at all" * 100)
    with caplog.at_level(logging.WARNING), CurveStore.open(path) as store:
        store.put("k", {"damage": np.ones(2)}, "a point")
        assert store.count() == 1
    assert (tmp_path / "c.sqlite.damaged-1").read_bytes().startswith(b"not a database")
    assert "set aside" in caplog.text


def test_points_survive_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    code = (
        "import sys, os, signal, numpy as np, pathlib\n"
        "from secateur.storage.curve_store import CurveStore\n"
        "with CurveStore.open(pathlib.Path(sys.argv[1])) as store:\n"
        "    for k in range(5): store.put(str(k), {'damage': np.full(9, float(k))}, 'p')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    with CurveStore.open(path) as store:
        assert store.count() == 5
        assert store.get("4")["damage"].tolist() == [4.0] * 9  # type: ignore[index]


def test_a_run_resumes_only_with_its_own_settings(tmp_path: Path) -> None:
    with open_run(tmp_path, {"seed": 0, "folds": (1, 2)}) as first:
        assert not first.resumed
    with open_run(tmp_path, {"seed": 0, "folds": [1, 2]}) as again:
        assert again.resumed
    with (
        pytest.raises(StoreError, match="a run with seed=0; this one has seed=1:"),
        open_run(tmp_path, {"seed": 1, "folds": [1, 2]}),
    ):
        pass


def test_two_runs_do_not_share_a_directory(tmp_path: Path) -> None:
    with open_run(tmp_path, {}), pytest.raises(StoreError, match="in use"), open_run(tmp_path, {}):
        pass


def test_a_damaged_settings_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(StoreError, match="damaged"), open_run(tmp_path, {}):
        pass


def test_a_full_disk_loses_no_point(tmp_path: Path) -> None:
    with CurveStore.open(tmp_path / "c.sqlite") as store:
        store.put("first", {"damage": np.ones(8)}, "a point")
        pages = store.connection.execute("PRAGMA page_count").fetchone()[0]
        store.connection.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(StoreError, match=r"cannot keep the point 'second'.*points kept before are safe"):
            store.put("second", {"damage": np.ones(100_000)}, "second")
        assert store.get("first") is not None and store.get("second") is None
