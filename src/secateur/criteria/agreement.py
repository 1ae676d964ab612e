"""Whether gradients that were taken apart by sample are what autograd gives."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from secateur.capture.gram import single
from secateur.criteria.backward import Derived
from secateur.criteria.per_sample import plain_gates
from secateur.criteria.statistics import Derivatives
from secateur.types import Group

Differing = tuple[set[str], set[str]]
"""Groups, and parameters."""


def differing_totals(
    groups: Sequence[Group],
    parameters: Mapping[str, Tensor],
    derived: Derived,
    gates: Mapping[str, Tensor | None],
    weights: Mapping[str, Derivatives],
) -> Differing:
    """Those whose sums over samples are not autograd's own gradients: there are uses that were not seen.

    Args:
        groups: all.
        parameters: whose gradients are wanted.
        derived: of the batch.
        gates: group name -> derivatives by sample; None where they cannot be told.
        weights: parameter name -> sums of what was taken apart.
    """
    whole = _norm(found.absolute for found in weights.values())
    names = {
        name for name, found in weights.items() if not _agree(found.total, derived.totals[name], found.absolute, whole)
    }
    expected = plain_gates(groups, {name: g * parameters[name] for name, g in derived.totals.items()})
    known = {name: values for name, values in gates.items() if values is not None}
    sizes = {name: values.abs().sum(0) for name, values in known.items()}
    whole = _norm(sizes.values())
    eps = _eps(parameters)
    return {n for n, size in sizes.items() if not _agree(known[n].sum(0), expected[n], size, whole, eps)}, names


def differing_sample(
    groups: Sequence[Group],
    parameters: Mapping[str, Tensor],
    apart: Collection[str],
    derived: Derived,
    gates: Mapping[str, Tensor | None],
    row: int,
    gradients: Mapping[str, Tensor],
) -> Differing:
    """Those of which one sample's share is not its gradient.

    Args:
        groups: all.
        parameters: whose gradients are wanted.
        apart: those of them that are taken apart.
        derived: of the batch.
        gates: group name -> derivatives by sample; None where they cannot be told.
        row: the sample.
        gradients: parameter name -> gradient of the loss of this sample.
    """
    whole = _norm(gradients.values())
    part = slice(row, row + 1)
    names = {
        name
        for name, uses in derived.uses.items()
        if name in apart and not _agree(uses.of(part)[0], gradients[name], gradients[name], whole)
    }
    expected = plain_gates(groups, {name: g * parameters[name] for name, g in gradients.items()})
    whole = _norm(expected.values())
    eps = _eps(parameters)
    known = {name: values[row] for name, values in gates.items() if values is not None}
    return {n for n, g in known.items() if not _agree(g, expected[n], expected[n], whole, eps)}, names


def _eps(parameters: Mapping[str, Tensor]) -> float:
    return max((torch.finfo(p.dtype).eps for p in parameters.values()), default=0.0)


def _norm(tensors: Iterable[Tensor]) -> float:
    return math.sqrt(sum(float(single(t).double().square().sum()) for t in tensors))


def _agree(found: Tensor, expected: Tensor, size: Tensor, whole: float, eps: float | None = None) -> bool:
    """Whether two sums are the same but for rounding.

    Args:
        found: one.
        expected: the other.
        size: what was summed, in absolute value, so far as it is known.
        whole: norm of all gradients of which these are some.
        eps: of the numbers that were summed; None: that of `expected`.
    """
    eps = torch.finfo(expected.dtype).eps if eps is None else eps
    difference = _norm([found.double() - expected.double()])
    return difference <= math.sqrt(eps) * _norm([size]) + 64 * eps * whole
