"""A network of the zoo: how it is built and what it is fed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Entry:
    """One architecture.

    Attributes:
        name: `collection/model`.
        build: makes the network, randomly initialised.
        inputs: batch size -> arguments and keyword arguments, in float64 where they are real numbers.
        batches: batch sizes that its forward takes besides two.
        split_stacks: each layer of a stacked recurrent module is cut to a width of its own.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[int], Inputs]
    batches: tuple[int, ...] = (3,)
    split_stacks: bool = False

    def __repr__(self) -> str:
        return self.name


def image(size: int, channels: int = 3, **kwargs: Any) -> Callable[[int], Inputs]:
    return lambda batch: ((torch.randn(batch, channels, size, size, dtype=torch.float64),), dict(kwargs))


def frames(*shape: int) -> Callable[[int], Inputs]:
    return lambda batch: ((torch.randn(batch, *shape, dtype=torch.float64),), {})


def tokens(length: int = 9, vocabulary: int = 40, **kwargs: Any) -> Callable[[int], Inputs]:
    return lambda batch: ((torch.randint(2, vocabulary, (batch, length)),), dict(kwargs))


@torch.no_grad()
def prepared(entry: Entry, seed: int = 0) -> nn.Module:
    """The network in float64 and eval mode, with weights and statistics that hide no mistake.

    Under the usual initialisation (normal of 0.02) attention is uniform and a head wired wrongly changes
    the output by a millionth: here weights keep the variance of what they read.
    """
    torch.manual_seed(seed)
    model = entry.build().eval()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.is_complex() or not parameter.is_floating_point():
            continue
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim >= 2 and not name.endswith(("A_log", "original0")):
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
            parameter.copy_(noise * (fan_in**-0.5 if "embed" not in name else 1.0))
        else:
            parameter.add_(noise * 0.2)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(torch.rand(buffer.shape, generator=generator) - 0.5)
        elif name.endswith("running_var"):
            buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    return model.double()
