"""Points measured in other processes, bit for bit those of this one, also where processes die."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch

import killable
import saboteurs
from networks import Recurrent
from secateur.errors import ArgumentError, MissingExtraError, WorkerError
from secateur.graph.groups import find_groups
from secateur.graph.trace import trace
from secateur.sensitivity.dispatch import Dispatcher, Terms
from secateur.sensitivity.parcel import posted
from secateur.sensitivity.probe import Probe
from secateur.sensitivity.processes import ProcessExecutor
from secateur.sensitivity.racing import Racing
from secateur.sensitivity.ray_cluster import RayExecutor
from secateur.sensitivity.result import Scan
from secateur.sensitivity.scan import scan
from secateur.sensitivity.worker import packed_parts, probe_of
from secateur.storage.curve_store import CurveStore
from secateur.surgery.mask import mask
from secateur.surgery.plan import plan_widths

SPARSITIES = (0.3, 0.6)
AIM = 2, 1
"""The group, by number, and its level at which a sabotaged metric strikes."""


def setting():
    torch.manual_seed(0)
    model = Recurrent("LSTM", 2, True).double().eval()
    x = torch.randn(120, 6, 5).double()
    data = [(x[k : k + 40], model(x[k : k + 40]).detach().argmax(-1)) for k in range(0, 120, 40)]
    program = trace(model, (x[:2],))
    groups = find_groups(program)
    return program, groups, {g.name: torch.arange(float(g.size)) for g in groups}, data


class _EnoughError(Exception):
    """Workers are asked for."""


@dataclass(frozen=True)
class _Spy:
    """An executor that starts no workers, and remembers the probe that it was given."""

    probes: list[Probe]

    @contextmanager
    def start(self, prober: Probe, *, again: bool = False) -> Iterator[Dispatcher]:
        def muster() -> NoReturn:
            raise _EnoughError

        self.probes.append(prober)
        yield Dispatcher(prober, muster, Terms(2, 0, None, 1.0))


def same_curves(one: Scan, other: Scan, but: dict[str, int] | None = None) -> None:
    """Bit for bit; `but` names the level that is missing in some curves of `other`."""
    for name, curve in one.items():
        left = [level for level in range(len(curve.widths)) if level != (but or {}).get(name)]
        assert other[name].widths == tuple(curve.widths[level] for level in left)
        np.testing.assert_array_equal(curve.damage[left], other[name].damage)
        np.testing.assert_array_equal(curve.loss_damage[left], other[name].loss_damage)


def outputs_at_aim(job) -> torch.Tensor:
    program, groups, scores, data = job
    group = groups[AIM[0] % len(groups)]
    width = scan(*job, sparsities=SPARSITIES)[group.name].widths[AIM[1]]
    return mask(program.model, plan_widths(groups, scores, {group.name: width}), program=program)(data[1][0])


@pytest.mark.parametrize("racing", [None, Racing((0.2,), stage=30, bisect=True)])
def test_two_processes_give_what_one_gives(racing: Racing | None, tmp_path: Path) -> None:
    job = setting()
    one = scan(*job, sparsities=SPARSITIES, racing=racing)
    with CurveStore.open(tmp_path / "points") as store:
        two = scan(*job, sparsities=SPARSITIES, racing=racing, workers=2, store=store)
        again = scan(*job, sparsities=SPARSITIES, racing=racing, store=store)
    assert two.tally.measured == one.tally.measured > 0 == again.tally.measured
    assert two.tally.stopped == one.tally.stopped and two.tally.replayed == one.tally.replayed
    same_curves(one, two)
    same_curves(one, again)


def test_what_a_lost_process_was_measuring_is_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = setting()
    metric = {"metric": saboteurs.accuracy, "higher_is_better": True, "sparsities": SPARSITIES}
    one = scan(*job, **metric)
    strike = saboteurs.order("kill", outputs_at_aim(job), once=tmp_path / "was here")
    monkeypatch.setenv(saboteurs.VARIABLE, strike)
    two = scan(*job, **metric, workers=2)
    assert (tmp_path / "was here").exists() and not two.tally.unmeasured
    same_curves(one, two)


@pytest.mark.parametrize(
    ("how", "reason"), [("kill", "SIGKILL"), ("raise", "ValueError: sabotage"), ("hang", "said nothing for 6 s")]
)
def test_a_point_that_fails_again_and_again_is_named_and_all_others_are_kept(
    how: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = setting()
    metric = {"metric": saboteurs.accuracy, "higher_is_better": True, "sparsities": SPARSITIES}
    one = scan(*job, **metric)
    group = job[1][AIM[0] % len(job[1])].name
    monkeypatch.setenv(saboteurs.VARIABLE, saboteurs.order(how, outputs_at_aim(job)))
    with CurveStore.open(tmp_path / "points") as store:
        two = scan(*job, **metric, executor=ProcessExecutor(2, retries=1, silence_limit_s=6.0), store=store)
        monkeypatch.delenv(saboteurs.VARIABLE)
        later = scan(*job, **metric, store=store)
    (missing,) = two.tally.unmeasured
    assert (missing.group, missing.width, missing.attempts) == (group, one[group].widths[AIM[1]], 2)
    assert reason in missing.reason and str(missing) in str(two)
    same_curves(one, two, but={group: AIM[1]})
    # Some of the missing point was measured, and stored, before it struck.
    assert 0 < later.tally.measured <= 120
    same_curves(one, later)


def test_workers_read_weights_and_data_where_they_lie() -> None:
    program, groups, scores, data = setting()
    found: list[Probe] = []
    with pytest.raises(_EnoughError):
        scan(program, groups, scores, data, executor=_Spy(found))
    parcel = packed_parts(found[0])
    state = {t.untyped_storage().nbytes() for t in program.model.state_dict().values()}
    assert sum(map(len, parcel.memories)) >= sum(state) and len(parcel.body) < sum(map(len, parcel.memories)) + 20_000
    with posted(parcel) as mail:
        one, two = mail.open(), mail.open()
        prober = probe_of(one)
        (sent,) = {id(p.model) for p in (prober, prober.program)} - {id(program.model)}
        assert sent == id(one["the model"])
        with torch.no_grad():
            weight = next(one["the model"].parameters())
            weight.fill_(7.0)
    # Copied when written to: no other process sees it.
    assert torch.equal(next(two["the model"].parameters()), next(program.model.parameters()))
    assert next(prober.model.parameters()).data_ptr() == weight.data_ptr()


KILLED = """
import os, signal, sys
from pathlib import Path
from secateur.storage.curve_store import CurveStore
import killable

