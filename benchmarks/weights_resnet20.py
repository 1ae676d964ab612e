"""Single weights of ResNet-20 made zero without training, in every layer alike: each method, with and without BN.

python benchmarks/weights_resnet20.py --data DIR --weights FILE --out FILE
"""

import argparse
import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from cifar10 import CALIBRATION_IMAGES, Images, calibration_images, read_cifar10, trained_resnet20
from points import Points
from recording import save_report
from torch import nn

import secateur as sc

METHODS: dict[str, Any] = {
    "OBC": sc.OBC(),
    "SparseGPT": sc.SparseGPT(),
    "magnitude, refitted": sc.Masked(refit=True),
    "magnitude": sc.Masked(),
    "Wanda": sc.Masked("wanda"),
}
# Wanda compares weights of one row, as its paper does; all others those of a layer.
PATTERNS: dict[str, tuple[float, Any]] = {
    "80%": (0.8, sc.Unstructured()),
    "2:4": (0.5, sc.NM(2, 4)),
}


def run(model: nn.Module, train: Images, part: Images, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Accuracy lost on `part` in points, and seconds that a method takes, after each seed."""
    points = Points(model, part)
    seconds: dict[tuple[str, str], list[float]] = {}
    for done, seed in enumerate(options.seeds, start=1):
        inputs = [x for x, _ in calibration_images(train, seed)]
        for pattern, name in itertools.product(options.patterns, options.methods):
            level, places = PATTERNS[pattern]
            if name == "Wanda" and isinstance(places, sc.Unstructured):
                places = sc.Unstructured(per_row=True)
            wanted = sc.Sparsity(level, places, METHODS[name], leave=tuple(options.leave))
            for column in options.columns:
                started = time.process_time()
                found = sc.sparsify(model, wanted, calibration=inputs, recalibrated=column == "BN")
                seconds.setdefault((pattern, name), []).append(round(time.process_time() - started, 1))
                points.note(seed, (pattern, name, column), found.model)
        report = points.report(options.seeds[:done])
        for (pattern, name), spent in seconds.items():
            report["points_lost"][pattern][name]["cpu_seconds"] = spent
        yield report


def main() -> None:
    """Measure on the test half, or, to choose a setting, on the validation half."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--patterns", nargs="+", choices=list(PATTERNS), default=list(PATTERNS))
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--columns", nargs="+", choices=["none", "BN"], default=["none", "BN"])
    parser.add_argument("--leave", nargs="*", default=[], help="weights that stay dense")
    parser.add_argument("--images", type=int, default=5000, help="of the part, the first so many")
    parser.add_argument("--part", choices=["validation", "test"], default="test")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    x, y = read_cifar10(options.data, options.part)
    part = x[: options.images], y[: options.images]
    protocol = {
        "part": options.part,
        "images": options.images,
        "calibration_images": CALIBRATION_IMAGES,
        "zero": "the same fraction of each of the 20 weights, no training, no labels",
        "left_dense": options.leave,
        "unit": "points of accuracy lost, paired with the dense network; mean over seeds",
    }
    model = trained_resnet20(options.weights)
    for result in run(model, read_cifar10(options.data, "train"), part, options):
        save_report(options.out, {"protocol": protocol, **result})


if __name__ == "__main__":
    main()
