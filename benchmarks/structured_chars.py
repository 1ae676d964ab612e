"""Hidden units of an LSTM, heads and feed-forward units of a transformer, removed without training.

python benchmarks/structured_chars.py --text FILE --models DIR --network lstm --out FILE
"""

import argparse
import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from char_models import NETWORKS
from char_text import Text, bits_of_windows, random_windows, read_text, windows
from oneshot import CRITERIA, Setting, no_repair, whole_repair
from recording import paired, save_report
from safetensors.torch import load_file
from torch import Tensor, nn

import secateur as sc
from secateur.measures.latency import time_models, verdict

# Kind of unit -> fraction removed from each group; a quarter of the heads leaves 30 % of all to the feed-forward.
REMOVED = {"lstm": {"hidden": 0.5}, "transformer": {"head": 0.25, "neuron": 0.34}}
REPAIRS = {"none": no_repair, "repair": whole_repair}
CALIBRATION_WINDOWS = 256


def trained(network: str, models: Path, text: Text) -> tuple[nn.Module, dict[str, Any]]:
    """The network with the weights that `train_char_models.py` saved, and their recipe."""
    model = NETWORKS[network](len(text.alphabet))
    model.load_state_dict(load_file(models / f"{network}-0.safetensors"))
    return model.eval(), json.loads((models / f"{network}-0.json").read_text())


def run(
    model: nn.Module,
    network: str,
    text: Text,
    part: tuple[Tensor, Tensor],
    seeds: Sequence[int],
    criteria: Sequence[str],
) -> dict[str, Any]:
    """Bits per character lost on `part`, and what one of the cut models costs."""
    before = bits_of_windows(model, part)
    after: dict[tuple[str, str], list[Tensor]] = {}
    for seed in seeds:
        drawn = random_windows(text.train, CALIBRATION_WINDOWS, torch.Generator().manual_seed(seed))
        calibration = list(zip(drawn[0].split(64), drawn[1].split(64), strict=True))
        setting = Setting(
            model,
            calibration,
            criteria,
            lambda g: g.exact and g.granularity in REMOVED[network] and g.name != "embedding",
            seed,
        )
        fractions = {group.name: REMOVED[network][group.granularity] for group in setting.groups}
        for criterion in criteria:
            plan = setting.plan(criterion, fractions)
            small = setting.cut(plan)
            for name, repaired in REPAIRS.items():
                after.setdefault((criterion, name), []).append(
                    bits_of_windows(repaired(setting, plan, copy.deepcopy(small)), part)
                )
                print(seed, criterion, name, (after[criterion, name][-1] - before).mean().item(), flush=True)
    table: dict[str, Any] = {}
    for (criterion, name), values in after.items():
        table.setdefault(criterion, {})[name] = paired(-before, [-v for v in values])
    return {
        "dense_bits_per_character": round(before.mean().item(), 4),
        "bits_per_character_lost": table,
        "cost": cost(model, small, part),
    }


def cost(model: nn.Module, small: nn.Module, part: tuple[Tensor, Tensor]) -> dict[str, Any]:
    """Multiply-adds of a window, and interleaved timings of one and of 64."""
    sizes = [sc.measure(m, (part[0][:1],)) for m in (model, small)]
    found: dict[str, Any] = {"macs": [s.macs for s in sizes], "params": [s.params for s in sizes]}
    for batch in (1, 64):
        dense, cut = time_models([model, small], (part[0][:batch],), blocks=21, block_s=0.05)
        found[f"latency_of_{batch}"] = {
            "dense_ms": {"median": round(1e3 * dense.median_s, 3), "iqr": round(1e3 * dense.iqr_s, 3)},
            "cut_ms": {"median": round(1e3 * cut.median_s, 3), "iqr": round(1e3 * cut.iqr_s, 3)},
            "verdict": verdict(dense, cut),
        }
    return found


def main() -> None:
    """Measure on the test part, or, to choose a setting, on the validation part."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--models", type=Path, required=True, help="where train_char_models.py saved")
    parser.add_argument("--network", choices=list(NETWORKS), required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--criteria", nargs="+", choices=list(CRITERIA), default=list(CRITERIA))
    parser.add_argument("--windows", type=int, help="of the part, the first so many")
    parser.add_argument("--part", choices=["validation", "test"], default="test")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    text = read_text(options.text)
    model, recipe = trained(options.network, options.models, text)
    x, y = windows(getattr(text, options.part))
    part = x[: options.windows], y[: options.windows]
    result = run(model, options.network, text, part, options.seeds, options.criteria)
    protocol = {
        "part": options.part,
        "windows_of_128": len(part[0]),
        "calibration_windows": CALIBRATION_WINDOWS,
        "calibration_seeds": options.seeds,
        "trained_models": "one, the same for all calibration seeds",
        "removed": REMOVED[options.network],
        "unit": "bits per character gained, paired with the dense network window by window; mean over seeds",
    }
    save_report(options.out, {"protocol": protocol, "training": recipe, **result})


if __name__ == "__main__":
    main()
