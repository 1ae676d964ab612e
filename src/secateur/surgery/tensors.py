"""Removed units, parameter by parameter; and putting new tensors into a module."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from secateur.graph.copies import copy_of
from secateur.graph.trace import canonical_names, named_state
from secateur.surgery.plan import Plan
from secateur.types import Group

Place = tuple[str, int]
Shapes = Mapping[str, tuple[int, ...]]

Marked = tuple[tuple[int, ...], Tensor]
"""Dimensions of a tensor and a bool mask over them: one dimension, or an outer one and one within it."""


def removed_marks(
    groups: Sequence[Group], plan: Plan, shapes: Shapes, *, masked_only: bool = False
) -> dict[str, list[Marked]]:
    """What the plan removes of each parameter.

    Args:
        groups: of the model.
        plan: what stays.
        shapes: canonical name -> shape.
        masked_only: only what masking zeroes.
    """
    marks: dict[str, dict[tuple[int, ...], Tensor]] = defaultdict(dict)
    for group in groups:
        if group.name not in plan.keep:
            continue
        gone = ~plan.mask(group.name)
        for s in group.slices:
            units = gone[s.first : s.first + len(s.index)]
            if (masked_only and not s.masked) or not bool(units.any()):
                continue
            dims = (s.dim,) if s.within is None else (s.within[0], s.dim)
            shape = [shapes[s.parameter][dim] for dim in dims]
            mark = marks[s.parameter].setdefault(dims, torch.zeros(shape, dtype=torch.bool))
            if s.within is None:
                mark[s.index[units].flatten()] = True
            else:
                mark[s.within[1][units].unsqueeze(2), s.index[units].unsqueeze(1)] = True
    return {name: list(_merged(found).items()) for name, found in marks.items()}


def _merged(marks: Mapping[tuple[int, ...], Tensor]) -> dict[tuple[int, ...], Tensor]:
    """One mark for each dimension: what goes from every row goes from each."""
    nested = {dims[-1] for dims in marks if len(dims) == 2}
    return {
        dims: mark | marks[dims[1:]] if len(dims) == 2 and dims[1:] in marks else mark
        for dims, mark in marks.items()
        if len(dims) == 2 or dims[0] not in nested
    }


def kept_positions(groups: Sequence[Group], plan: Plan, shapes: Shapes) -> dict[Place, Tensor]:
    """(parameter, dimension) -> int64 positions that stay, ascending, where they are the same everywhere."""
    return {
        (name, dims[0]): (~mark).nonzero().flatten()
        for name, marks in removed_marks(groups, plan, shapes).items()
        for dims, mark in marks
        if len(dims) == 1
    }


def zero_marked(tensor: Tensor, marks: Iterable[Marked]) -> Tensor:
    """A copy of `tensor` with all that is marked set to zero.

    >>> zero_marked(torch.ones(2, 3), [((1,), torch.tensor([True, False, True]))]).tolist()
    [[0.0, 1.0, 0.0], [0.0, 1.0, 0.0]]
    """
    zeroed = tensor.detach().clone()
    for dims, mark in marks:
        zeroed.masked_fill_(_spread(mark, dims, tensor.ndim).to(tensor.device), 0)
    return zeroed


def gather(tensor: Tensor, marks: Iterable[Marked]) -> Tensor:
    """`tensor` without what is marked, in the memory format it had.

    Where rows lose different positions, they must lose equally many.

    >>> marks = [((0, 1), torch.tensor([[True, False, False], [False, False, True]]))]
    >>> gather(torch.arange(6).reshape(2, 3), marks).tolist()
    [[1, 2], [3, 4]]
    """
    small = tensor.detach()
    # What differs from row to row first, while the rows are all there.
    for dims, mark in sorted(marks, key=lambda marked: -len(marked[0])):
        kept = ~mark
        if len(dims) == 1:
            small = small.index_select(dims[0], kept.nonzero().flatten().to(tensor.device))
        else:
            columns = kept.nonzero()[:, 1].reshape(len(kept), -1)
            index = _spread(columns, dims, tensor.ndim).to(tensor.device)
            shape = list(small.shape)
            shape[dims[1]] = columns.shape[1]
            small = small.take_along_dim(index.expand(shape), dims[1])
    is_channels_last = (
        tensor.ndim == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)
    )
    return small.contiguous(memory_format=torch.channels_last if is_channels_last else torch.contiguous_format)


def _spread(table: Tensor, dims: tuple[int, ...], rank: int) -> Tensor:
    """A table over `dims` as a tensor of `rank` dimensions that broadcasts over the others."""
    if len(dims) == 2 and dims[0] > dims[1]:
        return _spread(table.T, dims[::-1], rank)
    shape = [1] * rank
    for dim, size in zip(dims, table.shape, strict=True):
        shape[dim] = size
    return table.reshape(shape)


def copy_without(model: nn.Module, marks: Mapping[str, Iterable[Marked]]) -> nn.Module:
    """A copy of `model` whose tensors lack what is marked (by canonical name); these are never copied whole.

    >>> linear = nn.Linear(3, 2)
    >>> small = copy_without(linear, {"weight": [((1,), torch.tensor([True, False, False]))]})
    >>> small.weight.shape, linear.weight.shape
    (torch.Size([2, 2]), torch.Size([2, 3]))
    """
    state = named_state(model)
    fresh = {name: _like(state[name], gather(state[name], gone)) for name, gone in marks.items()}
    small = copy_of(model, {id(state[name]): tensor for name, tensor in fresh.items()})
    # A class that copies itself in its own way need not have heeded what was to stand for its tensors.
    copied = named_state(small)
    replace_state(small, {name: tensor for name, tensor in fresh.items() if copied[name] is not tensor})
    return small


def _like(old: Tensor, tensor: Tensor) -> Tensor:
    return nn.Parameter(tensor, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else tensor


def replace_state(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put `tensors` (by canonical name) into `model`, under every name that shares them."""
    if not tensors:
        return
    state, aliases = named_state(model), canonical_names(model)
    fresh = {name: _like(state[name], tensor) for name, tensor in tensors.items()}
    for name, canonical in aliases.items():
        if canonical in fresh:
            owner, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(owner), leaf, fresh[canonical])
