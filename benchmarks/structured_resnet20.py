"""Channels of ResNet-20 removed without training: each criterion with each repair, and torch-pruning.

python benchmarks/structured_resnet20.py --data DIR --weights FILE --torch-pruning DIR --out FILE
"""

import argparse
import copy
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch_pruning_resnet20
from cifar10 import CALIBRATION_IMAGES, Images, calibration_images, read_cifar10, trained_resnet20
from oneshot import CRITERIA, REPAIRS, Setting
from points import Points
from recalibration import recalibrate
from recording import save_report
from torch import Tensor, nn

import secateur as sc


def run(
    model: nn.Module, train: Images, part: Images, options: argparse.Namespace, peer: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Accuracy lost on `part` in points, after each seed."""
    points = Points(model, part)
    for done, seed in enumerate(options.seeds, start=1):
        calibration = calibration_images(train, seed)
        inputs = [x for x, _ in calibration]
        setting = Setting(model, calibration, options.criteria, lambda group: ".conv1" in group.name, seed)
        of_peer = {name: torch_pruning_resnet20.scored(model, calibration, name) for name in peer}
        for fraction in options.fractions:
            for criterion in options.criteria:
                plan = setting.plan(criterion, fraction)
                small = setting.cut(plan)
                for name in options.columns:
                    repaired = REPAIRS[name](setting, plan, copy.deepcopy(small))
                    points.note(seed, (f"{fraction:.0%}", criterion, name), repaired)
            for criterion, scores in of_peer.items():
                row = f"{fraction:.0%}", f"torch-pruning: {criterion}"
                small = torch_pruning_resnet20.pruned(model, scores, fraction)
                points.note(seed, (*row, "BN"), recalibrate(small, inputs))
                if "LS+BN" in options.columns:
                    # The same channels, removed by this library, whose repair reads its own plan.
                    plan = sc.plan(setting.groups, in_groups(scores, setting), sparsity=fraction)
                    points.note(seed, (*row, "LS+BN"), REPAIRS["LS+BN"](setting, plan, setting.cut(plan)))
        yield points.report(options.seeds[:done])


def in_groups(scores: Mapping[str, Tensor], setting: Setting) -> dict[str, Tensor]:
    """Scores of blocks by the names of the groups of their inner channels."""
    return {group.name: scores[group.name.partition(".conv1")[0]].double() for group in setting.groups}


def main() -> None:
    """Measure on the test half, or, to choose a setting, on the validation half."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--torch-pruning", help="folder that holds torch-pruning 1.6.1")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.25, 0.5])
    parser.add_argument("--criteria", nargs="*", choices=list(CRITERIA), default=list(CRITERIA))
    parser.add_argument("--columns", nargs="+", choices=list(REPAIRS), default=list(REPAIRS))
    parser.add_argument("--peer-criteria", nargs="+", help="of torch-pruning's criteria, these alone")
    parser.add_argument("--images", type=int, default=5000, help="of the part, the first so many")
    parser.add_argument("--part", choices=["validation", "test"], default="test")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    peer: Sequence[str] = ()
    if options.torch_pruning:
        sys.path.insert(0, options.torch_pruning)
        peer = options.peer_criteria or list(torch_pruning_resnet20.scorers())
    x, y = read_cifar10(options.data, options.part)
    part = x[: options.images], y[: options.images]
    protocol = {
        "part": options.part,
        "images": options.images,
        "calibration_images": CALIBRATION_IMAGES,
        "removed": "the same fraction of the inner channels of all nine blocks, no training",
        "unit": "points of accuracy lost, paired with the dense network; mean over seeds",
    }
    model = trained_resnet20(options.weights)
    for result in run(model, read_cifar10(options.data, "train"), part, options, peer):
        save_report(options.out, {"protocol": protocol, **result})


if __name__ == "__main__":
    main()
