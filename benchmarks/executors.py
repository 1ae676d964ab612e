"""One worker against two, by processes and by Ray; and up to 1,000 of them, simulated from the times measured.

python benchmarks/executors.py --out benchmarks/executors --ray

Wall times of one and two workers are taken in turn, several times over. Where the machine is busy with other things,
those tell little; seconds of the processor tell what it would do if it were not: of one worker, against the busier one
of two.
"""

import argparse
import heapq
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

import secateur as sc
from secateur.criteria.criterion import needs_of
from secateur.data import as_batches
from secateur.measures.evaluate import evaluate
from secateur.measures.metrics import resolve_loss, resolve_metric
from secateur.sensitivity.dispatch import TASKS_PER_WORKER, Dispatcher, fill_in
from secateur.sensitivity.executor import Executor
from secateur.sensitivity.levels import SPARSITIES, scanned_widths
from secateur.sensitivity.measure import Point, make_point
from secateur.sensitivity.probe import Probe, probe
from secateur.sensitivity.run import run_points
from secateur.sensitivity.values import by_name, like, overwrite
from secateur.sensitivity.worker import Known, Measured, Ready, Task
from secateur.storage.curve_store import CurveStore
from secateur.types import Evaluation
from secateur.zoo.resnet import resnet20

TICKS = os.sysconf("SC_CLK_TCK")
MANY = 50_000
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)


def prober(samples: int) -> Probe:
    """ResNet-20 with random weights on random images: what it computes takes as long as with others."""
    torch.manual_seed(0)
    model = resnet20().eval()
    images, targets = torch.randn(samples, 3, 32, 32), torch.randint(0, 10, (samples,))
    data = as_batches(list(zip(images.split(32), targets.split(32), strict=True)), "validation")
    program = sc.trace(model, (images[:2],))
    groups = [g for g in sc.find_groups(program) if g.exact]
    scores = sc.score(groups, sc.collect(model, groups, needs=needs_of(sc.Magnitude())), sc.Magnitude())
    metric, loss = resolve_metric("accuracy"), resolve_loss("cross_entropy")
    baseline = evaluate(model, data, metric=metric, loss=loss)
    return probe(model, groups, scores, data, metric=metric, loss=loss, baseline=baseline, program=program)


def points(found: Probe) -> list[Point]:
    """Of all groups at all sparsities, nothing measured."""
    return [make_point(found, g, w, "", None) for g in found.groups for w in scanned_widths(g, SPARSITIES)]


def silent(steps: int = 1, note: str = "") -> None:
    """Progress that is not shown."""


# What one and two workers take


def run(found: Probe, executor: Executor) -> dict[str, float]:
    """Seconds until the workers are ready, then of the scan; of the latter also those of the processor."""
    wanted = points(found)
    begun = time.perf_counter()
    with executor.start(found) as measure:
        assert isinstance(measure, Dispatcher)
        while len(measure.idle) < measure.terms.workers:
            heard = measure.crew.hear(measure.terms.patience_s)
            assert heard is not None
            worker, message = heard
            assert isinstance(message, Ready)
            measure.idle.add(worker)
        ready, before = time.perf_counter(), processor_seconds()
        tally = measure(wanted, None, (), None, silent)
        done, after = time.perf_counter(), processor_seconds()
    assert tally.measured == len(wanted) * len(found.baseline.metric)
    spent = sorted((after[pid] - before.get(pid, 0.0) for pid in after), reverse=True)[: measure.terms.workers]
    return {"start_s": ready - begun, "scan_s": done - ready, "busiest_s": spent[0], "all_s": sum(spent)}


def processor_seconds() -> dict[int, float]:
    """Of each process that descends from this one."""
    parents, seconds = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(entry.name)] = int(fields[1])
            seconds[int(entry.name)] = (int(fields[11]) + int(fields[12])) / TICKS
    own = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in own} - own:
        own |= more
    return {pid: seconds[pid] for pid in own - {os.getpid()} if pid in seconds}


