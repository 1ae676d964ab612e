"""Run directories and curve stores: resumed, locked, set aside, never lost."""

import hashlib
import logging
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from secateur.errors import StoreError
from secateur.storage.curve_store import CurveStore
from secateur.storage.database import _set_aside
from secateur.storage.run_directory import open_run


def _killed(path: Path, puts: str) -> None:
    """Run lines of Python on an open store, in a process that then gets SIGKILL."""
    code = (
        "import sys, os, signal, numpy as np, pathlib\n"
        "from secateur.storage.curve_store import CurveStore\n"
        f"with CurveStore.open(pathlib.Path(sys.argv[1])) as store:\n{puts}"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == -signal.SIGKILL


def test_points_survive_closing(tmp_path: Path) -> None:
    arrays = {"damage": np.array([[0.5, np.inf], [1.0, -2.0]]), "loss_damage": np.arange(3.0)}
    with CurveStore.open(tmp_path / "c.sqlite") as store:
        assert store.get("k") is None
        store.put("k", arrays, "a point")
    with CurveStore.open(tmp_path / "c.sqlite") as store:
        found = store.get("k")
        assert found is not None and store.count() == 1
        assert all(np.array_equal(found[name], array) for name, array in arrays.items())


@pytest.mark.parametrize(("column", "value"), [("data", np.zeros(4).tobytes()), ("shapes", '{"damage": [2, 2]}')])
def test_a_damaged_point_is_measured_again(
    column: str, value: object, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "c.sqlite"
    with CurveStore.open(path) as store:
        store.put("k", {"damage": np.ones(4)}, "a point")
    with sqlite3.connect(path) as raw:
        raw.execute(f"UPDATE points SET {column} = ?", (value,))
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


PAGE = 4096
KEYS = [hashlib.sha256(bytes([k])).hexdigest() for k in range(60)]


def _zeroed(raw: bytes, *pages: int) -> bytes:
    return b"".join(bytes(PAGE) if k // PAGE in pages else raw[k : k + PAGE] for k in range(0, len(raw), PAGE))


def _leaves(raw: bytes) -> list[int]:
    # Leaf pages of an index begin with 10; https://www.sqlite.org/fileformat2.html.
    return [k for k in range(1, len(raw) // PAGE) if raw[k * PAGE] == 10]


def _header(raw: bytes, start: int, value: bytes) -> bytes:
    return raw[:start] + value + raw[start + len(value) :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "a leaf": lambda raw: _zeroed(raw, _leaves(raw)[3]),
    "the root": lambda raw: _zeroed(raw, 1),
    "data of a row in the root": lambda raw: _zeroed(raw, int.from_bytes(raw[2 * PAGE - 4 : 2 * PAGE]) - 1),
    "cut in half": lambda raw: raw[: len(raw) // 2],
    "page sizes": lambda raw: _header(raw, 16, b"\0\3"),
    "two leaves": lambda raw: _zeroed(raw, *_leaves(raw)[3:5]),
    "data": lambda raw: _zeroed(raw, len(raw) // PAGE // 2, len(raw) // PAGE // 2 + 1),
    "cut by a page": lambda raw: raw[:-PAGE],
    "cut within a page": lambda raw: raw[: -PAGE - 7],
    "told too long": lambda raw: _header(raw, 28, b"\xff\xff\xff\xff"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_each_point_of_which_no_byte_is_gone_is_taken_over(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "c.sqlite"
    with CurveStore.open(path) as store:
        for k, key in enumerate(KEYS):
            store.put(key, {"damage": np.full(1500, k + 1 / 3)}, f"block {k}")
        digests = dict(store.connection.execute("SELECT key, sha256 FROM points"))
    whole = path.read_bytes()
    raw = DAMAGES[damage](whole)
    path.write_bytes(raw)

    parts = {k: (np.float64(k + 1 / 3).tobytes(), key.encode(), digests[key].encode()) for k, key in enumerate(KEYS)}
    intact = {k for k, own in parts.items() if all(raw.count(part) == whole.count(part) for part in own)}
    assert (10 if "half" in damage else 40) <= len(intact) <= len(KEYS)

    with caplog.at_level(logging.WARNING), CurveStore.open(path) as store:
        found = {k: arrays for k, key in enumerate(KEYS) if (arrays := store.get(key)) is not None}
        assert store.count() == len(found)
        labels = dict(store.connection.execute("SELECT key, label FROM points"))
    assert found.keys() == intact and f"with the {len(found)} entries" in caplog.text
    assert all((arrays["damage"] == k + 1 / 3).all() and len(arrays["damage"]) == 1500 for k, arrays in found.items())
    assert labels == {KEYS[k]: f"block {k}" for k in found}
    assert (tmp_path / "c.sqlite.damaged-1").read_bytes() == raw
    assert {file.name for file in tmp_path.iterdir()} == {"c.sqlite", "c.sqlite.damaged-1"}


def test_what_was_replaced_does_not_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, rows = tmp_path / "c.sqlite", []
    with CurveStore.open(path) as store:
        for known in (2, 4):
            store.put("k", {"damage": np.where(np.arange(5) < known, 7.0, np.nan)}, "a point")
            rows += store.connection.execute("SELECT * FROM points").fetchall()
    path.write_bytes(b"not a database at all" * 100)
    # Free pages, with what was replaced on them, may stand behind those in use.
    monkeypatch.setattr("secateur.storage.curve_store.salvaged", lambda raw: rows[::-1])
    with CurveStore.open(path) as store:
        np.testing.assert_array_equal(store.get("k")["damage"], [7, 7, 7, 7, np.nan])  # type: ignore[index]


def test_points_that_stand_in_the_log_only_are_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    with CurveStore.open(path) as store:
        for key in KEYS[:-1]:
            store.put(key, {"damage": np.ones(1500)}, "a point")
    raw = path.read_bytes()
    # While another has it open, the log is not written back when a connection closes.
    with CurveStore.open(path) as other:
        other.put(KEYS[-1], {"damage": np.ones(9)}, "the last")
        path.write_bytes(_zeroed(raw, len(raw) // PAGE // 2))
        with CurveStore.open(path) as store:
            assert store.get(KEYS[-1]) is not None and 40 <= store.count() < len(KEYS)
    assert KEYS[-1].encode() not in raw


def test_a_point_is_not_lost_with_its_label(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    with CurveStore.open(path) as store:
        for key in KEYS:
            store.put(key, {"damage": np.ones(1500)}, "a point")
    raw = _zeroed(path.read_bytes().replace(b"a point", b"\xff point"), _leaves(path.read_bytes())[0])
    path.write_bytes(raw)
    with CurveStore.open(path) as store:
        assert store.count() >= 40


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"cannot open .*none/c.sqlite.*in a folder that exists"):
        CurveStore.open(str(tmp_path / "none" / "c.sqlite")).__enter__()


def test_a_damaged_file_stays_where_it_is_if_there_is_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "c.sqlite"
    path.write_bytes(b"not a database at all" * 100)
    monkeypatch.setattr(shutil, "copyfile", full)
    with (
        pytest.raises(StoreError, match=r"c.sqlite is damaged .*No space left.*left as it is; free space"),
        CurveStore.open(path),
    ):
        pass
    assert [file.name for file in tmp_path.iterdir()] == ["c.sqlite"]


def test_a_file_is_set_aside_with_its_log(tmp_path: Path) -> None:
    # The log stays where another process has the file open.
    for name in ("c.sqlite", "c.sqlite-wal", "c.sqlite-shm", "c.sqlite.damaged-1"):
        (tmp_path / name).write_text(name)
    aside = _set_aside(tmp_path / "c.sqlite")
    assert aside == tmp_path / "c.sqlite.damaged-2"
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "c.sqlite.damaged-1": "c.sqlite.damaged-1", "c.sqlite.damaged-2": "c.sqlite",
        "c.sqlite.damaged-2-wal": "c.sqlite-wal", "c.sqlite.damaged-2-shm": "c.sqlite-shm",
    }  # fmt: skip


def test_what_another_process_measured_meanwhile_stays(tmp_path: Path) -> None:
    nan = np.nan
    with CurveStore.open(tmp_path / "c.sqlite") as one, CurveStore.open(tmp_path / "c.sqlite") as two:
        one.put("k", {"damage": np.array([1.0, 2.0, nan, nan])}, "p")
        two.put("k", {"damage": np.array([nan, 2.0, 3.0, nan])}, "p")
        np.testing.assert_array_equal(one.get("k")["damage"], [1.0, 2.0, 3.0, nan])  # type: ignore[index]
        two.put("k", {"damage": np.zeros(3)}, "other data")
        assert one.get("k")["damage"].tolist() == [0.0, 0.0, 0.0]  # type: ignore[index]


def test_two_processes_write_to_one_store(tmp_path: Path) -> None:
    code = (
        "import sys, numpy as np, pathlib\n"
        "from secateur.storage.curve_store import CurveStore\n"
        "own = int(sys.argv[2])\n"
        "with CurveStore.open(pathlib.Path(sys.argv[1])) as store:\n"
        "    for k in range(30):\n"
        "        store.put(f'{own}-{k}', {'damage': np.full(2000, k + own / 2)}, 'own')\n"
        "        both = np.full(60, np.nan); both[2 * k + own] = k\n"
        "        store.put('both', {'damage': both}, 'of both')\n"
    )
    path = str(tmp_path / "c.sqlite")
    started = [subprocess.Popen([sys.executable, "-c", code, path, str(own)]) for own in (0, 1)]
    assert [process.wait() for process in started] == [0, 0]
    with CurveStore.open(tmp_path / "c.sqlite") as store:
        assert store.count() == 61
        assert store.get("1-7")["damage"].tolist() == [7.5] * 2000  # type: ignore[index]
        assert store.get("both")["damage"].tolist() == [k for k in range(30) for _ in (0, 1)]  # type: ignore[index]


def test_points_survive_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    _killed(path, "    for k in range(5): store.put(str(k), {'damage': np.full(9, float(k))}, 'p')\n")
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
