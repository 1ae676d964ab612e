"""Whether the cross-validated tolerance holds on fresh data: validation drawn again and again.

All damages are measured once on samples that the network was not trained on; each repetition draws validation
samples from them, chooses a budget by them alone, and is held against the rest.

python benchmarks/tolerance.py --network digits --out benchmarks/tolerance/digits.json
python benchmarks/tolerance.py --network resnet20 --data DIR --weights FILE --validation 2500 --out FILE
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cifar10 import calibration_images, read_cifar10, trained_resnet20
from recording import save_report
from torch import Tensor, nn
from torch.nn import functional

import secateur as sc
from secateur.allocation.limits import fraction_of
from secateur.allocation.selection import GRID
from secateur.allocation.thresholds import choose, cross_validate, folds, refine_budgets
from secateur.cli.data_sources import digits
from secateur.data import as_batches
from secateur.measures.evaluate import evaluate
from secateur.measures.metrics import resolve_loss, resolve_metric
from secateur.sensitivity.probe import Probe, probe
from secateur.sensitivity.scan import measure_curves
from secateur.types import Curve, Floats
from secateur.zoo.digits import digits_cnn

TRAINED_ON = 500
Widths = Mapping[str, int]
Batches = list[tuple[Tensor, Tensor]]


def trained(x: torch.Tensor, y: torch.Tensor, seed: int) -> nn.Module:
    """A network trained on these digits."""
    torch.manual_seed(seed)
    model = digits_cnn(16)
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    for _ in range(15):
        for part in torch.randperm(len(x)).split(50):
            optimizer.zero_grad()
            functional.cross_entropy(model(x[part]), y[part]).backward()
            optimizer.step()
    return model.eval()


class Pool:
    """Curves and joint damages of all samples that can be drawn."""

    def __init__(self, prober: Probe, curves: Mapping[str, Curve]) -> None:
        self.prober, self.curves = prober, curves
        self.known: dict[tuple[tuple[str, int], ...], Floats] = {}

    def joint(self, widths: Widths) -> Floats:
        """Damage of each sample of the pool with all groups cut at once."""
        key = tuple(sorted(widths.items()))
        if key not in self.known:
            self.known[key] = self.prober.damage(widths)[0]
        return self.known[key]

    def drawn(self, samples: np.ndarray[Any, np.dtype[np.int64]]) -> dict[str, Curve]:
        """The curves that these samples alone give."""
        return {
            n: sc.Curve(n, c.widths, c.sparsities, c.damage[:, samples], c.loss_damage[:, samples])
            for n, c in self.curves.items()
        }


def repetition(pool: Pool, cost: Any, tolerance: float, validation: int, rng: np.random.Generator) -> dict[str, Any]:
    """Choose a budget by some samples, and look at the others."""
    order = rng.permutation(len(pool.joint({})))
    held, fresh = np.sort(order[:validation]), np.sort(order[validation:])
    curves, parts = pool.drawn(held), folds(validation, 5, rng)
    dense = {name: curve.widths[0] for name, curve in curves.items()}

    def measured(budgets: Any) -> Any:
        return cross_validate(
            curves,
            budgets=budgets,
            cost=cost,
            joint=lambda widths, samples: pool.joint(widths)[held[samples]],
            folds=parts,
        )

    def fresh_damage(budget: float) -> float:
        found = sc.allocate(curves, cost, fraction_of(cost, None, dense, budget))
        return float(pool.joint(found.widths)[fresh].mean())

    picture, choice = refine_budgets(measured, GRID, lambda curve: choose(curve, tolerance))
    on_fresh = {budget: fresh_damage(budget) for budget in sorted({*picture.budgets}, reverse=True)}
    holding = [budget for budget, damage in on_fresh.items() if damage <= tolerance]
    # In hindsight too, a lucky budget beyond one that fails does not count.
    mild = [b for b in holding if all(on_fresh[other] <= tolerance for other in on_fresh if other >= b)]
    best = min(mild, default=1.0)
    return {
        "chosen": choice.budget,
        "best_in_hindsight": best,
        "damage_on_validation": round(choice.damage, 5),
        "damage_on_fresh": round(on_fresh.get(choice.budget, 0.0), 5),
        "exceeds": on_fresh.get(choice.budget, 0.0) > tolerance,
        "within_a_tenth_of_the_best": choice.budget <= best + 0.1,
    }


def digits_network(seed: int) -> tuple[nn.Module, Batches, Batches]:
    """A network trained on some digits, these, and the rest."""
    x, y = digits()
    model = trained(x[:TRAINED_ON], y[:TRAINED_ON], seed)
    return model, [(x[:TRAINED_ON], y[:TRAINED_ON])], [(x[TRAINED_ON:], y[TRAINED_ON:])]


def resnet_network(data: Path, weights: Path) -> tuple[nn.Module, Batches, Batches]:
    """ResNet-20, 1,000 of the images that it was trained on, and the 5,000 of the validation half."""
    x, y = read_cifar10(data, "validation")
    pool = list(zip(x.split(250), y.split(250), strict=True))
    return trained_resnet20(weights), calibration_images(read_cifar10(data, "train"), 0), pool


def pool_of(model: nn.Module, calibration: Batches, samples: Batches) -> tuple[Pool, Any]:
    """Scores of the calibration samples, curves of the others, and costs."""
    data, metric, loss = as_batches(samples, "pool"), resolve_metric("accuracy"), resolve_loss("cross_entropy")
    program = sc.trace(model, (samples[0][0][:2],))
    groups = sc.find_groups(program)
    criterion = sc.Taylor()
    statistics = sc.collect(model, groups, calibration, needs=criterion.needs)
    prober = probe(
        model, groups, sc.score(groups, statistics, criterion), data, metric=metric, loss=loss,
        baseline=evaluate(model, data, metric=metric, loss=loss), program=program,
    )  # fmt: skip
    return Pool(prober, measure_curves(prober)), sc.costs(program, groups)


def main() -> None:
    """Repeat and write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--network", choices=["digits", "resnet20"], required=True)
    parser.add_argument("--data", type=Path, help="of resnet20")
    parser.add_argument("--weights", type=Path, help="of resnet20")
    parser.add_argument("--tolerance", type=float, default=0.02)
    parser.add_argument("--validation", type=int, default=600)
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--networks", type=int, default=1, help="digits: trained anew, so many repetitions each")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    runs: list[dict[str, Any]] = []
    for seed in range(options.networks):
        if options.network == "digits":
            model, calibration, samples = digits_network(seed)
        else:
            model, calibration, samples = resnet_network(options.data, options.weights)
        pool, cost = pool_of(model, calibration, samples)
        rng = np.random.default_rng(seed)
        for number in range(options.repetitions):
            found = repetition(pool, cost, options.tolerance, options.validation, rng)
            runs.append({"network": seed, **found})
            print(number, runs[-1], len(pool.known), flush=True)
    save_report(
        options.out,
        {
            "tolerance": options.tolerance,
            "validation_samples": options.validation,
            "fresh_samples": sum(len(y) for _, y in samples) - options.validation,
            "repetitions": len(runs),
            "exceeded": sum(run["exceeds"] for run in runs),
            "within_a_tenth_of_the_best": sum(run["within_a_tenth_of_the_best"] for run in runs),
            "median_chosen_minus_best": round(
                float(np.median([run["chosen"] - run["best_in_hindsight"] for run in runs])), 4
            ),
            "runs": runs,
        },
    )


if __name__ == "__main__":
    main()
