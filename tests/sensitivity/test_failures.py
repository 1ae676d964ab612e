"""Points that cannot be measured: named, left out, never taken for harmless, and told from errors of all points."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import saboteurs
import secateur as sc
from secateur.errors import ArgumentError, MetricError, WorkerError
from secateur.graph.groups import find_groups
from secateur.graph.trace import trace
from secateur.progress import Advance
from secateur.sensitivity import dispatch
from secateur.sensitivity.activation_cache import ActivationCache
from secateur.sensitivity.dispatch import Dispatcher, Terms
from secateur.sensitivity.executor import Executor, SerialExecutor
from secateur.sensitivity.measure import Board, Point, Tally, Unmeasured
from secateur.sensitivity.probe import Probe
from secateur.sensitivity.racing import Racing
from secateur.sensitivity.result import Scan
from secateur.sensitivity.scan import scan
from secateur.sensitivity.silence import FIRST_LIMIT_S, Silences
from secateur.sensitivity.worker import Done, Message, Ready, Task, work
from secateur.storage.curve_store import CurveStore
from secateur.surgery.mask import mask
from secateur.surgery.plan import Plan, plan_widths
from secateur.types import Evaluation, Status

SPARSITIES = (0.3, 0.5, 0.8)
METRIC = {"metric": saboteurs.accuracy, "higher_is_better": True, "sparsities": SPARSITIES}
Aim = tuple[str, int]


def setting():
    torch.manual_seed(0)
    layers = [layer for _ in range(5) for layer in (nn.Linear(12, 12), nn.Tanh())]
    model = nn.Sequential(*layers, nn.Linear(12, 4)).double().eval()
    x = torch.randn(60, 12).double()
    data = [(x[k : k + 20], model(x[k : k + 20]).detach().argmax(-1)) for k in range(0, 60, 20)]
    program = trace(model, (x[:2],))
    groups = find_groups(program)
    return program, groups, {g.name: torch.arange(float(g.size)) for g in groups}, data


@dataclass(eq=False)
class _Crew:
    """Workers that measure in this process, or say nothing where a task has the point `hangs`; a clock of their own."""

    prober: Probe
    hangs: Aim | None = None
    now_s: float = 0.0
    tasks: list[Task] = field(default_factory=list)
    ended: list[int] = field(default_factory=list)
    messages: deque[tuple[int, Message]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.cache = ActivationCache(self.prober, 2**20)
        self.messages.extend((worker, Ready()) for worker in range(2))

    def give(self, worker: int, task: Task) -> None:
        self.tasks.append(task)
        if self.hangs not in [(known.group, known.width) for known in task.points]:
            tally = work(self.prober, self.cache, task, lambda message: self.messages.append((worker, message)))
            self.messages.append((worker, Done(tally)))

    def hear(self, within_s: float) -> tuple[int, Message] | None:
        if self.messages:
            self.now_s += 0.01
            return self.messages.popleft()
        self.now_s += within_s
        return None

    def end(self, worker: int) -> None:
        self.ended.append(worker)
        self.messages.append((worker, Ready()))

    def absence(self) -> str:
        return "they are all on strike"


@dataclass(frozen=True, eq=False)
class _Inline:
    """An executor with such a crew."""

    hangs: Aim | None = None
    retries: int = 1
    silence_limit_s: float | None = None
    crews: list[_Crew] = field(default_factory=list)

    @contextmanager
    def start(self, prober: Probe, *, again: bool = False) -> Iterator[Dispatcher]:
        def muster() -> _Crew:
            self.crews.append(_Crew(prober, self.hangs))
            return self.crews[-1]

        yield Dispatcher(prober, muster, Terms(2, self.retries, self.silence_limit_s, 5.0))

    def monotonic(self) -> float:
        return self.crews[-1].now_s if self.crews else 0.0


def same_but(one: Scan, other: Scan, *missing: Aim) -> None:
    """Bit for bit, without the missing points."""
    for name, curve in one.items():
        left = [level for level, width in enumerate(curve.widths) if (name, width) not in missing]
        assert other[name].widths == tuple(curve.widths[level] for level in left)
        np.testing.assert_array_equal(curve.damage[left], other[name].damage)
        np.testing.assert_array_equal(curve.loss_damage[left], other[name].loss_damage)


def sabotaged(job, aim: Aim, monkeypatch: pytest.MonkeyPatch) -> None:
    program, groups, scores, data = job
    seen = mask(program.model, plan_widths(groups, scores, dict([aim])), program=program)(data[1][0])
    monkeypatch.setenv(saboteurs.VARIABLE, saboteurs.order("raise", seen))


@pytest.mark.parametrize(("executor", "attempts"), [(SerialExecutor(), 1), (_Inline(), 2)])
@pytest.mark.parametrize("replayed", [True, False])
def test_a_point_that_raises_is_named_and_no_other_point_changes(
    executor: Executor, attempts: int, replayed: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    job = setting()
    after = None if replayed else by_hand
    one = scan(*job, **METRIC, after=after)
    group = job[1][2].name
    aim = group, one[group].widths[2]
    sabotaged(job, aim, monkeypatch)
    two = scan(*job, **METRIC, after=after, executor=executor)
    assert [(u.group, u.width, u.attempts) for u in two.tally.unmeasured] == [(*aim, attempts)]
    assert two.tally.unmeasured[0].reason.endswith("ValueError: sabotage")
    assert str(two.tally.unmeasured[0]) in str(two) and group in caplog.text
    same_but(one, two, aim)
    # A batch of it was measured; it does not count as spared by a race.
    assert two.tally.stopped == 0 and two.tally.measured < one.tally.measured


def by_hand(model, plan, *, program, groups):
    """Something done to a cut model, so that points are measured one by one: nothing."""
    return model


@dataclass(frozen=True)
class _Refuses:
    """Something done to a cut model that fails at some points."""

    missing: frozenset[Aim]
    seen: list[Aim] = field(default_factory=list)

    def __call__(self, model: nn.Module, plan: Plan, **_) -> nn.Module:
        ((name, kept),) = plan.keep.items()
        self.seen.append((name, len(kept)))
        if (name, len(kept)) in self.missing:
            raise ValueError("not this one")
        return model


def test_a_point_that_raises_is_tried_at_no_other_boundary_and_lies_within_none() -> None:
    job = setting()
    racing = Racing((0.5, 0.9), stage=20, bisect=True)
    one = scan(*job, **METRIC, racing=racing)
    group = job[1][2].name
    aim = group, one[group].widths[-1]
    after = _Refuses(frozenset([aim]))
    two = scan(*job, **METRIC, racing=racing, after=after)
    assert [(u.group, u.width) for u in two.tally.unmeasured] == [aim] and after.seen.count(aim) == 1
    assert aim[1] not in two[group].widths and two.thresholds(0.9)[group] < one.thresholds(0.9)[group]


def test_no_allocation_takes_a_missing_point_or_touches_a_group_without_any() -> None:
    program, groups, scores, _ = job = setting()
    names = [group.name for group in groups]
    gone, half = names[1], names[2]
    whole, wide, middle, narrow = scan(*job, **METRIC)[gone].widths
    missing = frozenset({(gone, wide), (gone, middle), (gone, narrow), (half, middle)})
    found = scan(*job, **METRIC, after=_Refuses(missing), slices="targets")
    assert {(u.group, u.width) for u in found.tally.unmeasured} == missing
    assert found[gone].widths == (whole,) and found[half].widths == (whole, wide, narrow)
    assert found.thresholds(2.0) == {name: (0 if name == gone else 1 - narrow / whole) for name in names}
    assert gone not in found.finalists(0.1) and "not this one" in str(found)
    for objective in (None, sc.EqualDamage(), sc.GlobalThreshold(scores), sc.UniformDensity()):
        for budget in (0.5, 0.6, 0.8):
            allocation = sc.allocate(found, sc.costs(program, groups), sc.Budget(macs=budget), objective=objective)
            assert allocation.status is Status.FOUND
            assert not missing & set(allocation.widths.items()) and allocation.widths[gone] == whole


@pytest.mark.parametrize("after", [True, False])
@pytest.mark.parametrize("serial", [True, False])
def test_an_error_of_all_points_is_raised_before_all_are_tried(
    after: bool, serial: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = setting()
    calls: list[int] = []

    def fails(*arguments, **keywords):
        calls.append(1)
        raise LookupError("no such thing")

    whole = [job[0].model(x) for x, _ in job[3]]

    def of_the_whole_model(outputs: Tensor, targets: Tensor) -> Tensor:
        if not any(torch.allclose(outputs, known) for known in whole):
            fails()
        return (outputs.argmax(-1) == targets).double()

    asked = METRIC | ({"after": fails} if after else {"metric": of_the_whole_model})
    executor = SerialExecutor() if serial else _Inline()
    own = LookupError if after else MetricError
    with pytest.raises(own if serial else WorkerError, match="no such thing") as raised:
        scan(*job, **asked, executor=executor)
    # Points that share a walk are all tried on its first batch. Workers have tasks of one group; when the third is done
    # the fourth is under way.
    assert len(calls) == (12 if not serial else 3 if after else 15)
    if serial:
        where, note = raised.value.__notes__
        assert "in fails" in where and "no point could be measured" in note


def test_what_a_store_has_is_shown_as_done_by_workers_too(tmp_path: Path) -> None:
    shown: list[tuple[int, str]] = []

    @contextmanager
    def stage(name: str, total: int | None) -> Iterator[Advance]:
        yield lambda steps=1, note="": shown.append((steps, note))

    progress = SimpleNamespace(stage=stage)
    with CurveStore.open(tmp_path / "points") as store:
        scan(*setting(), **METRIC, racing=Racing((0.9,), error=0.5, clip=1.0, stage=20), store=store)
        whole = scan(*setting(), **METRIC, executor=_Inline(), store=store, progress=progress)
    assert 0 < whole.tally.stored == shown[1][0]
    assert sum(steps for steps, _ in shown) == 15 * 60 and shown[-1][1] == "15 of 15 points"


def test_an_argument_error_is_no_points_doing() -> None:
    seen: list[int] = []

    def fails(model: nn.Module, plan: Plan, **_) -> nn.Module:
        seen.append(1)
        if len(seen) == 2:
            raise ArgumentError("not so")
        return model

    with pytest.raises(ArgumentError, match="not so"):
        scan(*setting(), **METRIC, after=fails)


@pytest.mark.parametrize(("limit_s", "least_s", "most_s"), [(7.0, 7.0, 8.1), (None, 300.0, 302.0)])
def test_a_worker_that_says_nothing_is_ended_and_its_task_halved(
    limit_s: float | None, least_s: float, most_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = setting()
    one = scan(*job, **METRIC)
    group = job[1][1].name
    aim = group, one[group].widths[2]
    executor = _Inline(aim, retries=2, silence_limit_s=limit_s)
    monkeypatch.setattr(dispatch, "time", SimpleNamespace(monotonic=executor.monotonic))
    two = scan(*job, **METRIC, executor=executor)
    (missing,) = two.tally.unmeasured
    assert (missing.group, missing.width, missing.attempts) == (*aim, 3)
    assert f"said nothing for {least_s:g} s" in missing.reason
    same_but(one, two, aim)
    (crew,) = executor.crews
    # Fifteen points are tasks of three: one is halved twice, and the point that hangs is tried three times.
    sizes = [len(task.points) for task in crew.tasks if aim in [(k.group, k.width) for k in task.points]]
    assert sizes in ([3, 1, 1, 1], [3, 2, 1, 1, 1])
    assert len(crew.ended) == len(sizes)
    assert least_s * len(sizes) <= crew.now_s <= most_s * len(sizes)


def test_nobody_waits_for_ever_where_no_worker_gets_ready() -> None:
    executor = _Inline()

    @contextmanager
    def start(prober: Probe, *, again: bool = False) -> Iterator[Dispatcher]:
        crew = _Crew(prober)
        crew.messages.clear()
        yield Dispatcher(prober, lambda: crew, Terms(2, 0, None, 5.0))

    with pytest.raises(WorkerError, match=r"within patience_s=5: they are all on strike; points in the store are kept"):
        scan(*setting(), **METRIC, executor=SimpleNamespace(start=start))
    assert not executor.crews


def test_silence_is_counted_while_one_listens_only() -> None:
    silences = Silences(None)
    silences.listened(1e6, [0, 1])
    assert silences.lasting_s == {0: 1.0, 1: 1.0} and silences.allowed_s == FIRST_LIMIT_S and not silences.hung()
    silences.heard(0)
    assert silences.allowed_s == 300.0
    for _ in range(300):
        silences.listened(1.0, [0, 1])
    assert silences.hung() == [1] and silences.hung() == []
    silences.heard(0)
    assert silences.longest_s == 300.0 and silences.allowed_s == 6000.0
    assert Silences(4.0, {3: 4.5, 4: 4.0}).hung() == [3]


@pytest.mark.parametrize("executor", [sc.ProcessExecutor, sc.RayExecutor])
def test_limits_that_cannot_be_kept_are_refused(executor) -> None:
    with pytest.raises(ArgumentError, match=r"silence_limit_s=1.9 must be at least 2"):
        executor(silence_limit_s=1.9)
    with pytest.raises(ArgumentError, match="patience_s=0"):
        executor(patience_s=0.0)


def test_a_point_that_a_worker_did_not_try_is_handed_out_again() -> None:
    group = setting()[1][0]
    values = [Evaluation(np.full(3, np.nan), np.full(3, np.nan)) for _ in range(2)]
    points = [Point(group, width, Plan({}, {}), str(width), own) for width, own in zip((3, 2), values, strict=True)]
    desk = dispatch._Desk(points, 0, 0, None, Board(2, 3, lambda steps=1, note="": None), deque())
    desk.given[0] = dispatch._Job(points)
    failed = Unmeasured(group.name, 3, 1, "it raised"), Unmeasured(group.name, 2, 0, "as another did")
    desk.close(0, Tally(unmeasured=failed))
    assert [job.points for job in desk.waiting] == [[points[1]]] and list(desk.given_up) == ["3"]
