"""What is measured on after a race: the same in all executors, goes on when it is killed, ends, and is shown."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import killable
import saboteurs
from secateur.errors import ArgumentError
from secateur.progress import Advance
from secateur.sensitivity.executor import Executor, SerialExecutor
from secateur.sensitivity.processes import ProcessExecutor
from secateur.sensitivity.result import Scan
from secateur.sensitivity.scan import scan
from secateur.storage.curve_store import CurveStore
from secateur.surgery.mask import mask
from secateur.surgery.plan import plan_widths

SAMPLES, STAGE = 970, killable.Contending.racing.stage


@pytest.fixture(scope="module")
def raced() -> Scan:
    return scan(*killable.job(SAMPLES, gain=3.0), sparsities=killable.SPARSITIES, racing=killable.Contending.racing)


@pytest.fixture(scope="module")
def deepened() -> Scan:
    return killable.deepened()


def seen_by(found: Scan) -> dict[tuple[str, int], int]:
    return {
        (name, width): int(seen)
        for name, curve in found.items()
        for width, seen in zip(curve.widths[1:], curve.seen()[1:], strict=True)
    }


def agree(one: Scan, other: Scan) -> None:
    """Bit for bit, where both know something."""
    for name, curve in one.items():
        for level, width in enumerate(curve.widths):
            if width in other[name].widths:
                theirs = other[name].loss_damage[other[name].widths.index(width)]
                both = ~np.isnan(theirs) & ~np.isnan(curve.loss_damage[level])
                assert both.sum() >= STAGE
                np.testing.assert_array_equal(theirs[both], curve.loss_damage[level][both])


@dataclass(eq=False)
class _Shown:
    """Stages as they are shown: name, total, steps, notes."""

    stages: list[tuple[str, int | None, list[int], list[str]]] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str, total: int | None) -> Iterator[Advance]:
        steps: list[int] = []
        notes: list[str] = []
        self.stages.append((name, total, steps, notes))

        def advance(more: int = 1, note: str = "") -> None:
            steps.append(more)
            notes.append(note)

        yield advance


@pytest.mark.parametrize("executor", [SerialExecutor(), ProcessExecutor(2)])
def test_every_executor_gives_the_same_curves_and_shows_each_round(
    executor: Executor, raced: Scan, deepened: Scan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("secateur.sensitivity.deepening.SECONDS_BETWEEN_COUNTS", 0.0)
    shown, asks = _Shown(), []
    found = killable.deepened(executor=executor, progress=shown, then=asks.append)
    for name, curve in deepened.items():
        assert found[name].widths == curve.widths
        np.testing.assert_array_equal(found[name].damage, curve.damage)
        np.testing.assert_array_equal(found[name].loss_damage, curve.loss_damage)
    assert found.tally.measured == deepened.tally.measured == sum(seen_by(found).values())
    assert found.tally.stopped == deepened.tally.stopped == sum(SAMPLES - n for n in seen_by(found).values())
    first, *rounds = shown.stages
    assert first[0] == "sensitivity" and sum(first[2]) == first[1] == 18 * SAMPLES
    assert first[3][-1].startswith("18 of 18 points")
    assert len(rounds) == asks[0].rounds - 1 > 3
    assert {name for name, *_ in rounds} == {"sensitivity, deepened"}
    for number, (_, total, steps, notes) in enumerate(rounds, start=1):
        assert sum(steps) == total > 0 and min(steps) >= 0
        assert notes[-1].startswith(f"round {number}, ")
    assert sum(total for _, total, *_ in rounds) == found.tally.measured - raced.tally.measured
    # It moves within a round.
    assert any(0 < step < total for _, total, steps, _ in rounds for step in steps)


KILLED = """
import os, signal, sys
from pathlib import Path
from secateur.sensitivity.processes import ProcessExecutor
from secateur.storage.curve_store import CurveStore
import killable

honest, asks, calls = CurveStore.put, [], []

