"""Whether the cross-validated tolerance holds on fresh data: validation drawn again and again.

All damages are measured once on samples that the network was not trained on; each repetition draws validation
samples from them, chooses a budget by them alone, and is held against the rest.

python benchmarks/tolerance.py --network digits --out benchmarks/tolerance/digits.json
python benchmarks/tolerance.py --network resnet20 --data DIR --weights FILE --validation 1000 --out FILE
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cifar10 import calibration_images, read_cifar10, trained_resnet20
from recording import save_report
from torch import Tensor, nn
from torch.nn import functional

import secateur as sc
from secateur.allocation.limits import Costs, fraction_of
from secateur.allocation.selection import GRID
from secateur.allocation.thresholds import (
    BudgetCurve,
    Choice,
    Samples,
    choose,
    cross_validate,
    folds,
    merged,
    refine_budgets,
)
from secateur.cli.data_sources import digits
from secateur.data import as_batches
from secateur.measures.evaluate import evaluate
from secateur.measures.metrics import resolve_loss, resolve_metric
from secateur.sensitivity.probe import Probe, probe
from secateur.sensitivity.scan import measure_curves
from secateur.types import Curve, Floats
from secateur.zoo.digits import digits_cnn

TRAINED_ON = 500
HINDSIGHT = tuple(1 - step / 80 for step in range(1, 73))
"""As fine as the budgets that the rule may refine its grid to."""
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
    """Curves of all samples that can be drawn, and their joint damages as far as somebody asked for them."""

    def __init__(self, prober: Probe, curves: Mapping[str, Curve]) -> None:
        self.prober, self.curves = prober, curves
        self.known: dict[tuple[tuple[str, int], ...], Floats] = {}
        self.measured = 0

    def __len__(self) -> int:
        return len(self.prober.baseline.metric)

    def joint(self, widths: Widths, samples: Samples) -> Floats:
        """Damage of these samples, in ascending order, with all groups cut at once; none is measured twice."""
        damage = self.known.setdefault(tuple(sorted(widths.items())), np.full(len(self), np.nan))
        missing = samples[np.isnan(damage[samples])]
        if len(missing):
            damage[missing] = self.prober.damage(widths, missing)[0]
            self.measured += len(missing)
        return damage[samples]

    def drawn(self, samples: Samples) -> dict[str, Curve]:
        """The curves that these samples alone give."""
        return {
            n: sc.Curve(n, c.widths, c.sparsities, c.damage[:, samples], c.loss_damage[:, samples])
            for n, c in self.curves.items()
        }


class Draw:
    """One repetition: a network's pool, split at random into validation samples and fresh ones."""

    def __init__(self, pool: Pool, cost: Costs, validation: int, rng: np.random.Generator) -> None:
        order = rng.permutation(len(pool))
        self.pool, self.cost = pool, cost
        self.held, self.fresh = np.sort(order[:validation]), np.sort(order[validation:])
        self.curves = pool.drawn(self.held)
        self.parts = folds(validation, 5, rng)

    def chosen(self, tolerance: float) -> Choice:
        """What `prune` would choose by the validation samples."""

        def measured(budgets: Sequence[float]) -> BudgetCurve:
            # As far as the first that is beyond the tolerance: those after it change no choice.
            found: list[BudgetCurve] = []
            for budget in budgets:
                found.append(self.out_of_fold(budget))
                if choose(found[-1], tolerance).index is None:
                    break
            return merged(found)

        return refine_budgets(measured, GRID, lambda curve: choose(curve, tolerance))[1]

    def out_of_fold(self, budget: float) -> BudgetCurve:
        """Damage of the validation samples at one budget, by curves of other folds."""
        return cross_validate(
            self.curves,
            budgets=[budget],
            cost=self.cost,
            joint=lambda widths, samples: self.pool.joint(widths, self.held[samples]),
            folds=self.parts,
        )

    def on_fresh(self, budget: float) -> float:
        """Mean damage of the fresh samples under the allocation that all validation samples give at this budget."""
        dense = {name: curve.widths[0] for name, curve in self.curves.items()}
        found = sc.allocate(self.curves, self.cost, fraction_of(self.cost, None, dense, budget))
        return float(self.pool.joint(found.widths, self.fresh).mean())

    def best(self, tolerance: float) -> float:
        """The smallest budget whose damage on the fresh samples is within the tolerance, as all milder ones' is."""
        best = 1.0
        for budget in HINDSIGHT:
            if self.on_fresh(budget) > tolerance:
                break
            best = budget
        return best


