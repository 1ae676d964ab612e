"""The networks that `scan_speed.py` scans, with their data."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from char_models import NETWORKS
from char_text import read_text, windows
from safetensors.torch import load_file
from torch import Tensor, nn

from secateur.cli.data_sources import parquet_images
from secateur.sensitivity.racing import Racing
from secateur.zoo.resnet import resnet20

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Job:
    """A network, its validation data in batches, and what is asked of the scan.

    Attributes:
        model: in eval mode.
        batches: of inputs and targets.
        metric: whose damage is measured.
        rule: of the race; its first boundary is the tolerance.
    """

    model: nn.Module
    batches: Sequence[tuple[Tensor, Tensor]]
    metric: str
    rule: Racing


def arguments(description: str) -> argparse.ArgumentParser:
    """Those that say what is scanned, and where the result goes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--network", choices=("resnet20", "lstm", "transformer"), required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--tolerance", type=float, required=True)
    parser.add_argument("--out", type=Path, required=True)
    return parser


def load(given: argparse.Namespace) -> Job:
    """ResNet-20 on images of a parquet file, or a character model on windows of a text."""
    samples, tolerance = given.samples, given.tolerance
    if given.network == "resnet20":
        model: nn.Module = resnet20()
        raw, targets = parquet_images(given.data, 0, samples)
        inputs = (raw.float() / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
        size, metric, rule = 125, "accuracy", Racing((tolerance,), stage=125)
    else:
        text = read_text(given.data)
        model = NETWORKS[given.network](len(text.alphabet))
        inputs, targets = (part[:samples] for part in windows(text.validation))
        size, metric, rule = 16, "loss", Racing((tolerance,), stage=16, clip=10 * tolerance)
    model.load_state_dict(load_file(given.weights))
    return Job(model.eval(), list(zip(inputs.split(size), targets.split(size), strict=True)), metric, rule)