def compare(found: Probe, make: Callable[[int], Executor], repetitions: int) -> dict[str, Any]:
    """Two workers against one, in turn."""
    rows: dict[int, list[dict[str, float]]] = {1: [], 2: []}
    for number in range(repetitions):
        for workers in (1, 2) if number % 2 == 0 else (2, 1):
            load = os.getloadavg()[0]
            rows[workers].append(run(found, make(workers)) | {"load": load})
            print(workers, {key: round(value, 2) for key, value in rows[workers][-1].items()}, flush=True)
    pairs = list(zip(rows[1], rows[2], strict=True))
    return {
        "one": rows[1],
        "two": rows[2],
        "speedup_wall": [one["scan_s"] / two["scan_s"] for one, two in pairs],
        "speedup_wall_with_start": [
            (one["start_s"] + one["scan_s"]) / (two["start_s"] + two["scan_s"]) for one, two in pairs
        ],
        "speedup_processor": [one["busiest_s"] / two["busiest_s"] for one, two in pairs],
    }


# Many workers, simulated


@dataclass(frozen=True)
class Costs:
    """Seconds, each measured.

    Attributes:
        walk: of the program over all samples, up to the first consumer of each group.
        rest: what follows, for one point of each group.
        levels: points of each group.
        start: until a worker is ready.
        launch: of the process that starts workers, for each.
        give: of the same, for each task.
        take: of the same, for each point that arrives; it is written to the store.
    """

    walk: tuple[float, ...]
    rest: tuple[float, ...]
    levels: tuple[int, ...]
    start: float
    launch: float
    give: float
    take: float


def measured_costs(found: Probe, start: float) -> Costs:
    """Times of the processor for the work, by the clock for what waits for a disk."""
    walks, rests, levels = [], [], []
    for group in found.groups:
        own = [p for p in points(found) if p.group is group]
        one, all_ = processor(lambda p=own[:1]: run_here(found, p)), processor(lambda p=own: run_here(found, p))
        rests.append((all_ - one) / (len(own) - 1))
        walks.append(max(one - rests[-1], 0.0))
        levels.append(len(own))
    return Costs(tuple(walks), tuple(rests), tuple(levels), start, *overheads(found))


def run_here(found: Probe, wanted: Sequence[Point]) -> None:
    """Measure, from nothing."""
    for point in wanted:
        overwrite(point.values, by_name(like(found.baseline)))
    run_points(found, wanted, None, (), None, silent)


def processor(work: Callable[[], object]) -> float:
    """Seconds of the processor that `work` takes, by the faster of two runs."""

    def once() -> float:
        begun = time.process_time()
        work()
        return time.process_time() - begun

    return min(once(), once())


def overheads(found: Probe) -> tuple[float, float, float]:
    """Seconds to start a process, to send a task of ten points, and to take in a point."""
    context = torch.multiprocessing.get_context("spawn")
    begun = time.perf_counter()
    process = context.Process(target=print, args=("a process was started",))
    process.start()
    launch = time.perf_counter() - begun
    process.join()
    ours, theirs = context.Pipe()
    sample = points(found)[:10]
    give = median(timed(lambda: (ours.send(Task([Known.of(p) for p in sample], None, ())), theirs.recv())))
    return launch, give, taking(found, len(found.baseline.metric))


def taking(found: Probe, samples: int) -> float:
    """Seconds to receive and store a point with so many samples."""
    point, values = points(found)[0], np.random.default_rng(0).normal(size=samples)
    point = replace(point, values=Evaluation(values.copy(), values.copy()))
    with tempfile.TemporaryDirectory() as folder, CurveStore.open(Path(folder) / "points") as store:
        sent = ForkingPickler.dumps(Measured(0, by_name(point.values)))
        return median(timed(lambda: fill_in(point, ForkingPickler.loads(sent), store)))


def timed(work: Callable[[], object], times: int = 100) -> list[float]:
    """Seconds by the clock, each time."""
    found = []
    for _ in range(times):
        begun = time.perf_counter()
        work()
        found.append(time.perf_counter() - begun)
    return found


