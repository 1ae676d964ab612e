"""Allocation of many groups with many levels, neighbours' widths multiplying: time, and how far from the best.

python benchmarks/allocation.py --out benchmarks/allocation/solver.json
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import scipy

import secateur as sc
from secateur.graph.polynomial import Polynomial

WIDTHS = tuple(range(256, 0, -4))


def chain(groups: int) -> Iterator[tuple[int, ...]]:
    """A plain network: every layer reads the one before."""
    return ((k, k + 1) for k in range(groups - 1))


def streams(groups: int) -> Iterator[tuple[int, ...]]:
    """A residual network: every tenth group is a stream of the nine after it, and tied to the next one."""
    for k in range(groups):
        stream = k - k % 10
        if k != stream:
            yield stream, k
        elif k:
            yield stream - 10, stream


def branches(groups: int) -> Iterator[tuple[int, ...]]:
    """A residual network whose branches may go: a stream, then (branch, inner) pairs."""
    yield from ((0, k, k + 1) for k in range(1, groups - 1, 2))


SHAPES = {"chain": chain, "streams": streams, "branches": branches}


def case(shape: str, groups: int, levels: int, seed: int) -> tuple[dict[str, sc.Curve], Polynomial, Polynomial]:
    """Curves of very different groups, multiply-adds and parameters."""
    rng = np.random.default_rng(seed)
    names = [f"g{k:03d}" for k in range(groups)]
    curves = {}
    for k, name in enumerate(names):
        is_branch = shape == "branches" and k % 2
        widths = (1, 0) if is_branch else WIDTHS[:: len(WIDTHS) // levels][:levels]
        damage = np.concatenate([[0.0], np.cumsum(rng.exponential(rng.lognormal(0, 1.5), len(widths) - 1))])
        table = np.repeat(damage[:, None], 2, axis=1)
        curves[name] = sc.Curve(name, widths, tuple(1 - w / widths[0] for w in widths), table, table)
    full = {name: curve.widths[0] for name, curve in curves.items()}
    terms = [tuple(names[k] for k in scope) for scope in SHAPES[shape](groups)]
    # Early layers have large images: many multiply-adds, few parameters.
    macs = {scope: float(9 * 4 ** int(rng.integers(2, 6))) for scope in terms} | {(n,): 100.0 for n in names}
    params = dict.fromkeys(terms, 9.0) | {(n,): 2.0 for n in names}
    return curves, Polynomial(macs, full), Polynomial(params, full)


def main() -> None:
    """Time every shape and write the results."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--groups", type=int, default=500)
    parser.add_argument("--levels", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--limit", type=float, default=sc.LeastDamage().limit_s, help="seconds; the end takes more")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    rows = []
    for shape in SHAPES:
        for share in (0.7, 0.5, 0.3):
            runs = []
            for seed in range(given.seeds):
                curves, macs, _ = case(shape, given.groups, given.levels, seed)
                bound = share * macs({})
                wall, cpu = time.perf_counter(), time.process_time()
                found = sc.allocate(curves, macs, bound, objective=sc.LeastDamage(limit_s=given.limit))
                runs.append((time.perf_counter() - wall, time.process_time() - cpu, found.gap))
                assert found.cost <= bound
            row = {
                "shape": shape, "macs": share,
                "wall_s": statistics.median(r[0] for r in runs), "worst_wall_s": max(r[0] for r in runs),
                "cpu_s": statistics.median(r[1] for r in runs), "worst_cpu_s": max(r[1] for r in runs),
                "worst_gap": max(r[2] for r in runs),
            }  # fmt: skip
            rows.append(row)
            print(row, flush=True)
    about = {"python": platform.python_version(), "numpy": np.__version__, "scipy": scipy.__version__}
    settings = {"groups": given.groups, "levels": given.levels, "seeds": given.seeds, "limit_s": given.limit}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps({**settings, **about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
