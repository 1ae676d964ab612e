"""A fast scan beside the exhaustive one by full forward passes: work, time, and whether they say the same.

The exhaustive scan runs in blocks of the samples, which are kept as they are done, so that it resumes; between
blocks the fast scans run over all samples. Beside each fast scan a block is run by full passes and timed, so that both
share the machine's moods: ratios of time are to that. The reference is the exhaustive scan of the blocks that are done.
One thread.

python benchmarks/scan_speed.py --network resnet20 --weights resnet20_cifar10.safetensors --data test.parquet \
    --samples 5000 --tolerance 0.02 --work DIR --out benchmarks/scan
"""

import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scan_networks import Job, arguments, load
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import secateur as sc
from secateur.allocation.knapsack import Of
from secateur.criteria.criterion import needs_of
from secateur.data import Batch, as_batches
from secateur.measures.evaluate import evaluate
from secateur.measures.metrics import resolve_loss, resolve_metrics
from secateur.sensitivity.levels import SPARSITIES
from secateur.sensitivity.probe import Probe, probe
from secateur.sensitivity.result import Scan
from secateur.sensitivity.scan import measure_curves
from secateur.surgery.plan import kept_width, plan_widths
from secateur.types import Curve

TAYLOR = sc.Taylor()
BISECTED = "racing, indifferent, bisection"
DEEPENED = {"racing, deepened for 70 %": (0.7,), "racing, deepened for 90, 80 and 70 %": (0.9, 0.8, 0.7)}
SHARE = 0.4
"""Of the samples, which is enough for a level that a budget turns on."""

WAYS = ("racing", "racing, indifferent", BISECTED, *DEEPENED)
BUDGETS = (0.9, 0.8, 0.7)
"""Fractions of the multiply-adds at which allocations are compared."""

SEARCH = {"share_of_samples": 0.1, "measurements": 30}
"""Of the local search from each allocation, chosen on the other half of the images."""

INDIFFERENCE = {name: 3 / 8 if name in DEEPENED else 1 / 8 for name in WAYS if name != "racing"}
"""Of a tolerance: points this near may be taken for either side."""

