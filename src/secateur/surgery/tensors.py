"""Removed units, parameter by parameter; and putting new tensors into a module."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from secateur.graph.trace import canonical_names, named_state
from secateur.surgery.plan import Plan
from secateur.types import Group, Slice

Place = tuple[str, int]


def removed_positions(groups: Sequence[Group], plan: Plan) -> list[tuple[Slice, Tensor]]:
    """Every slice that the plan touches, with the positions along its dimension that go."""
    return [
        (s, s.positions(~plan.mask(group.name))) for group in groups if group.name in plan.keep for s in group.slices
    ]


def kept_positions(groups: Sequence[Group], plan: Plan, shapes: Mapping[str, tuple[int, ...]]) -> dict[Place, Tensor]:
    """(parameter, dimension) -> int64 positions that stay, ascending."""
    masks: dict[Place, Tensor] = {}
    for s, gone in removed_positions(groups, plan):
        place = (s.parameter, s.dim)
        masks.setdefault(place, torch.ones(shapes[s.parameter][s.dim], dtype=torch.bool))[gone] = False
    return {place: mask.nonzero().flatten() for place, mask in masks.items() if not bool(mask.all())}


def zero_positions(tensor: Tensor, zeros: Iterable[tuple[int, Tensor]]) -> Tensor:
    """A copy of `tensor` with the given positions along the given dimensions set to zero.

    >>> zero_positions(torch.ones(2, 3), [(1, torch.tensor([0, 2]))]).tolist()
    [[0.0, 1.0, 0.0], [0.0, 1.0, 0.0]]
    """
    copy = tensor.detach().clone()
    for dim, positions in zeros:
        copy.index_fill_(dim, positions.to(tensor.device), 0)
    return copy


def masked_positions(groups: Sequence[Group], plan: Plan) -> dict[str, list[tuple[int, Tensor]]]:
    """What masking zeroes: parameter -> (dimension, positions)."""
    found: dict[str, list[tuple[int, Tensor]]] = defaultdict(list)
    for s, gone in removed_positions(groups, plan):
        if s.masked and len(gone):
            found[s.parameter].append((s.dim, gone))
    return dict(found)


def gather(tensor: Tensor, keeps: Iterable[tuple[int, Tensor]]) -> Tensor:
    """The kept positions of `tensor`, in the memory format it had."""
    small = tensor.detach()
    for dim, positions in keeps:
        small = small.index_select(dim, positions.to(tensor.device))
    is_channels_last = (
        tensor.ndim == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)
    )
    return small.contiguous(memory_format=torch.channels_last if is_channels_last else torch.contiguous_format)


def replace_state(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put `tensors` (by canonical name) into `model`, under every name that shares them."""
    state, aliases = named_state(model), canonical_names(model)
    fresh: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        old = state[name]
        is_parameter = isinstance(old, nn.Parameter)
        fresh[name] = nn.Parameter(tensor, requires_grad=old.requires_grad) if is_parameter else tensor
    for name, canonical in aliases.items():
        if canonical in fresh:
            owner, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(owner), leaf, fresh[canonical])
