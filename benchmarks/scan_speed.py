"""A fast scan beside the exhaustive one by full forward passes: work, time, and whether they say the same.

The exhaustive scan runs in blocks of the samples, which are kept as they are done, so that it resumes; between
blocks the fast scans run over all samples, so that all share the machine's moods. The reference is the exhaustive scan
of the blocks that are done. One thread.

python benchmarks/scan_speed.py --network resnet20 --weights resnet20_cifar10.safetensors --data test.parquet \
    --samples 5000 --tolerance 0.02 --work DIR --out benchmarks/scan
"""

import argparse
import json
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scan_networks import Job, load
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import secateur as sc
from secateur.criteria.criterion import needs_of
from secateur.data import Batch, as_batches
from secateur.measures.evaluate import evaluate
from secateur.measures.metrics import resolve_loss, resolve_metrics
from secateur.sensitivity.probe import Probe, probe
from secateur.sensitivity.result import Scan
from secateur.sensitivity.scan import SPARSITIES, measure_curves
from secateur.surgery.plan import kept_width, plan_widths
from secateur.types import Curve

TAYLOR = sc.Taylor()
WAYS = ("racing", "racing, indifferent", "racing, indifferent, bisection")
INDIFFERENCE = 1 / 8
"""Of a tolerance: points this near may be taken for either side."""

CALIBRATION = 4
"""Batches from which the surrogate is computed."""


def macs_of(run: Callable[[], Any]) -> int:
    """Multiply-adds of what `run` does."""
    # By kernels made of operators that the counter knows.
    plain = torch.backends.mkldnn.flags(enabled=False), sdpa_kernel(SDPBackend.MATH)  # type: ignore[no-untyped-call]
    with plain[0], plain[1], FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops()) // 2


def suffix_macs(prober: Probe, batch: Batch) -> tuple[int, dict[str, int]]:
    """Multiply-adds for one sample: of the whole model, and of what follows each group's first consumer."""
    assert prober.replay is not None
    replay, first = prober.replay, batch.take(torch.tensor([0]))
    plans = {g.name: plan_widths(prober.groups, prober.scores, {g.name: g.width}) for g in prober.groups}
    changes = {name: prober.change(plan) for name, plan in plans.items()}
    whole = macs_of(lambda: list(replay.outputs(first, [next(iter(changes.values()))])))
    return whole, {
        name: macs_of(lambda c=change: list(replay.outputs(first, [c, c]))) - whole for name, change in changes.items()
    }


