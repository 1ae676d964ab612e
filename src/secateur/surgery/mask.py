"""Masking: the same network, its consumers seeing zeros where units are to go."""

from collections.abc import Sequence

from torch import Tensor, nn

from secateur.graph.copies import copy_of
from secateur.graph.groups import structure_for
from secateur.graph.trace import Program, named_state
from secateur.surgery.plan import Plan, check_plan
from secateur.surgery.tensors import removed_marks, replace_state, zero_marked
from secateur.types import Fallback, Group


def mask(model: nn.Module, plan: Plan, *, program: Program, fallback: Fallback | None = None) -> nn.Module:
    """A copy of `model` that computes what the cut model will, at the old size.

    The slices of consumers' weights that read a removed unit are zero; where something sums over the
    units without a weight (queries with keys), the weights that make them are.

    Args:
        model: the module that `program` was traced from.
        plan: what to remove.
        program: from `trace(model, ...)`.
        fallback: that which the groups of the plan were found with; None = as the plan remembers it.

    Raises:
        PlanError: the plan is for another model.
    """
    groups = structure_for(program, plan.sizes, fallback or plan.fallback).units
    check_plan(plan, groups)
    masked = copy_of(model)
    replace_state(masked, masked_tensors(masked, groups, plan))
    return masked


def masked_tensors(model: nn.Module, groups: Sequence[Group], plan: Plan) -> dict[str, Tensor]:
    """The tensors of `model` that masking changes, changed; by canonical name."""
    state = named_state(model)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    marks = removed_marks(groups, plan, shapes, masked_only=True)
    return {name: zero_marked(state[name], found) for name, found in marks.items()}
