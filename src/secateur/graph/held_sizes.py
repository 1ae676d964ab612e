"""Integers that modules hold, and let remember where."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from secateur.graph.sources import Attribute, Sized

DEPTH = 2  # a configuration inside a configuration is as deep as attributes are looked for


@contextlib.contextmanager
def tagged_attributes(model: nn.Module) -> Iterator[None]:
    """Let every integer that a module holds remember where it is held; undone at the end.

    Integers, tuples and lists of them, and those in plain objects such as configurations.
    """
    seen: set[int] = set()
    try:
        for path, module in model.named_modules():
            _tag(path, "", vars(module), seen, DEPTH)
        yield
    finally:
        seen.clear()
        for module in model.modules():
            _untag(vars(module), seen, DEPTH)


def held_sizes(model: nn.Module) -> dict[tuple[str, str], int | tuple[int, ...]]:
    """Every integer, and every tuple or list of integers, that a module or its settings hold.

    The keys are (path of the module, path of the attribute in it).

    >>> held_sizes(nn.Dropout()), held_sizes(nn.Linear(3, 2))
    ({}, {('', 'in_features'): 3, ('', 'out_features'): 2})
    """
    seen: set[int] = set()
    return {
        (path, name): value
        for path, module in model.named_modules()
        for name, value in _held("", vars(module), seen, DEPTH)
    }


def _held(
    prefix: str, held: Mapping[str, Any], seen: set[int], depth: int
) -> Iterator[tuple[str, int | tuple[int, ...]]]:
    for name, value in held.items():
        if name.startswith("__"):
            continue
        if type(value) is int:
            yield prefix + name, value
        elif type(value) in (tuple, list) and value and all(type(v) is int for v in value):
            yield prefix + name, tuple(value)
        elif depth and _is_plain(value) and id(value) not in seen:
            seen.add(id(value))
            yield from _held(f"{prefix}{name}.", vars(value), seen, depth - 1)


def _tag(path: str, prefix: str, held: dict[str, Any], seen: set[int], depth: int) -> None:
    for name, value in list(held.items()):
        full = f"{prefix}{name}"
        if name.startswith("__"):
            continue
        if type(value) is int:
            held[name] = Sized(Attribute(path, full, value))
        elif type(value) in (tuple, list) and value and all(type(v) is int for v in value):
            held[name] = type(value)(Sized(Attribute(path, full, v, k)) for k, v in enumerate(value))
        elif depth and _is_plain(value) and id(value) not in seen:
            seen.add(id(value))
            _tag(path, f"{full}.", vars(value), seen, depth - 1)


def _untag(held: dict[str, Any], seen: set[int], depth: int) -> None:
    for name, value in list(held.items()):
        if isinstance(value, Sized):
            held[name] = int(value)
        elif type(value) in (tuple, list) and any(isinstance(v, Sized) for v in value):
            held[name] = type(value)(int(v) if isinstance(v, Sized) else v for v in value)
        elif isinstance(value, torch.Size):
            held[name] = torch.Size([int(n) for n in value])
        elif depth and _is_plain(value) and id(value) not in seen:
            seen.add(id(value))
            _untag(vars(value), seen, depth - 1)


def _is_plain(value: Any) -> bool:
    """An object of the user's that holds settings, not a module, a tensor, a function or a class."""
    is_other = isinstance(value, nn.Module | Tensor | type) or callable(value)
    return hasattr(value, "__dict__") and isinstance(vars(value), dict) and not is_other