honest, calls = CurveStore.put, []

def put(*arguments):
    honest(*arguments)
    calls.append(1)
    if len(calls) == 3: os.kill(os.getpid(), signal.SIGKILL)  # after the baseline and two points

if __name__ == "__main__":
    CurveStore.put = put
    with CurveStore.open(Path(sys.argv[1])) as store:
        killable.scanned(store, workers=2)
"""


def test_a_killed_scan_by_workers_goes_on_and_leaves_no_process(tmp_path: Path) -> None:
    script, points = tmp_path / "killed.py", tmp_path / "points"
    script.write_text(KILLED)
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(path for path in sys.path if path), OMP_NUM_THREADS="1")
    # It ends when all that write to its pipes have ended: the workers too.
    done = subprocess.run(
        [sys.executable, script, points], env=environment, capture_output=True, timeout=200, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    whole = killable.scanned()
    with CurveStore.open(points) as store:
        resumed = killable.scanned(store)
    assert resumed.tally.stored >= 2 * killable.SAMPLES and resumed.tally.measured > 0
    assert resumed.tally.stored + resumed.tally.measured == whole.tally.measured
    same_curves(whole, resumed)


def test_nothing_is_started_where_nothing_is_to_be_measured(tmp_path: Path) -> None:
    job = setting()
    with CurveStore.open(tmp_path / "points") as store:
        scan(*job, sparsities=SPARSITIES, store=store)
        again = scan(*job, sparsities=SPARSITIES, store=store, executor=_Spy([]))
    assert again.tally.measured == 0 < again.tally.stored


class Share:
    """Of right answers, as torchmetrics would count them."""

    higher_is_better = True

    def reset(self) -> None:
        self.right: list[torch.Tensor] = []

    def update(self, scores: torch.Tensor, targets: torch.Tensor) -> None:
        self.right.append(scores.argmax(-1) == targets)

    def compute(self) -> torch.Tensor:
        return torch.cat(self.right).double().mean()


def test_objects_that_measure_can_be_sent() -> None:
    program, groups, scores, data = setting()
    found: list[Probe] = []
    with pytest.raises(_EnoughError):
        scan(
            program, groups, scores, data, metric=Share(), loss=torch.nn.CrossEntropyLoss(), executor=_Spy(found),
        )  # fmt: skip
    with posted(packed_parts(found[0])) as mail:
        prober = probe_of(mail.open())
    values = [prober.metric.function(prober.model(x), y) for x, y in data]
    np.testing.assert_array_equal(torch.cat(values), found[0].baseline.metric)
    losses = [prober.loss(prober.model(x), y).detach() for x, y in data]
    np.testing.assert_array_equal(torch.cat(losses), found[0].baseline.loss)


def test_what_cannot_be_sent_is_named() -> None:
    program, groups, scores, data = setting()
    with pytest.raises(ArgumentError, match="the metric cannot be sent"):
        scan(
            program, groups, scores, data, workers=2, higher_is_better=True,
            metric=lambda outputs, targets: torch.zeros(len(targets)),
        )  # fmt: skip
    with pytest.raises(ArgumentError, match="workers=0"):
        scan(program, groups, scores, data, workers=0)
    with pytest.raises(ArgumentError, match="say two things"):
        scan(program, groups, scores, data, workers=2, executor=ProcessExecutor(2))


def test_ray_is_asked_for_by_name_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'secateur\[ray\]'"):
        scan(*setting(), executor=RayExecutor())


def test_processes_that_cannot_make_ready_are_no_endless_wait() -> None:
    program, groups, scores, data = setting()
    with pytest.raises(WorkerError, match="could not make ready: ValueError: sent"):
        scan(program, groups, scores, saboteurs.Unopenable(data), workers=2)
