"""The demo: train two small networks on handwritten digits, prune both, and show what came out."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from secateur.cli.loaders import Splits, example_args, load_data
from secateur.cli.recipe import DigitsData
from secateur.data import as_batches
from secateur.measures.metrics import cross_entropy
from secateur.pipeline.prune import prune
from secateur.pipeline.result import Result
from secateur.progress import Progress
from secateur.storage.atomic import write_safetensors
from secateur.training.loop import Retraining, retrain
from secateur.zoo.digits import digits_cnn, digits_lstm

TOLERANCE = 0.02
SEED = 0


@dataclass(frozen=True)
class Exhibit:
    """One network of the demo."""

    name: str
    build: Callable[[], nn.Module]
    epochs: int
    retrain_epochs: int


EXHIBITS = (
    Exhibit("digits-cnn", digits_cnn, epochs=12, retrain_epochs=3),
    Exhibit("digits-lstm", digits_lstm, epochs=25, retrain_epochs=8),
)


def run_demo(out: Path, progress: Progress) -> Iterable[tuple[Exhibit, Result, Path]]:
    """Train, prune and report each network in turn.

    Args:
        out: each network gets a directory in it, with report.html, report.json, the pruned model, and
            the dense weights, which `recipes/digits-cnn.yaml` starts from.
        progress: shown while running.
    """
    splits = load_data(DigitsData(kind="digits", batch_size=64), ())
    for exhibit in EXHIBITS:
        with progress.stage(f"training {exhibit.name}", None) as advance:
            dense = trained(exhibit, splits, lambda step, total, loss: advance(1, f"loss {loss:.3f}"))
        folder = out / exhibit.name
        write_safetensors(folder / "dense.safetensors", dense.state_dict())
        result = prune(
            dense,
            example_args(splits, 64),
            train=splits.train,
            validation=splits.validation,
            test=splits.test,
            tolerance=TOLERANCE,
            retrain=Retraining(epochs=exhibit.retrain_epochs, learning_rate=3e-3, distill=0.5),
            calibration_samples=256,
            seed=SEED,
            progress=progress,
        )
        result.save(folder / "pruned")
        yield exhibit, result, result.report(folder / "report.html")


def trained(exhibit: Exhibit, splits: Splits, report: Callable[[int, int, float], None]) -> nn.Module:
    """A network trained from a fixed seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = exhibit.build()
    how = Retraining(epochs=exhibit.epochs, learning_rate=5e-3)
    return retrain(model, as_batches(splits.train, "train"), cross_entropy, retraining=how, seed=SEED, progress=report)
