"""A text as three parts of windows, and bits per character."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from char_models import CONTEXT
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Text:
    """The codes of a text: the last 10 % are test, the 10 % before validation, the rest training."""

    alphabet: str
    train: Tensor
    validation: Tensor
    test: Tensor


def read_text(path: Path) -> Text:
    """A character's code is its place in the sorted alphabet of the whole text."""
    text = path.read_text(encoding="utf-8")
    alphabet = "".join(sorted(set(text)))
    codes = torch.tensor([alphabet.index(c) for c in text])
    first, second = int(0.8 * len(codes)), int(0.9 * len(codes))
    return Text(alphabet, codes[:first], codes[first:second], codes[second:])


def windows(codes: Tensor, starts: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Windows of CONTEXT characters and the ones that follow each; by default all, one after another."""
    if starts is None:
        starts = torch.arange(0, len(codes) - CONTEXT, CONTEXT)
    places = starts.unsqueeze(1) + torch.arange(CONTEXT)
    return codes[places], codes[places + 1]


def random_windows(codes: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Windows at random places."""
    return windows(codes, torch.randint(len(codes) - CONTEXT, (count,), generator=generator))


@torch.no_grad()
def bits_of_windows(model: nn.Module, data: tuple[Tensor, Tensor], batch: int = 128) -> Tensor:
    """Mean bits per character of each window, float64 (windows,); every position counts, the first too."""
    model.eval()
    bits = []
    for x, y in zip(data[0].split(batch), data[1].split(batch), strict=True):
        nats = functional.cross_entropy(model(x).transpose(1, 2), y, reduction="none")
        bits.append(nats.double().mean(1) / math.log(2))
    return torch.cat(bits)
