"""Repair without any data: what goes is folded into what it most resembles.

A removed unit that computes nearly c times what a kept one computes is made up for by adding c times its
columns to those of the kept one, in everything that reads them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from secateur.graph.copies import copy_of
from secateur.graph.groups import structure_for
from secateur.graph.trace import Program, named_state
from secateur.graph.typing import operator_name
from secateur.surgery.cut import cut
from secateur.surgery.plan import Plan, check_plan
from secateur.surgery.tensors import replace_state
from secateur.types import Group, Slice


@dataclass(frozen=True, eq=False)
class Normalised:
    """Tensors of one batch norm, by name; its weight and bias may be missing."""

    weight: str | None
    bias: str | None
    mean: str
    variance: str
    epsilon: float


def fold(model: nn.Module, plan: Plan, *, program: Program, verify: bool = True) -> nn.Module:
    """Cut `model`, and let what stays make up for what goes, without data.

    Each unit is described by the weights that make it, with the batch norm after it, if there is one, multiplied
    in. A removed unit goes to the kept one of the same row on which it projects best, in that proportion: exact
    for multiples of a kept unit before a ReLU (positive multiples) or no activation, and for copies anywhere.
    Statistics of batch norm are kept. Where several layers make a unit (a residual stream, gates), it must be alike
    in all of them.

    Source: Model folding, Wang et al. 2025, arXiv:2502.10216 (clusters of channels; here into the units that the
    plan keeps); Srinivas and Babu 2015, arXiv:1507.06149 (similar neurons are merged into one).

    Args:
        model: the module that `program` was traced from; left as it is.
        plan: what to remove.
        program: from `trace(model, ...)`.
        verify: as for `cut`.

    Raises:
        PlanError: the plan is for another model.
        SurgeryError: as `cut`.

    >>> import secateur as sc
    >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    >>> _ = net[0].weight.data.copy_(torch.tensor([[1.0, 2.0], [3.0, 6.0]])), net[0].bias.data.zero_()
    >>> program = sc.trace(net, (torch.ones(1, 2),))
    >>> plan = sc.plan(sc.find_groups(program), {"0": torch.tensor([1.0, 0.0])}, sparsity=0.5)
    >>> small = fold(net, plan, program=program)
    >>> torch.allclose(small(torch.ones(1, 2)), net(torch.ones(1, 2)))
    True
    """
    groups = structure_for(program, plan.sizes).units
    check_plan(plan, groups)
    folded = copy_of(model)
    state = named_state(folded)
    norms = _batch_norms(program)
    fresh: dict[str, Tensor] = {}
    for group in groups:
        if group.name not in plan.keep or group.size < 2:
            continue
        moves = _moves(_features(group, state, norms), plan.mask(group.name), group.rows)
        for s in group.slices:
            if s.masked and s.trained:
                values = fresh.get(s.parameter, state[s.parameter].detach())
                part = moves[s.first : s.first + len(s.index), s.first : s.first + len(s.index)]
                fresh[s.parameter] = _added(s, values, part)
    replace_state(folded, fresh)
    return cut(folded, plan, program=program, verify=verify)


def _batch_norms(program: Program) -> list[Normalised]:
    found = []
    for node in program.nodes:
        if operator_name(node) == "aten.batch_norm":
            names = [None if a is None else program.names.get(str(getattr(a, "target", ""))) for a in node.args[1:5]]
            weight, bias, mean, variance = names
            if mean is not None and variance is not None:
                epsilon = node.args[7]
                assert isinstance(epsilon, float)
                found.append(Normalised(weight, bias, mean, variance, epsilon))
    return found


def _features(group: Group, state: Mapping[str, Tensor], norms: Sequence[Normalised]) -> Tensor:
    """What makes each unit, as one row: float64 (units, features)."""
    names = {s.parameter for s in group.slices}
    own = [norm for norm in norms if norm.mean in names]
    of_norms = {n for norm in own for n in (norm.weight, norm.bias, norm.mean, norm.variance)}
    columns = [torch.zeros(group.size, 0, dtype=torch.float64)]
    constant = torch.zeros(group.size, dtype=torch.float64)
    for s in group.slices:
        if s.masked or not s.trained or s.parameter in of_norms:
            continue
        values = _of_units(s, state[s.parameter].detach().double().cpu())
        whole = values.new_zeros(group.size, values.shape[1])
        whole[s.first : s.first + len(values)] = values
        if len(own) == 1 and state[s.parameter].ndim == 1:
            constant += whole.sum(1)
        else:
            columns.append(whole)
    made = torch.cat(columns, dim=1)
    if len(own) != 1:
        return made
    norm = own[0]
    lines = {s.parameter: s for s in group.slices if s.parameter in of_norms}

    def line(name: str | None, default: float) -> Tensor:
        if name is None or name not in lines:
            return torch.full((group.size,), default, dtype=torch.float64)
        return _of_units(lines[name], state[name].detach().double().cpu())[:, 0]

    scale = line(norm.weight, 1) / (line(norm.variance, 1) + norm.epsilon).sqrt()
    offset = line(norm.bias, 0) + scale * (constant - line(norm.mean, 0))
    return torch.cat([made * scale.unsqueeze(1), offset.unsqueeze(1)], dim=1)


def _moves(features: Tensor, kept: Tensor, rows: int) -> Tensor:
    """(units, units): how much of each unit's columns (second) is added to another's (first)."""
    units = len(features)
    products = features @ features.T
    norms = products.diagonal()
    row = torch.arange(units) // (units // rows)
    allowed = kept.unsqueeze(0) & (row.unsqueeze(0) == row.unsqueeze(1))
    # Share of a unit that lies along another; only in its direction, since no activation need be odd.
    share = products.clamp(min=0) / norms.clamp(min=torch.finfo(torch.float64).tiny)
    explained = (products * share).where(allowed, -1.0)
    best = explained.argmax(1)
    moves = torch.zeros(units, units, dtype=torch.float64)
    for unit in (~kept).nonzero().flatten().tolist():
        moves[best[unit], unit] = share[unit, best[unit]]
    return moves


def _of_units(s: Slice, values: Tensor) -> Tensor:
    """All that each unit of the slice owns: (units, elements)."""
    return _picked(s, values).flatten(1)


def _picked(s: Slice, values: Tensor) -> Tensor:
    if s.within is None:
        return values.movedim(s.dim, 0)[s.index.to(values.device)]
    beside, rows = s.within
    table = values.movedim((beside, s.dim), (0, 1))
    return table[rows.to(values.device).unsqueeze(2), s.index.to(values.device).unsqueeze(1)]


def _added(s: Slice, values: Tensor, moves: Tensor) -> Tensor:
    """`values` with what each unit takes over from others."""
    gain = torch.einsum("ku,u...->k...", moves.to(values.device, values.dtype), _picked(s, values))
    fresh = values.clone()
    if s.within is None:
        table = fresh.movedim(s.dim, 0)
        table[s.index.to(values.device)] += gain
    else:
        beside, rows = s.within
        table = fresh.movedim((beside, s.dim), (0, 1))
        table[rows.to(values.device).unsqueeze(2), s.index.to(values.device).unsqueeze(1)] += gain
    return fresh
