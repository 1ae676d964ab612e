"""Hold the zoo to the law: each network in a process of its own, with a time limit.

python tests/zoo/run.py [--only GLOB] [--limit_s 300] [--jobs 2] [--out zoo.jsonl]
python tests/zoo/run.py --table docs/SUPPORTED.md zoo.jsonl ...   (writes the table of files made before)

It ends with 1 where a network is neither exact nor flagged.
"""

import argparse
import dataclasses
import fnmatch
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from zoo import summary


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("results", nargs="*", type=Path, help="files of verdicts to summarise; nothing is run")
    parser.add_argument("--table", type=Path, help="where to write the table of networks")
    parser.add_argument("--only", default="*")
    parser.add_argument("--limit_s", type=float, default=300)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("zoo.jsonl"))
    parser.add_argument("--one")
    parser.add_argument("--quick", action="store_true", help="one plan a network")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(_examine(options.one, quick=options.quick)))
        return
    files = options.results or [options.out]
    if not options.results:
        _run(options)
    results = summary.read(files)
    print(summary.table(results))
    if options.table:
        options.table.write_text(summary.supported(results, "make test-zoo"))
    sys.exit(any(summary.kind(r) not in {"exact", "flagged"} for r in results))


def _run(options: argparse.Namespace) -> None:
    from zoo.table import ENTRIES

    names = [e.name for e in ENTRIES if fnmatch.fnmatch(e.name, options.only)]
    with ThreadPoolExecutor(options.jobs) as pool, options.out.open("a") as out:
        jobs = [pool.submit(in_process, name, options.limit_s, quick=options.quick) for name in names]
        for number, job in enumerate(as_completed(jobs), 1):
            verdict = job.result()
            out.write(json.dumps(verdict) + "\n")
            out.flush()
            print(f"{number}/{len(names)} {line(verdict)}", flush=True)


def _examine(name: str, *, quick: bool) -> dict[str, object]:
    import warnings

    warnings.simplefilter("ignore")
    from zoo.law import examine
    from zoo.table import ENTRIES

    return dataclasses.asdict(examine(next(e for e in ENTRIES if e.name == name), every_plan=not quick))


def in_process(name: str, limit_s: float, *, quick: bool = False) -> dict[str, object]:
    """The verdict on one network; a crash or a time-out is a verdict too."""
    command = [sys.executable, __file__, "--one", name, *(["--quick"] if quick else [])]
    settings = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=limit_s, check=False, env=os.environ | settings
        )
    except subprocess.TimeoutExpired:
        return {"name": name, "exact": False, "failure": f"not finished after {limit_s:.0f} s"}
    try:
        return json.loads(done.stdout.strip().splitlines()[-1])  # type: ignore[no-any-return]
    except (ValueError, IndexError):
        return {"name": name, "exact": False, "failure": f"crashed: {done.stderr.strip()[-400:]}"}


def line(verdict: dict[str, object]) -> str:
    """One line for people."""
    if not verdict["exact"]:
        return f"FAILED {verdict['name']} ({verdict.get('coverage', 0):.0%}): {verdict['failure']}"
    return (
        f"exact  {verdict['name']}: {verdict['groups']} groups, coverage {verdict['coverage']:.1%}, "
        f"MACs left {verdict['macs_left']:.0%}, {verdict['total_s']} s"
    )


if __name__ == "__main__":
    main()