def tasks(costs: Costs, workers: int) -> list[tuple[float, int]]:
    """Seconds and points of each task: runs of neighbours, as the dispatcher forms them."""
    each = [group for group, count in enumerate(costs.levels) for _ in range(count)]
    size = max(1, -(-len(each) // (workers * TASKS_PER_WORKER)))
    parts = [each[start : start + size] for start in range(0, len(each), size)]
    return [(max(costs.walk[g] for g in part) + sum(costs.rest[g] for g in part), len(part)) for part in parts]


def simulated(costs: Costs, workers: int) -> float:
    """Seconds of a scan, event by event: workers compute side by side, one process hands out and takes in.

    An event is the time at which a worker is idle, and how many points it has for that process. What is sent of points
    that are not finished takes up to a twentieth of the time, by design, and is left out.
    """
    waiting = tasks(costs, workers)[::-1]
    events = [(costs.launch * (number + 1) + costs.start, 0) for number in range(workers)]
    heapq.heapify(events)
    free = end = 0.0
    while events:
        arrived, arriving = heapq.heappop(events)
        free = max(free, arrived) + arriving * costs.take
        end = max(end, free) if arriving else end
        if waiting:
            seconds, count = waiting.pop()
            free += costs.give
            heapq.heappush(events, (free + seconds, count))
    return end


def scaling(costs: Costs) -> dict[str, Any]:
    """Speed against one worker, and what holds 1,000 of them back: that without which they would gain most."""
    alone = simulated(costs, 1)
    most = COUNTS[-1]
    without = {
        "starting the workers": replace(costs, start=0.0, launch=0.0),
        "handing out and taking in by one process": replace(costs, give=0.0, take=0.0),
        "the walk to the first consumer, repeated in each task": replace(costs, walk=(0.0,) * len(costs.walk)),
    }
    # One point cannot be divided: no scan is shorter than its longest.
    longest = max(w + r for w, r in zip(costs.walk, costs.rest, strict=True))
    gains = {name: simulated(costs, most) / simulated(less, most) for name, less in without.items()}
    gains["points that cannot be divided"] = simulated(costs, most) / max(simulated(costs, most) - longest, 1e-9)
    return {
        "points": sum(costs.levels),
        "one_worker_s": alone,
        "speedup": {str(count): alone / simulated(costs, count) for count in COUNTS},
        "longest_point_s": longest,
        "faster_without": gains,
        "bottleneck": max(gains, key=gains.__getitem__),
    }


def larger(costs: Costs, groups: int, times: float, take: float) -> Costs:
    """A scan of so many groups with `times` the samples; groups take what those that were measured take."""
    picks = sorted(number % len(costs.walk) for number in range(groups))
    return replace(
        costs,
        walk=tuple(costs.walk[k] * times for k in picks),
        rest=tuple(costs.rest[k] * times for k in picks),
        levels=tuple(costs.levels[k] for k in picks),
        take=take,
    )


@contextmanager
def on_loopback() -> Iterator[None]:
    """Ray with a token of this run's own."""
    import secrets

    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    yield


def main() -> None:
    """Measure, simulate, and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--ray", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = prober(given.samples)
    system = {"torch": torch.__version__, "machine": platform.machine(), "cores": os.cpu_count()}
    result: dict[str, Any] = {**system, "samples": given.samples, "points": len(points(found))}
    result["processes"] = compare(found, sc.ProcessExecutor, given.repetitions)
    if given.ray:
        with on_loopback():
            result["ray"] = compare(found, sc.RayExecutor, given.repetitions)
    costs = measured_costs(found, min(row["start_s"] for row in result["processes"]["one"]))
    result["measured"] = vars(costs)
    result["this scan"] = scaling(costs)
    many = larger(costs, 500, MANY / given.samples, taking(found, MANY))
    result["500 groups, 50,000 samples"] = scaling(many) | {"take": many.take}
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "resnet20.json").write_text(json.dumps(result, indent=1) + "\n")
    for kind in ("processes", "ray"):
        for key, values in result.get(kind, {}).items():
            if key.startswith("speedup"):
                print(kind, key, f"median {median(values):.2f}", [round(v, 2) for v in values])
    for name in ("this scan", "500 groups, 50,000 samples"):
        print(name, json.dumps(result[name], indent=1))


if __name__ == "__main__":
    main()
