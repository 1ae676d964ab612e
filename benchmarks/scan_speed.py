"""A fast scan of ResNet-20 beside the exhaustive one by full forward passes: work, time, and the same thresholds.

The exhaustive scan is timed on a part of the samples and its time scaled up; thresholds are compared with those of all
samples by replay, which gives the exhaustive scan's damages (tests/sensitivity/test_replay.py).

python benchmarks/scan_speed.py --weights resnet20_cifar10.safetensors --images test.parquet --samples 5000 \
    --out benchmarks/scan
"""

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

import secateur as sc
from secateur.cli.data_sources import parquet_images
from secateur.criteria.criterion import needs_of
from secateur.data import Batch, as_batches
from secateur.measures.evaluate import evaluate
from secateur.measures.metrics import resolve_loss, resolve_metric
from secateur.sensitivity.probe import Probe, probe
from secateur.sensitivity.racing import Racing
from secateur.sensitivity.replay import Replay
from secateur.sensitivity.result import Scan
from secateur.sensitivity.scan import SPARSITIES, measure_curves
from secateur.surgery.plan import plan_widths
from secateur.zoo.resnet import resnet20

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def macs_of(run: Any) -> int:
    """Multiply-adds of what `run` does."""
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops()) // 2


def suffix_macs(prober: Probe, replay: Replay, batch: Batch) -> tuple[int, dict[str, int]]:
    """Multiply-adds for one sample: of the whole model, and of what follows each group's first consumer."""
    first = Batch((batch.args[0][:1].clone(),), {}, batch.targets[:1])
    plans = {g.name: plan_widths(prober.groups, prober.scores, {g.name: g.width}) for g in prober.groups}
    changes = {name: prober.change(plan) for name, plan in plans.items()}
    whole = macs_of(lambda: list(replay.outputs(first, [next(iter(changes.values()))])))
    return whole, {
        name: macs_of(lambda c=change: list(replay.outputs(first, [c, c]))) - whole for name, change in changes.items()
    }


def timed(run: Any) -> tuple[Scan, dict[str, float]]:
    """The result of a scan, with its seconds by the clock and of the processor."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = run()
    return found, {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}


def arguments() -> argparse.Namespace:
    """From the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--timed", type=int, default=125, help="samples on which the exhaustive scan is timed")
    parser.add_argument("--tolerance", type=float, default=0.02)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def main() -> None:
    """Scan in four ways and compare."""
    given = arguments()
    torch.set_num_threads(given.threads)
    model = resnet20()
    model.load_state_dict(load_file(given.weights))
    model.eval()
    raw, targets = parquet_images(given.images, 0, given.samples)
    images = (raw.float() / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    data = as_batches([(x, y) for x, y in zip(images.split(125), targets.split(125), strict=True)], "validation")
    program = sc.trace(model, (images[:2],))
    groups = [g for g in sc.find_groups(program) if g.exact]
    scores = sc.score(groups, sc.collect(model, groups, needs=needs_of(sc.Magnitude())), sc.Magnitude())
    metric, loss = resolve_metric("accuracy"), resolve_loss("cross_entropy")
    baseline = evaluate(model, data, metric=metric, loss=loss)
    fast = probe(model, groups, scores, data, metric=metric, loss=loss, baseline=baseline, program=program)
    few = as_batches([(images[: given.timed], targets[: given.timed])], "a part of validation")
    slow = probe(
        model, groups, scores, few, metric=metric, loss=loss, baseline=evaluate(model, few, metric=metric, loss=loss)
    )
    assert fast.replay is not None
    whole, suffix = suffix_macs(fast, fast.replay, next(iter(data)))
    rule = Racing((given.tolerance,))
    part, exhaustive = timed(lambda: measure_curves(slow))
    points = sum(len(curve.widths) - 1 for curve in part.values())
    # By each point's samples, all of which run the whole model.
    exhaustive = {key: seconds * given.samples / given.timed for key, seconds in exhaustive.items()}
    base = exhaustive | {"macs": whole * points * given.samples, "points": points, "samples": points * given.samples}
    ways = {
        "replay": lambda: measure_curves(fast),
        "replay and racing": lambda: measure_curves(fast, racing=rule),
        "replay, racing and bisection": lambda: measure_curves(fast, racing=Racing((given.tolerance,), bisect=True)),
    }
    rows: dict[str, Any] = {"exhaustive": base}
    reference: Scan | None = None
    for name, run in ways.items():
        found, row = timed(run)
        seen = {group: int(curve.seen()[1:].sum()) for group, curve in found.items()}
        reference = reference or found
        exact, thresholds = reference.thresholds(given.tolerance), found.thresholds(given.tolerance)
        steps = [
            abs(reference[g].sparsities.index(exact[g]) - reference[g].sparsities.index(thresholds[g])) for g in exact
        ]
        passes = 1 if name != "replay, racing and bisection" else len(SPARSITIES).bit_length()
        macs = sum(suffix[group] * count for group, count in seen.items()) + whole * given.samples * passes
        rows[name] = row | {
            "macs": macs,
            "points": sum(len(curve.widths) - 1 for curve in found.values()),
            "samples": sum(seen.values()),
            "groups_with_the_same_threshold": float(np.mean([s == 0 for s in steps])),
            "groups_within_one_step": float(np.mean([s <= 1 for s in steps])),
        }
        print(name, json.dumps(rows[name]), flush=True)
    for row in rows.values():
        row["macs_ratio"], row["wall_ratio"] = base["macs"] / row["macs"], base["wall_s"] / row["wall_s"]
        row["cpu_ratio"] = base["cpu_s"] / row["cpu_s"]
    settings = {"samples": given.samples, "tolerance": given.tolerance, "groups": len(groups), "threads": given.threads}
    system = {"torch": torch.__version__, "machine": platform.machine(), "batch": 125, "sparsities": SPARSITIES}
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "resnet20.json").write_text(json.dumps({**settings, **system, "ways": rows}, indent=1) + "\n")
    print(json.dumps({name: {k: v for k, v in row.items() if "ratio" in k} for name, row in rows.items()}, indent=1))


if __name__ == "__main__":
    main()
