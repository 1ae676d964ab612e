"""Copies of models, also of those that keep results of their last call; and modules that change their class."""

import copy
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar, cast

from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)


def copy_of(model: Model, instead: Mapping[int, Tensor] | None = None) -> Model:
    """A deep copy; tensors with a gradient's history, which cannot be deep-copied, lose it.

    The old hooks of `weight_norm` and `spectral_norm` keep the weight that they computed last.

    Args:
        model: what is copied.
        instead: id of a tensor -> the tensor that stands for it in the copy.

    >>> layer = nn.Linear(1, 1)
    >>> layer.last = layer.weight * 2
    >>> copy_of(layer).last.requires_grad
    False
    """
    computed = [t for module in model.modules() for t in _tensors(vars(module)) if not t.is_leaf]
    known = {id(tensor): tensor.detach().clone() for tensor in computed}
    return copy.deepcopy(model, known | dict(instead or {}))


def become(module: nn.Module, kind: type[Model]) -> Model:
    """The same module, of another class: every reference to it, its hooks and its tensors stay.

    >>> layer = nn.Identity()
    >>> become(layer, nn.Flatten) is layer, type(layer).__name__
    (True, 'Flatten')
    """
    module.__class__ = kind
    return cast("Model", module)


def _tensors(held: Any) -> Iterator[Tensor]:
    for value in held.values() if isinstance(held, dict) else held:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, dict | list | tuple):
            yield from _tensors(value)
