"""What a store saves: a second scan like the first, and one that goes on where another was left.

python benchmarks/second_scan.py --network resnet20 --weights resnet20_cifar10.safetensors --data test.parquet \
    --samples 5000 --tolerance 0.02 --out benchmarks/scan/second.json
"""

import json
import platform
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from scan_networks import arguments, load

import secateur as sc
from secateur.criteria.criterion import needs_of
from secateur.sensitivity.racing import Racing
from secateur.storage.curve_store import CurveStore


def main() -> None:
    """Scan three times into one store: half of the groups, all of them, and all of them again; then without a race."""
    given = arguments(__doc__ or "").parse_args()
    torch.set_num_threads(1)
    job = load(given)
    program = sc.trace(job.model, (job.batches[0][0][:2],))
    groups = [group for group in sc.find_groups(program) if group.exact]
    scores = sc.score(groups, sc.collect(job.model, groups, needs=needs_of(sc.Magnitude())), sc.Magnitude())

    def run(chosen: Sequence[sc.Group], store: CurveStore, racing: Racing | None) -> dict[str, Any]:
        wall, cpu = time.perf_counter(), time.process_time()
        found = sc.scan(program, chosen, scores, job.batches, metric=job.metric, racing=racing, store=store)
        spent = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
        return spent | {"measured": found.tally.measured, "stored": found.tally.stored}

    result: dict[str, Any] = {"network": given.network, "samples": given.samples, "groups": len(groups), "threads": 1}
    result |= {"torch": torch.__version__, "machine": platform.machine()}
    for name, racing in (("racing", job.rule), ("all samples", None)):
        with tempfile.TemporaryDirectory() as folder, CurveStore.open(Path(folder) / "points.sqlite") as store:
            half = run(groups[::2], store, racing)
            rest = run(groups, store, racing)
            again = run(groups, store, racing)
        result[name] = {
            "half of the groups": half,
            "then all groups": rest,
            "again": again,
            "again_share_of_wall": again["wall_s"] / (half["wall_s"] + rest["wall_s"]),
            "again_share_of_cpu": again["cpu_s"] / (half["cpu_s"] + rest["cpu_s"]),
            "samples_measured_twice": half["measured"] + rest["measured"] + again["measured"] - again["stored"],
        }
        print(name, json.dumps(result[name], indent=1), flush=True)
    given.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
