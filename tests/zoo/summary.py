"""What a run of the zoo found, for people: a table of 80 columns, and docs/SUPPORTED.md."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

Result = Mapping[str, Any]
KINDS = ("exact", "flagged", "refused", "wrong", "broken", "slow")
PACKAGES = ("torch", "torchvision", "timm", "transformers")
REFUSALS = ("SurgeryError", "TraceError", "PlanError", "NumericalError", "AssertionError: no group")


def read(paths: Iterable[Path]) -> list[Result]:
    """The last verdict on each network in files of one JSON object a line, by name."""
    lines = (line for path in paths for line in path.read_text().splitlines() if line.strip())
    found = {result["name"]: result for result in map(json.loads, lines)}
    return [found[name] for name in sorted(found)]


def kind(result: Result) -> str:
    """One word for a verdict.

    Exact: every group holds the law. Flagged: every group that is not flagged does. Refused: nothing was cut, with
    an error that says why. Wrong: cut, and the outputs differ. Slow: not finished in time. Broken: anything else.

    >>> kind({"exact": True, "flagged": 2}), kind({"exact": False, "failure": "not finished after 3 s"})
    ('flagged', 'slow')
    """
    failure = result.get("failure", "")
    if result["exact"]:
        return "flagged" if result.get("flagged") else "exact"
    if failure.startswith("not finished"):
        return "slow"
    if failure.startswith(REFUSALS):
        return "refused"
    return "wrong" if "differ" in failure else "broken"


def coverage(results: Iterable[Result]) -> float:
    """Share of removable positions that lie in a group, over all networks together; 1 where there are none.

    >>> coverage([{"removable": 3, "fixed": 1}, {"removable": 4, "fixed": 0}, {}])
    0.875
    """
    pairs = [(r.get("removable", 0), r.get("fixed", 0)) for r in results]
    free, lost = sum(free for free, _ in pairs), sum(lost for _, lost in pairs)
    return free / (free + lost) if free + lost else 1.0


def table(results: Sequence[Result], most_causes: int = 12) -> str:
    """Verdicts and coverage of each collection, and the top causes of what is fixed."""
    families: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        families[result["name"].partition("/")[0]].append(result)
    lines = [f"{'':13}{'networks':>9}" + "".join(f"{k:>8}" for k in KINDS) + f"{'coverage':>10}"]
    for family, own in [*families.items(), ("all", list(results))]:
        counts = Counter(map(kind, own))
        numbers = "".join(f"{counts[k]:8d}" for k in KINDS)
        lines.append(f"{family:13}{len(own):9d}{numbers}{coverage(own):10.1%}")
    return "\n".join([*lines, "", *_causes(results, most_causes)])


def _causes(results: Sequence[Result], most: int) -> list[str]:
    positions: Counter[str] = Counter()
    networks: Counter[str] = Counter()
    for result in results:
        positions.update(result.get("causes", {}))
        networks.update(list(result.get("causes", {})))
    total = sum(r.get("removable", 0) + r.get("fixed", 0) for r in results) or 1
    lines = ["fixed, of all removable positions (networks)"]
    for cause, count in positions.most_common(most):
        lines.append(f"{count / total:8.2%} {networks[cause]:4d}  {_clipped(cause or 'no reason given', 64)}")
    return lines


def supported(results: Sequence[Result], command: str) -> str:
    """The text of docs/SUPPORTED.md: a row for each network."""
    rows = [
        "# Networks that secateur is tried on",
        "",
        f"Made by `{command}` with {_versions()}.",
        "Each network is built with random weights, small where its library allows that, and held to the law of",
        "surgery: the cut network equals the network whose removed units are masked, to 1e-9 in float64 (2e-5 where it",
        "rounds inside), at another batch size too; its predicted cost is the measured one, it is the same when saved",
        "and loaded, and it can be cut again. At least one random plan each, which removes half of every group.",
        "*Exact*: that holds for every group. *Flagged*: it holds for every group but those that the library says",
        "are not exact (something normalises over their units); these are cut only on request.",
        "*Coverage*: the share of weight dimensions, in positions, that lie in a group; positions fixed by the",
        "meaning of the network (inputs, outputs, kernel taps, rows of tables) do not count.",
        "",
        *_kinds(results),
        "",
        "| network | law | groups | flagged | coverage | main cause of what is fixed |",
        "|---|---|---:|---:|---:|---|",
        *map(_row, results),
    ]
    return "\n".join(rows) + "\n"


def _kinds(results: Sequence[Result]) -> list[str]:
    counts = Counter(map(kind, results))
    said = ", ".join(f"{counts[k]} {k}" for k in KINDS if counts[k])
    return [f"{len(results)} networks: {said}. Coverage over all together: {coverage(results):.1%}."]


def _row(result: Result) -> str:
    causes = result.get("causes", {})
    cause = max(causes, key=causes.__getitem__) if causes else ""
    law = kind(result) if result["exact"] else f"{kind(result)}: {_clipped(result.get('failure', ''), 80)}"
    share = f"{result['coverage']:.1%}" if "coverage" in result else ""
    cells = [result["name"], law, str(result.get("groups", "")), str(result.get("flagged", "")), share, cause]
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _clipped(text: str, width: int) -> str:
    """`text` in one line, cut short with dots.

    >>> _clipped("a long text", 8)
    'a lon...'
    """
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 3] + "..."


def _versions() -> str:
    def one(package: str) -> str:
        try:
            return f"{package} {version(package).partition('+')[0]}"
        except PackageNotFoundError:
            return f"no {package}"

    return ", ".join(map(one, PACKAGES))