def repetition(draw: Draw, tolerance: float) -> dict[str, Any]:
    """Choose a budget by some samples, and look at the others."""
    choice, best = draw.chosen(tolerance), draw.best(tolerance)
    on_fresh = draw.on_fresh(choice.budget)
    return {
        "chosen": round(choice.budget, 4),
        "best_in_hindsight": best,
        "damage_on_validation": round(choice.damage, 5),
        "standard_error": round(choice.standard_error, 5),
        "damage_on_fresh": round(on_fresh, 5),
        "exceeds": on_fresh > tolerance,
    }


def summary(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How often the tolerance was broken, and how far the chosen budgets are from the best."""
    chosen, best = (np.array([run[name] for run in runs]) for name in ("chosen", "best_in_hindsight"))
    away = chosen - best
    went = [(1 - c) / (1 - b) for c, b in zip(chosen, best, strict=True) if b < 1]
    return {
        "exceeded": sum(run["exceeds"] for run in runs),
        "largest_damage_on_fresh": max(run["damage_on_fresh"] for run in runs),
        "within_a_tenth_of_the_dense_cost": int((np.abs(away) <= 0.1).sum()),
        "within_a_tenth_of_the_best_budget": int((np.abs(away) <= 0.1 * best).sum()),
        "median_chosen": round(float(np.median(chosen)), 4),
        "median_best": round(float(np.median(best)), 4),
        "median_share_of_what_could_go": round(float(np.median(went)), 3) if went else None,
        "chosen_minus_best": [round(float(x), 4) for x in (away.min(), np.median(away), away.max())],
        "runs": list(runs),
    }


def digits_network(seed: int) -> tuple[nn.Module, Batches, Batches]:
    """A network trained on some digits, these, and the rest."""
    x, y = digits()
    model = trained(x[:TRAINED_ON], y[:TRAINED_ON], seed)
    return model, [(x[:TRAINED_ON], y[:TRAINED_ON])], [(x[TRAINED_ON:], y[TRAINED_ON:])]


def resnet_network(data: Path, weights: Path, images: slice) -> tuple[nn.Module, Batches, Batches]:
    """ResNet-20, 1,000 of the images that it was trained on, and some of the validation half."""
    x, y = (part[images] for part in read_cifar10(data, "validation"))
    pool = list(zip(x.split(250), y.split(250), strict=True))
    return trained_resnet20(weights), calibration_images(read_cifar10(data, "train"), 0), pool


def pool_of(model: nn.Module, calibration: Batches, samples: Batches) -> tuple[Pool, Costs]:
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
    parser.add_argument("--images", type=int, nargs=2, default=(0, 2500), help="resnet20: rows of the validation half")
    parser.add_argument("--tolerance", type=float, nargs="+", default=[0.02])
    parser.add_argument("--validation", type=int, default=600)
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--networks", type=int, default=1, help="digits: trained anew, so many repetitions each")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    runs: dict[float, list[dict[str, Any]]] = {tolerance: [] for tolerance in options.tolerance}
    for seed in range(options.networks):
        if options.network == "digits":
            model, calibration, samples = digits_network(seed)
        else:
            model, calibration, samples = resnet_network(options.data, options.weights, slice(*options.images))
        pool, cost = pool_of(model, calibration, samples)
        rng = np.random.default_rng(seed)
        for number in range(options.repetitions):
            draw = Draw(pool, cost, options.validation, rng)
            for tolerance, own in runs.items():
                own.append({"network": seed, **repetition(draw, tolerance)})
                print(number, tolerance, own[-1], pool.measured, round(time.process_time()), flush=True)
    save_report(
        options.out,
        {
            "validation_samples": options.validation,
            "fresh_samples": len(pool) - options.validation,
            "repetitions": options.networks * options.repetitions,
            "tolerances": {tolerance: summary(own) for tolerance, own in runs.items()},
        },
    )


if __name__ == "__main__":
    main()