def put(*arguments):
    honest(*arguments)
    if asks and asks[0].rounds > 3:
        calls.append(1)
        if len(calls) == 2: os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    CurveStore.put = put
    with CurveStore.open(Path(sys.argv[1])) as store:
        options = {"executor": ProcessExecutor(2)} if sys.argv[2] == "2" else {}
        killable.deepened(store, then=asks.append, **options)
"""


@pytest.mark.parametrize("workers", ["1", "2"])
def test_one_that_was_killed_goes_on_and_measures_nothing_again(
    workers: str, tmp_path: Path, raced: Scan, deepened: Scan
) -> None:
    script, points = tmp_path / "killed.py", tmp_path / "points"
    script.write_text(KILLED)
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(path for path in sys.path if path), OMP_NUM_THREADS="1")
    done = subprocess.run(
        [sys.executable, script, points, workers], env=environment, capture_output=True, timeout=200, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    asks: list[killable.Contending] = []
    with CurveStore.open(points) as store:
        resumed = killable.deepened(store, then=asks.append)
        again = killable.deepened(store)
    assert raced.tally.measured < resumed.tally.stored < deepened.tally.measured
    assert resumed.tally.measured == sum(seen_by(resumed).values()) - resumed.tally.stored > 0
    assert all(seen_by(resumed)[place] >= before for place, before in seen_by(raced).items())
    assert not asks[0].asks(resumed) and again.tally.measured == 0
    agree(resumed, deepened)


@pytest.mark.parametrize("executor", [SerialExecutor(), ProcessExecutor(2, retries=1)])
def test_a_point_that_fails_is_named_and_left_out_and_the_others_go_on(
    executor: Executor,
    raced: Scan,
    deepened: Scan,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    program, groups, scores, data = killable.job(SAMPLES, gain=3.0)
    before = seen_by(raced)
    aim = next(place for place, seen in seen_by(deepened).items() if seen == SAMPLES > before[place])
    order = killable.Contending.racing.order(SAMPLES)
    later = np.sort(order[before[aim] : before[aim] + STAGE])
    model = mask(program.model, plan_widths(groups, scores, dict([aim])), program=program)
    outputs = model(torch.cat([x for x, _ in data])[later])
    monkeypatch.setenv(saboteurs.VARIABLE, saboteurs.order("raise", outputs))
    asks: list[killable.Contending] = []
    found = killable.deepened(executor=executor, then=asks.append, metric=saboteurs.accuracy, higher_is_better=True)
    (missing,) = found.tally.unmeasured
    assert (missing.group, missing.width) == aim and missing.reason.endswith("ValueError: sabotage")
    assert missing.attempts == (1 if executor == SerialExecutor() else 2)
    assert aim[1] not in found[aim[0]].widths and str(missing) in str(found)
    assert str(missing) in caplog.text
    assert set(seen_by(found)) == set(before) - {aim} and not asks[0].asks(found)
    assert sum(seen_by(found).values()) > raced.tally.measured
    # What was known of the point counts as measured, and as nothing that the race spared.
    assert found.tally.measured == sum(seen_by(found).values()) + before[aim]
    assert found.tally.stopped == sum(SAMPLES - seen for seen in seen_by(found).values())
    agree(found, deepened)


def test_more_samples_than_there_are_is_all_of_them(raced: Scan) -> None:
    (place, *_) = [place for place, seen in seen_by(raced).items() if seen < SAMPLES]
    found = scan(
        *killable.job(SAMPLES, gain=3.0), sparsities=killable.SPARSITIES, racing=killable.Contending.racing,
        deepen=lambda curves: {place: 10**9},
    )  # fmt: skip
    assert seen_by(found) == {**seen_by(raced), place: SAMPLES}


def test_what_is_no_answer_is_refused() -> None:
    answer: Any = None
    with pytest.raises(ArgumentError, match=r"deepen= gave None; needed \{\(group name, width\): samples\}"):
        scan(*killable.job(), racing=killable.Contending.racing, deepen=lambda curves: answer)
