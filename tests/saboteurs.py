"""A metric that ends, fails or holds up the process that sees the outputs of one point; data that cannot be opened."""

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

VARIABLE = "SABOTAGE"
SECONDS = "SABOTAGE_SECONDS"
"""How long each batch takes."""


def order(how: str, outputs: Tensor, *, once: Path | None = None) -> str:
    """A value of the environment variable: what happens ("kill", "raise" or "hang") where these outputs are seen."""
    return f"{how}|{outputs.double().sum().item()!r}|{once or ''}"


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """1 where the greatest output is the target; or the end, as the environment says."""
    time.sleep(float(os.environ.get(SECONDS, "0")))
    how, value, once = os.environ.get(VARIABLE, "||").split("|")
    if value and abs(outputs.double().sum().item() - float(value)) < 1e-9 and not (once and Path(once).exists()):
        if once:
            Path(once).touch()
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "hang":
            time.sleep(600)
        raise ValueError("sabotage")
    return (outputs.argmax(-1) == targets).to(torch.float64)


@dataclass(frozen=True)
class Unopenable:
    """Batches that can be sent, but not received."""

    batches: list[Any]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)

    def __reduce__(self) -> tuple[Any, ...]:
        return fail, ()


def fail() -> NoReturn:
    """Raise an error."""
    raise ValueError("sent, but not received")
