"""The state of an interrupted training, after whole epochs."""

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from secateur.errors import StoreError
from secateur.graph.trace import canonical_names, named_state
from secateur.storage.atomic import sha256_file, write_bytes, write_json, write_safetensors

LATEST = "latest.json"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What training needs to go on as if nothing had happened.

    Attributes:
        epochs: whole epochs that are done.
        optimizer: state of the optimizer.
        scheduler: state of its scheduler.
        scale: factor on the learning rate (less than 1 after a roll-back).
    """

    epochs: int
    optimizer: dict[str, Any]
    scheduler: dict[str, Any]
    scale: float


def save_checkpoint(directory: Path, model: nn.Module, state: Checkpoint) -> None:
    """Write a checkpoint; the one before stays valid until this one is complete."""
    stem = f"epoch-{state.epochs}"
    buffer = io.BytesIO()
    torch.save({"optimizer": state.optimizer, "scheduler": state.scheduler}, buffer)
    write_bytes(directory / f"{stem}.pt", buffer.getvalue())
    write_safetensors(directory / f"{stem}.safetensors", _own_state(model))
    files = {name: sha256_file(directory / name) for name in (f"{stem}.pt", f"{stem}.safetensors")}
    write_json(directory / LATEST, {"epochs": state.epochs, "scale": state.scale, "files": files})
    for old in directory.glob("epoch-*"):
        if old.stem != stem:
            old.unlink()


def load_checkpoint(directory: Path, model: nn.Module) -> Checkpoint | None:
    """Put the saved weights into `model` and give the rest; None if there is no checkpoint.

    Raises:
        StoreError: a file is damaged.
    """
    if not (directory / LATEST).exists():
        return None
    latest = json.loads((directory / LATEST).read_text())
    for name, digest in latest["files"].items():
        if not (directory / name).exists() or sha256_file(directory / name) != digest:
            raise StoreError(f"{directory / name} is missing or damaged; delete {directory} to train this round again")
    stem = f"epoch-{latest['epochs']}"
    put_state(model, load_file(directory / f"{stem}.safetensors"))
    raw = torch.load(directory / f"{stem}.pt", weights_only=True)
    return Checkpoint(latest["epochs"], raw["optimizer"], raw["scheduler"], latest["scale"])


def copy_state(model: nn.Module) -> dict[str, Tensor]:
    """A copy of every tensor of the model's state."""
    return {name: tensor.detach().clone() for name, tensor in _own_state(model).items()}


def put_state(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Copy `tensors` into the model, in place."""
    state = named_state(model)
    with torch.no_grad():
        for name, tensor in tensors.items():
            state[name].copy_(tensor)


def _own_state(model: nn.Module) -> dict[str, Tensor]:
    aliases = canonical_names(model)
    return {name: tensor for name, tensor in named_state(model).items() if aliases[name] == name}