TIMED = ("wall_s", "cpu_s", "wall_ratio", "cpu_ratio")

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
        self.cost = sc.costs(self.program, self.groups)
        self.joints: dict[tuple[int, ...], tuple[Any, Any]] = {}
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

    def full_passes(self, number: int) -> tuple[Scan, dict[str, float]]:
        """Every point by full forward passes on a part of the samples, timed."""
        batches = self.job.batches[number * self.size : (number + 1) * self.size]
        return timed(lambda: measure_curves(self.probe(batches)))

    def exhaustive_block(self, number: int) -> None:
        """Run a part of the exhaustive scan, and keep it."""
        found, row = self.full_passes(number)
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
        rule = replace(self.job.rule, indifference=self.job.rule.boundaries[0] * INDIFFERENCE.get(name, 0.0))
        if name == BISECTED:
            return measure_curves(self.prober, racing=replace(rule, bisect=True), surrogate=self.surrogate())
        budgets = [sc.Budget(macs=macs) for macs in DEEPENED.get(name, ())]
        deepen = sc.Contenders(self.cost, budgets, share=SHARE) if budgets else None
        return measure_curves(self.prober, racing=rule, deepen=deepen)

    def run_fast(self, repeat: int, ways: Sequence[str]) -> None:
        """The fast scans that are not done, each timed, and a block by full passes beside each."""
        for name in ways:
            stem = self.work / f"fast-{name.replace(', ', '_').replace(' ', '_').replace('_%', '')}-{repeat}"
            if stem.with_suffix(".json").exists():
                continue
            found, row = timed(lambda name=name: self.fast(name))
            row |= self.described(name, found)
            at = repeat % self.blocks * self.size
            _, row["beside"] = self.full_passes(repeat % self.blocks)
            row["beside"]["samples"] = sum(len(targets) for _, targets in self.job.batches[at : at + self.size])
            arrays = {f"{kind}|{n}": getattr(c, kind) for n, c in found.items() for kind in ("damage", "loss_damage")}
            widths = {n: list(c.widths) for n, c in found.items()}
            np.savez_compressed(stem.with_suffix(".npz"), **arrays)
            stem.with_suffix(".json").write_text(json.dumps({"name": name, "widths": widths, **row}))
            print(name, row, flush=True)

    def described(self, name: str, found: Scan) -> dict[str, Any]:
        """The work of a fast scan."""
        seen = {group: int(curve.seen()[1:].sum()) for group, curve in found.items()}
        macs = sum(self.suffix[group] * count for group, count in seen.items()) + self.whole * found.tally.walked
        if name == BISECTED:
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
            "macs": self.whole * (points + 1) * self.samples,
            **{key: sum(row[key] for row in rows) * scale for key in ("wall_s", "cpu_s")},
        }

    def summary(self) -> dict[str, Any]:
        """Everything that is done, compared."""
        reference, base = self.reference()
        tolerance = self.job.rule.boundaries[0]
        exact = reference.thresholds(tolerance)
        ends = {macs: self.searched(reference, macs) for macs in BUDGETS}
        ways: dict[str, Any] = {}
        for path in sorted(self.work.glob("fast-*.json")):
            row = json.loads(path.read_text())
            curves = self.read(row["widths"], np.load(path.with_suffix(".npz")), reference)
            found = curves.thresholds(tolerance)
            levels = {name: curve.sparsities for name, curve in reference.items()}
            steps = [abs(_at(levels[n], exact[n]) - _at(levels[n], found[n])) for n in exact]
            beside = row.pop("beside")
            for key in ("wall_s", "cpu_s"):
                # The dense pass that damages are held against: blocks by full passes have it, fast scans do not.
                whole = beside[key] / beside["samples"] * self.samples
                row[key] += whole / (base["points"] + 1)
                row[f"{key[:-2]}_ratio"] = whole / row[key]
            own = ways.setdefault(row["name"], {k: v for k, v in row.items() if k not in {"name", "widths", *TIMED}})
            for key in TIMED:
                own.setdefault(f"all_{key}", []).append(row[key])
            own["groups_with_the_same_threshold"] = float(np.mean([step == 0 for step in steps]))
            own["groups_within_one_step"] = float(np.mean([step <= 1 for step in steps]))
            if row["name"] != BISECTED and "joint" not in own:
                own["joint"] = self.compared(reference, curves, ends=ends if row["name"] in DEEPENED else None)
        for own in ways.values():
            own |= {key: float(np.median(own[f"all_{key}"])) for key in TIMED}
            own["macs"] += self.whole * self.samples
            own["macs_ratio"] = base["macs"] / own["macs"]
        halves = [self.half(reference, part) for part in (0, 1)]
        base["joint"] = self.compared(reference, reference, ends=ends)
        base["joint_of_halves"] = [self.compared(reference, half, ("loss",)) for half in halves]
        return {"exhaustive": base, **{name: ways[name] for name in (*WAYS, *ways) if name in ways}}

    def read(self, widths: Mapping[str, list[int]], arrays: Any, reference: Scan) -> Scan:
        """Curves that were kept; where their losses were not, those of the exhaustive scan at the same samples."""
        curves = {}
        for group in self.groups:
            own, known = widths[group.name], arrays[f"damage|{group.name}"]
            if f"loss_damage|{group.name}" in arrays:
                loss = arrays[f"loss_damage|{group.name}"]
            elif self.metric.name == "loss":
                loss = known
            else:
                full = reference[group.name]
                rows = full.loss_damage[[full.widths.index(width) for width in own]]
                loss = np.where(np.isnan(known[:, : rows.shape[1]]), np.nan, rows)
            curves[group.name] = Curve(group.name, tuple(own), tuple(1 - w / group.width for w in own), known, loss)
        return Scan(curves, metric=self.metric.name)

    def half(self, reference: Scan, part: int) -> Scan:
        """The exhaustive scan of every other sample: as far from all as all are from the population."""
        curves = {
            name: replace(curve, damage=curve.damage[:, part::2], loss_damage=curve.loss_damage[:, part::2])
            for name, curve in reference.items()
        }
        return Scan(curves, metric=self.metric.name)

    def compared(
        self,
        reference: Scan,
        curves: Scan,
        by: Sequence[Of] = ("loss", "metric"),
        ends: Mapping[float, Mapping[str, int]] | None = None,
    ) -> dict[str, Any]:
        """What allocations from curves lose at each budget, and how much more than those from the exhaustive scan.

        With `ends`, where a local search from the latter ended, also after one.
        """
        found: dict[str, Any] = {}
        for macs in BUDGETS:
            for of in by[:1] if self.metric.name == "loss" else by:
                widths = [
                    sc.allocate(each, self.cost, sc.Budget(macs=macs), objective=sc.LeastDamage(of)).widths
                    for each in (reference, curves)
                ]
                (metric, loss), (own_metric, own_loss) = map(self.joint, widths)
                alone = [
                    sum(c.loss_damage[c.widths.index(w[n])] for n, c in reference.items()) for w in widths
                ]  # fmt: skip
                found[f"{macs:.0%}, by {of}"] = {
                    "groups_with_the_same_width": sum(widths[0][n] == widths[1][n] for n in widths[0]),
                    "widths": widths[1],
                    **{
                        name: {"lost": _mean(after), "more": _mean(after - before)}
                        for name, before, after in (
                            (self.metric.name, metric, own_metric),
                            ("loss", loss, own_loss),
                            ("sum of single loss damages", *alone),
                        )
                    },
                }
                if ends is not None and of == "loss":
                    own = self.searched(curves, macs)
                    (metric, loss), (own_metric, own_loss) = self.joint(ends[macs]), self.joint(own)
                    found[f"{macs:.0%}, by {of}"]["after local search"] = {
                        "groups_with_the_same_width": sum(ends[macs][n] == own[n] for n in own),
                        "widths": own,
                        self.metric.name: {"lost": _mean(own_metric), "more": _mean(own_metric - metric)},
                        "loss": {"lost": _mean(own_loss), "more": _mean(own_loss - loss)},
                    }
        return found

    def searched(self, curves: Scan, macs: float) -> Mapping[str, int]:
        """Widths at a budget after a local search on the joint damage to the loss."""
        budget = sc.Budget(macs=macs)
        start = sc.allocate(curves, self.cost, budget, objective=sc.LeastDamage("loss"))
        drawn = np.random.default_rng(0).permutation(self.samples)[: int(SEARCH["share_of_samples"] * self.samples)]

        def measure(widths: Mapping[str, int]) -> tuple[float, float]:
            mean, error = _mean(self.prober.damage(widths, np.sort(drawn))[1])
            return mean, error

        found = sc.refine(start, curves, self.cost, budget, measure=measure, measurements=int(SEARCH["measurements"]))
        return found.allocation.widths

    def joint(self, widths: Mapping[str, int]) -> tuple[Any, Any]:
        """Damage to metric and loss on each sample when all groups have these widths."""
        key = tuple(widths[group.name] for group in self.groups)
        if key not in self.joints:
            kept = self.work / f"joint-{'-'.join(map(str, key))}.npz"
            if not kept.exists():
                metric, loss = self.prober.damage(widths)
                np.savez_compressed(kept, metric=metric, loss=loss)
            self.joints[key] = np.load(kept)["metric"], np.load(kept)["loss"]
        return self.joints[key]


