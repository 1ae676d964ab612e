"""What sensitivity and repair cost on ResNet-20, in CPU seconds of one thread, runs interleaved.

python benchmarks/cost_resnet20.py --data DIR --weights FILE --out FILE
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from cifar10 import Images, calibration_images, read_cifar10, trained_resnet20
from oneshot import Setting, whole_repair
from recording import save_report
from torch import nn
from torch.nn import functional

import secateur as sc

PIECES = (
    "forward",
    "forward_backward",
    "collect_everything",
    "collect_grams",
    "group_obs",
    "forward_pruned",
    "repair",
)


def forward(model: nn.Module, data: list[Images]) -> None:
    """One forward pass over the calibration images."""
    with torch.no_grad():
        for x, _ in data:
            model(x)


def forward_backward(model: nn.Module, data: list[Images]) -> None:
    """One forward and backward pass, as a step of training makes."""
    for x, y in data:
        model.zero_grad()
        functional.cross_entropy(model(x), y).backward()


class Costs:
    """Seconds by name; what belongs together is measured in turn."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.runs: dict[str, list[float]] = {}

    def time(self, name: str, work: Callable[[], Any]) -> Any:
        """Do `work` and note how long it took."""
        started = self.clock()
        result = work()
        self.runs.setdefault(name, []).append(round(self.clock() - started, 3))
        print(name, self.runs[name][-1], flush=True)
        return result

    def summary(self) -> dict[str, Any]:
        """Medians and the runs."""
        return {name: {"median": statistics.median(runs), "runs": runs} for name, runs in self.runs.items()}


def measured(model: nn.Module, data: list[Images], rounds: int, clock: Callable[[], float]) -> Costs:
    """Each piece of work once a round, after a round that does not count."""
    costs = Costs(clock)
    obs: sc.Criterion = sc.GroupOBS()
    setting = Setting(model, data, [], lambda group: ".conv1" in group.name, 0)
    for number in range(rounds + 1):
        if number == 1:
            costs.runs.clear()
        costs.time("forward", lambda: forward(model, data))
        costs.time("forward_backward", lambda: forward_backward(model, data))
        costs.time("collect_everything", lambda: sc.collect(model, setting.all_groups, data))
        grams = costs.time("collect_grams", lambda: sc.collect(model, setting.groups, data, needs=obs.needs))
        scores = costs.time("group_obs", lambda grams=grams: sc.score(setting.groups, grams, obs))
        plan = sc.plan(setting.groups, scores, sparsity=0.5)
        small = setting.cut(plan)
        costs.time("forward_pruned", lambda small=small: forward(small, data))
        costs.time("repair", lambda plan=plan, small=small: whole_repair(setting, plan, small))
    return costs


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="with more than one, seconds are those of the clock")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.threads == 1 else time.perf_counter
    model = trained_resnet20(options.weights)
    data = calibration_images(read_cifar10(options.data, "train"), 0)
    costs = measured(model, data, options.rounds, clock)
    inputs = [x for x, _ in data]
    wanted = sc.Sparsity(0.8, method=sc.OBC())
    costs.time("sparsify_obc", lambda: sc.sparsify(model, wanted, calibration=inputs))
    found = costs.summary()
    rounds = [{name: costs.runs[name][k] for name in PIECES} for k in range(options.rounds)]
    beyond = [r["group_obs"] + r["repair"] - r["forward"] - r["forward_pruned"] for r in rounds]
    save_report(
        options.out,
        {
            "calibration_images": 1000,
            "threads": options.threads,
            "unit": "CPU seconds" if options.threads == 1 else "seconds by the clock",
            "seconds": found,
            "collect_everything_in_forward_backward_passes": [
                round(r["collect_everything"] / r["forward_backward"], 2) for r in rounds
            ],
            "group_obs_and_repair_beyond_one_forward_pass_of_both_models": [round(b, 2) for b in beyond],
            "the_same_in_forward_backward_passes": [
                round(b / r["forward_backward"], 2) for b, r in zip(beyond, rounds, strict=True)
            ],
        },
    )


if __name__ == "__main__":
    main()
