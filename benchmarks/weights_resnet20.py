"""Single weights of ResNet-20 made zero without training, in every layer alike: each method, with and without BN.

python benchmarks/weights_resnet20.py --data DIR --weights FILE --out FILE
"""

import argparse
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from cifar10 import Images, calibration_images, read_cifar10, trained_resnet20
from points import Cell, Points
from recording import save_report
from torch import Tensor, nn

import secateur as sc

CALIBRATION_IMAGES = 2000


@dataclass(frozen=True)
class Way:
    """A method as its paper has it.

    Attributes:
        method: of `sc.Sparsity`.
        asymmetric: values make up for what the layers before have lost; False: masked values stay as they are.
        per_row: an unstructured mask compares the weights of a row, as Wanda's paper does; else those of a layer.
    """

    method: Any
    asymmetric: bool = True
    per_row: bool = False


WAYS = {
    "ALPS": Way(sc.ALPS()),
    "OBC": Way(sc.OBC()),
    "SparseGPT": Way(sc.SparseGPT()),
    "magnitude, refitted": Way(sc.Masked(refit=True)),
    "magnitude": Way(sc.Masked(), asymmetric=False),
    "Wanda": Way(sc.Masked("wanda"), asymmetric=False, per_row=True),
}
PATTERNS: dict[str, tuple[float, Any]] = {
    "50%": (0.5, sc.Unstructured()),
    "80%": (0.8, sc.Unstructured()),
    "2:4": (0.5, sc.NM(2, 4)),
}


def sparse(model: nn.Module, inputs: list[Tensor], cell: Cell, leave: tuple[str, ...]) -> nn.Module:
    """The network of one cell of the table: pattern, method and column."""
    pattern, name, column = cell
    level, places = PATTERNS[pattern]
    way = WAYS[name]
    if way.per_row and isinstance(places, sc.Unstructured):
        places = sc.Unstructured(per_row=True)
    wanted = sc.Sparsity(level, places, way.method, leave=leave)
    how = {"recalibrated": column == "BN", "asymmetric": way.asymmetric}
    return sc.sparsify(model, wanted, calibration=inputs, **how).model


def run(model: nn.Module, train: Images, part: Images, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Accuracy lost on `part` in points, and CPU seconds that a method takes, after each cell."""
    points = Points(model, part)
    seconds: dict[Cell, list[float]] = {}
    cells = list(itertools.product(options.patterns, options.methods, options.columns))
    for seed, cell in itertools.product(options.seeds, cells):
        inputs = [x for x, _ in calibration_images(train, seed, batch=100, count=CALIBRATION_IMAGES)]
        started = time.process_time()
        found = sparse(model, inputs, cell, tuple(options.leave))
        seconds.setdefault(cell, []).append(round(time.process_time() - started, 1))
        points.note(seed, cell, found)
        report = points.report(options.seeds)
        for (pattern, name, column), spent in seconds.items():
            report["points_lost"][pattern][name][column]["cpu_seconds"] = spent
        yield report


def main() -> None:
    """Measure on the test half, or, to choose a setting, on the validation half."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--patterns", nargs="+", choices=list(PATTERNS), default=list(PATTERNS))
    parser.add_argument("--methods", nargs="+", choices=list(WAYS), default=list(WAYS))
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
        "zero": "the same fraction of each of the 20 weights that is not left dense; no training, no labels",
        "left_dense": options.leave,
        "unit": "points of accuracy lost, paired with the dense network; mean over seeds",
    }
    model = trained_resnet20(options.weights)
    for result in run(model, read_cifar10(options.data, "train"), part, options):
        save_report(options.out, {"protocol": protocol, **result})


if __name__ == "__main__":
    main()
