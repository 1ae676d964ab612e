"""What a result needs to be checked: the command, versions, and errors of means."""

import json
import platform
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def save_report(path: Path, report: dict[str, Any]) -> None:
    """Write `report` as JSON, after the command (without folders) and the versions that made it."""
    command = " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *(Path(a).name for a in sys.argv[1:])])
    versions = {"python": platform.python_version(), "torch": torch.__version__, "threads": torch.get_num_threads()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"command": command, "versions": versions, **report}, indent=1) + "\n")


def paired(before: Tensor, after: list[Tensor], digits: int = 4) -> dict[str, Any]:
    """Mean loss against the dense model, with its standard errors over test samples and over calibration seeds.

    Args:
        before: one value a test sample.
        after: the same for each seed.
        digits: of the numbers given back.
    """
    damage = torch.stack([before - values for values in after])
    seeds = damage.mean(1)
    return {
        "lost": round(damage.mean().item(), digits),
        "error_over_samples": round(damage.mean(0).std().item() / damage.shape[1] ** 0.5, digits),
        "error_over_seeds": round(seeds.std().item() / len(seeds) ** 0.5, digits) if len(seeds) > 1 else None,
        "by_seed": [round(value, digits) for value in seeds.tolist()],
    }
