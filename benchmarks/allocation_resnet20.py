"""ResNet-20 at half its multiply-adds without training: widths from measured curves, uniform, and by one threshold.

All ways remove the units that group OBS scores lowest, and repair alike; they differ in how many go from each group.

python benchmarks/allocation_resnet20.py --data DIR --weights FILE --out FILE
"""

import argparse
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cifar10 import CALIBRATION_IMAGES, Images, calibration_images, is_right, read_cifar10, trained_resnet20
from recording import paired, save_report
from torch import Tensor, nn
from torch.nn import functional

import secateur as sc
from secateur.allocation.knapsack import uniform_allocation

SPARSITIES = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875)
Widths = Mapping[str, int]


class Bench:
    """One calibration set and one draw of validation images."""

    def __init__(self, model: nn.Module, train: Images, validation: Images, seed: int) -> None:
        self.model, self.validation = model, validation
        self.calibration = calibration_images(train, seed)
        self.program = sc.trace(model, (validation[0][:2],))
        self.groups = sc.find_groups(self.program)
        self.cost = sc.costs(self.program, self.groups)
        self.units = self.scores(sc.GroupOBS())
        self.before = losses(model, validation)

    def scores(self, criterion: sc.Criterion) -> dict[str, Tensor]:
        """Scores of all units by the calibration images."""
        statistics = sc.collect(self.model, self.groups, self.calibration, needs=criterion.needs)
        return dict(sc.score(self.groups, statistics, criterion))

    def pruned(self, widths: Widths, reach: str = "all") -> nn.Module:
        """Cut to these widths and repaired."""
        sparsity = {g.name: 1 - widths.get(g.name, g.width) / g.width for g in self.groups}
        plan = sc.plan(self.groups, self.units, sparsity=sparsity)
        small = sc.cut(self.model, plan, program=self.program)
        inputs = [(x, None) for x, _ in self.calibration]
        sc.repair(small, self.model, plan, inputs, program=self.program, reach=reach)
        return small

    def damage(self, widths: Widths, images: int) -> tuple[float, float]:
        """Loss that the first so many validation images gain after cut and repair, and its standard error."""
        part = self.validation[0][:images], self.validation[1][:images]
        more = losses(self.pruned(widths), part) - self.before[:images]
        return more.mean().item(), more.std().item() / images**0.5

    def curves_after_repair(self, images: int) -> dict[str, sc.Curve]:
        """Each group alone at each sparsity, cut and repaired."""
        part = self.validation[0][:images], self.validation[1][:images]
        right = is_right(self.model, part)
        found = {}
        for group in self.groups:
            kept = [group.width - round(s * group.width) for s in SPARSITIES]
            rows = [(torch.zeros(images), torch.zeros(images))]
            for width in kept:
                small = self.pruned({group.name: width}, reach="cut")
                rows.append((right - is_right(small, part), losses(small, part) - self.before[:images]))
            lost, gained = (torch.stack([row[k] for row in rows]).double().numpy() for k in (0, 1))
            shares = tuple(1 - w / group.width for w in (group.width, *kept))
            found[group.name] = sc.Curve(group.name, (group.width, *kept), shares, lost, gained)
            print(group.name, found[group.name].mean_loss().round(3), flush=True)
        return found


@torch.no_grad()
def losses(model: nn.Module, data: Images, batch: int = 250) -> Tensor:
    """Cross-entropy of each image."""
    model.eval()
    pairs = zip(data[0].split(batch), data[1].split(batch), strict=True)
    return torch.cat([functional.cross_entropy(model(x), y, reduction="none") for x, y in pairs]).double()