def timed(run: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """A result, with its seconds by the clock and of the processor."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = run()
    return found, {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}


class Bench:
    """A job, its probe, and the folder in which what is done is kept."""

    def __init__(self, job: Job, work: Path, blocks: int) -> None:
        self.job, self.work = job, work
        self.size = -(-len(job.batches) // blocks)
        self.blocks = -(-len(job.batches) // self.size)
        work.mkdir(parents=True, exist_ok=True)
        self.data = as_batches(job.batches, "validation")
        self.program = sc.trace(job.model, (job.batches[0][0][:2],))
        self.groups = [g for g in sc.find_groups(self.program) if g.exact]
        magnitude = sc.Magnitude()
        empty = sc.collect(job.model, self.groups, self.data, needs=needs_of(magnitude))
        self.scores = sc.score(self.groups, empty, magnitude)
        (self.metric,) = resolve_metrics(job.metric, None, "cross_entropy")
        self.prober = self.probe(job.batches, program=self.program)
        self.whole, self.suffix = suffix_macs(self.prober, next(iter(self.data)))
        self.samples = len(self.prober.baseline.loss)

    def probe(self, batches: Any, program: sc.Program | None = None) -> Probe:
        """Of some batches; without a program every point runs the whole model."""
        data, loss = as_batches(batches, "validation"), resolve_loss("cross_entropy")
        baseline = evaluate(self.job.model, data, metric=self.metric, loss=loss)
        return probe(
            self.job.model, self.groups, self.scores, data, metric=self.metric, loss=loss, baseline=baseline,
            program=program,
        )  # fmt: skip

    def exhaustive_block(self, number: int) -> None:
        """Run every point by full forward passes on a part of the samples."""
        batches = self.job.batches[number * self.size : (number + 1) * self.size]
        found, row = timed(lambda: measure_curves(self.probe(batches)))
        arrays = {f"{kind}|{n}": getattr(c, kind) for n, c in found.items() for kind in ("damage", "loss_damage")}
        np.savez_compressed(self.work / f"block-{number}.npz", **arrays)
        (self.work / f"block-{number}.json").write_text(json.dumps(row))
        print("block", number, row, flush=True)

    def surrogate(self) -> dict[str, dict[int, float]]:
        """First-order Taylor of a few batches, added up."""
        statistics = sc.collect(self.job.model, self.groups, self.job.batches[:CALIBRATION], needs=TAYLOR.needs)
        return sc.predict(self.groups, statistics, TAYLOR, scores=self.scores)

    def fast(self, name: str) -> Scan:
        """One of the fast scans."""
        rule = self.job.rule
        if "indifferent" in name:
            rule = replace(rule, indifference=rule.boundaries[0] * INDIFFERENCE)
        if "bisection" not in name:
            return measure_curves(self.prober, racing=rule)
        return measure_curves(self.prober, racing=replace(rule, bisect=True), surrogate=self.surrogate())

    def run_fast(self, repeat: int) -> None:
        """The fast scans that are not done, each timed."""
        for name in WAYS:
            stem = self.work / f"fast-{name.replace(', ', '_').replace(' ', '_')}-{repeat}"
            if stem.with_suffix(".json").exists():
                continue
            found, row = timed(lambda name=name: self.fast(name))
            row |= self.described(name, found)
            arrays = {f"damage|{n}": c.damage for n, c in found.items()}
            widths = {n: list(c.widths) for n, c in found.items()}
            np.savez_compressed(stem.with_suffix(".npz"), **arrays)
            stem.with_suffix(".json").write_text(json.dumps({"name": name, "widths": widths, **row}))
            print(name, row, flush=True)

    def described(self, name: str, found: Scan) -> dict[str, Any]:
        """The work of a fast scan."""
        seen = {group: int(curve.seen()[1:].sum()) for group, curve in found.items()}
        macs = sum(self.suffix[group] * count for group, count in seen.items()) + self.whole * found.tally.walked
        if "bisection" in name:
            macs += macs_of(self.surrogate)
        points = sum(len(curve.widths) - 1 for curve in found.values())
        row: dict[str, Any] = {"macs": macs, "points": points, "samples_run": sum(seen.values())}
        return row | ({"agreement": found.agreement()} if found.surrogate else {})

    def reference(self) -> tuple[Scan, dict[str, Any]]:
        """The exhaustive scan of the blocks that are done, and its work scaled up to all samples."""
        files = sorted(self.work.glob("block-*.npz"), key=lambda path: int(path.stem.split("-")[1]))
        parts = [np.load(path) for path in files]
        curves = {}
        for group in self.groups:
            widths = list(dict.fromkeys([group.width, *(kept_width(group, s) for s in SPARSITIES)]))
            damage, loss = (
                np.concatenate([part[f"{kind}|{group.name}"] for part in parts], axis=1)
                for kind in ("damage", "loss_damage")
            )
            curves[group.name] = Curve(
                group.name, tuple(widths), tuple(1 - w / group.width for w in widths), damage, loss
            )
        done = next(iter(curves.values())).damage.shape[1]
        rows = [json.loads(path.with_suffix(".json").read_text()) for path in files]
        points = sum(len(curve.widths) - 1 for curve in curves.values())
        scale = self.samples / done
        return Scan(curves, metric=self.metric.name), {
            "samples_measured": done,
            "points": points,
            "macs": self.whole * points * self.samples,
            **{key: sum(row[key] for row in rows) * scale for key in ("wall_s", "cpu_s")},
        }

    def summary(self) -> dict[str, Any]:
        """Everything that is done, compared."""
        reference, base = self.reference()
        tolerance = self.job.rule.boundaries[0]
        exact = reference.thresholds(tolerance)
        best, joint = self.joint(reference)
        ways: dict[str, Any] = {}
        for path in sorted(self.work.glob("fast-*.json")):
            row = json.loads(path.read_text())
            arrays = np.load(path.with_suffix(".npz"))
            curves = {g.name: _curve(g, row["widths"][g.name], arrays[f"damage|{g.name}"]) for g in self.groups}
            found = Scan(curves, metric=self.metric.name).thresholds(tolerance)
            levels = {name: curve.sparsities for name, curve in reference.items()}
            steps = [abs(_at(levels[n], exact[n]) - _at(levels[n], found[n])) for n in exact]
            own = ways.setdefault(row["name"], {key: v for key, v in row.items() if key not in {"name", "widths"}})
            for key in ("wall_s", "cpu_s"):
                own.setdefault(f"all_{key}", []).append(row[key])
            own["groups_with_the_same_threshold"] = float(np.mean([step == 0 for step in steps]))
            own["groups_within_one_step"] = float(np.mean([step <= 1 for step in steps]))
            if "bisection" not in row["name"] and "joint_damage" not in own:
                _, mean = self.joint(Scan(curves, metric=self.metric.name))
                gap = mean - joint
                error = gap.std(ddof=1) / len(gap) ** 0.5
                own["joint_damage"] = [float(mean.mean()), float(gap.mean()), float(error)]
        for own in ways.values():
            for key in ("wall_s", "cpu_s"):
                own[key] = float(np.median(own[f"all_{key}"]))
                own[f"{key[:-2]}_ratio"] = base[key] / own[key]
            own["macs_ratio"] = base["macs"] / own["macs"]
        base["joint_damage"] = [float(joint.mean()), float(joint.std(ddof=1) / len(joint) ** 0.5)]
        base["joint_widths"] = best
        return {"exhaustive": base, **ways}

    def joint(self, curves: Scan) -> tuple[dict[str, int], Any]:
        """The allocation of 70 % of the multiply-adds by these curves, and what it loses on each sample."""
        known = {name: replace(c, loss_damage=c.damage) for name, c in curves.items()}
        found = sc.allocate(known, sc.costs(self.program, self.groups), sc.Budget(macs=0.7))
        return dict(found.widths), self.prober.damage(found.widths)[0]


def _curve(group: sc.Group, widths: list[int], damage: Any) -> Curve:
    return Curve(group.name, tuple(widths), tuple(1 - w / group.width for w in widths), damage, damage)


def _at(levels: tuple[float, ...], sparsity: float) -> int:
    return int(np.argmin(np.abs(np.array(levels) - sparsity)))


def main() -> None:
    """Run what is not done yet, and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", choices=("resnet20", "lstm", "transformer"), required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--tolerance", type=float, required=True)
    parser.add_argument("--blocks", type=int, default=10)
    parser.add_argument("--fast-before", type=int, nargs="+", default=[2], help="blocks before which fast scans run")
    parser.add_argument("--stop-after", type=int, help="blocks to run; the rest is left out")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    job = load(given.network, given.weights, given.data, given.samples, given.tolerance)
    bench = Bench(job, given.work, given.blocks)
    last = bench.blocks if given.stop_after is None else min(given.stop_after, bench.blocks)
    for number in range(last):
        if number in given.fast_before:
            bench.run_fast(number)
        if not (given.work / f"block-{number}.json").exists():
            bench.exhaustive_block(number)
    settings: Mapping[str, Any] = {
        "network": given.network,
        "samples": bench.samples,
        "metric": bench.metric.name,
        "tolerance": given.tolerance,
        "groups": len(bench.groups),
        "sparsities": SPARSITIES,
        "racing": repr(job.rule),
        "threads": 1,
        "torch": torch.__version__,
        "machine": platform.machine(),
    }
    given.out.mkdir(parents=True, exist_ok=True)
    ways = bench.summary()
    (given.out / f"{given.network}.json").write_text(json.dumps({**settings, "ways": ways}, indent=1) + "\n")
    print(json.dumps(ways, indent=1))


if __name__ == "__main__":
    main()