def _mean(values: Any) -> list[float]:
    """Mean and its standard error."""
    return [float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5)]


def _at(levels: tuple[float, ...], sparsity: float) -> int:
    return int(np.argmin(np.abs(np.array(levels) - sparsity)))


def main() -> None:
    """Run what is not done yet, and compare."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--blocks", type=int, default=10)
    parser.add_argument("--fast-before", type=int, nargs="*", default=[2], help="blocks before which fast scans run")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--stage", type=int, help="samples between two looks of a race")
    parser.add_argument("--stop-after", type=int, help="blocks to run; the rest is left out")
    parser.add_argument("--work", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    job = load(given)
    if given.stage is not None:
        job = replace(job, rule=replace(job.rule, stage=given.stage))
    bench = Bench(job, given.work, given.blocks)
    last = bench.blocks if given.stop_after is None else min(given.stop_after, bench.blocks)
    for number in range(last + 1):
        if number in given.fast_before:
            bench.run_fast(number, given.ways)
        if number < last and not (given.work / f"block-{number}.json").exists():
            bench.exhaustive_block(number)
    settings: Mapping[str, Any] = {
        "network": given.network,
        "samples": bench.samples,
        "metric": bench.metric.name,
        "tolerance": given.tolerance,
        "groups": len(bench.groups),
        "sparsities": SPARSITIES,
        "racing": repr(job.rule),
        "local_search": SEARCH,
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