def ways(bench: Bench, options: argparse.Namespace) -> Iterator[tuple[str, Widths]]:
    """Widths at the same budget, by name."""
    budget = sc.Budget(macs=options.macs)
    full = {group.name: group.width for group in bench.groups}
    yield "uniform", uniform_allocation(full, options.macs * bench.cost.macs({}), bench.cost.macs)
    for name, scores in {"Taylor": bench.scores(sc.Taylor()), "group OBS": bench.units}.items():
        threshold = sc.GlobalThreshold({group: values.double().numpy() for group, values in scores.items()})
        yield f"{name}, one threshold", sc.allocate(every_width(full), bench.cost, budget, objective=threshold).widths
    curves = sc.scan(bench.program, bench.groups, bench.units, batches(bench.validation), sparsities=SPARSITIES)
    yield "curves", sc.allocate(curves, bench.cost, budget).widths
    if options.after_repair:
        repaired = bench.curves_after_repair(options.curve_images)
        found = sc.allocate(repaired, bench.cost, budget)
        yield "curves after repair", found.widths
    if options.swaps:
        refined = sc.refine(
            found, repaired, bench.cost, budget, measurements=options.swaps,
            measure=lambda widths: bench.damage(widths, options.curve_images),
        )  # fmt: skip
        yield "curves after repair, local search", refined.allocation.widths


def every_width(full: Widths) -> dict[str, sc.Curve]:
    """Curves without damage that have a level for every width: a threshold needs no more."""
    found = {}
    for name, size in full.items():
        nothing = np.zeros((size, 1))
        shares = tuple(gone / size for gone in range(size))
        found[name] = sc.Curve(name, tuple(range(size, 0, -1)), shares, nothing, nothing)
    return found


def batches(data: Images, batch: int = 250) -> list[Images]:
    """Batches of images and labels."""
    return list(zip(data[0].split(batch), data[1].split(batch), strict=True))


def main() -> None:
    """Measure on the test half, or, to choose a setting, on validation images that no curve has seen."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--macs", type=float, default=0.5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--validation-images", type=int, default=2500, help="drawn for each seed")
    parser.add_argument("--curve-images", type=int, default=1000, help="of these, for curves after repair")
    parser.add_argument("--after-repair", action="store_true", help="curves measured after repair too")
    parser.add_argument("--swaps", type=int, default=0, help="local search from these, so many measurements")
    parser.add_argument("--part", choices=["validation", "test"], default="test")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = trained_resnet20(options.weights)
    train, (x, y) = read_cifar10(options.data, "train"), read_cifar10(options.data, "validation")
    test = read_cifar10(options.data, "test") if options.part == "test" else None
    rows: dict[str, dict[str, Any]] = {}
    for done, seed in enumerate(options.seeds, start=1):
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
        drawn, rest = order[: options.validation_images], order[options.validation_images :]
        fresh = test or (x[rest], y[rest])
        bench = Bench(model, train, (x[drawn], y[drawn]), seed)
        before = 100 * is_right(model, fresh)
        started = time.process_time()
        for name, widths in ways(bench, options):
            after = 100 * is_right(bench.pruned(widths), fresh)
            row = rows.setdefault(name, {"before": [], "after": [], "widths": [], "macs": []})
            row["before"].append(before)
            row["after"].append(after)
            row["widths"].append(dict(widths))
            row["macs"].append(round(bench.cost.macs(widths) / bench.cost.macs({}), 4))
            lost = (before - after).mean().item()
            print(
                f"{time.process_time() - started:.0f}s {seed} {name}: {lost:.2f} {row['macs'][-1]} {widths}", flush=True
            )
        save_report(
            options.out,
            {
                "part": options.part,
                "seeds": options.seeds[:done],
                "calibration_images": CALIBRATION_IMAGES,
                "unit": "points of accuracy lost, paired with the dense network; no training, all repaired",
                "ways": {
                    name: {
                        **paired_by_seed(row["before"], row["after"]),
                        "macs": row["macs"],
                        "widths": row["widths"],
                    }
                    for name, row in rows.items()
                },
            },
        )


def paired_by_seed(before: list[Tensor], after: list[Tensor]) -> dict[str, Any]:
    """As `paired`, where the images may differ from seed to seed."""
    return paired(torch.zeros_like(before[0]), [a - b for b, a in zip(before, after, strict=True)], 2)


if __name__ == "__main__":
    main()
