"""Cutting: a smaller copy of the user's own module, verified against masking."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateur.errors import PlanError, SurgeryError
from secateur.graph.groups import Structure, structure
from secateur.graph.trace import Program, canonical_names, in_eval_mode, named_state
from secateur.surgery.attributes import Demand, apply, demands, proposals, revert, rewrite_known, solved, trials
from secateur.surgery.mask import masked_tensors
from secateur.surgery.plan import Plan, check_plan
from secateur.surgery.tensors import gather, removed_marks, replace_state
from secateur.types import Group, Rewrite

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
MOST_TRIALS = 64


@dataclass(frozen=True, eq=False)
class CutModel:
    """A cut model and what was done to it.

    Attributes:
        model: the smaller copy.
        rewrites: attributes of modules that were changed.
        verified: its outputs were compared with those of the masked model and are equal.
    """

    model: nn.Module
    rewrites: tuple[Rewrite, ...]
    verified: bool


def cut(model: nn.Module, plan: Plan, *, program: Program, verify: bool = True) -> nn.Module:
    """Return a smaller copy of `model`, of the same class; `model` itself stays as it is.

    Args:
        model: the module that `program` was traced from.
        plan: which units of each group stay.
        program: from `trace(model, ...)`.
        verify: compare the cut model with the masked one on the example inputs, in float64 where the
            model allows it. Groups that are not exact are only run.

    Raises:
        PlanError: the plan or the program is for another model.
        SurgeryError: no rewriting of attributes makes the forward pass fit, or the outputs differ.
    """
    return cut_model(model, plan, program=program, verify=verify).model


def cut_model(model: nn.Module, plan: Plan, *, program: Program, verify: bool = True) -> CutModel:
    """Like `cut`, with a record of what was done."""
    found = structure(program)
    check_plan(plan, found.groups)
    _check_program(model, program)
    small = copy.deepcopy(model)
    _cut_tensors(small, found, plan)
    widths = _widths(found, plan)
    rewrites = solved(found, widths)
    apply(small, tuple(rewrites))
    rewrites += rewrite_known(small, demands(found, widths))
    wanted = demands(found, widths, with_source=False)
    touched = [group for group in found.groups if group.name in plan.keep]
    check = _Check(model, tuple(touched), plan, program, compare=verify and all(g.exact for g in touched))
    rewrites += _rewrite_rest(small, wanted, check)
    return CutModel(small, tuple(rewrites), check.compare)


def _widths(found: Structure, plan: Plan) -> dict[str, int]:
    return {g.name: len(plan.keep[g.name]) // g.rows for g in found.groups if g.name in plan.keep}


def _check_program(model: nn.Module, program: Program) -> None:
    state = named_state(model)
    for name, shape in program.shapes.items():
        if name not in state or tuple(state[name].shape) != shape:
            has = tuple(state[name].shape) if name in state else "none such"
            raise PlanError(
                f"the program was traced from another model: it has {name!r} of shape {shape}, "
                f"this model has {has}; trace this model"
            )


def _cut_tensors(small: nn.Module, found: Structure, plan: Plan) -> None:
    state, aliases = named_state(small), canonical_names(small)
    shapes = {name: tuple(state[name].shape) for name in set(aliases.values())}
    marks = removed_marks(found.groups, plan, shapes)
    replace_state(small, {name: gather(state[name], gone) for name, gone in marks.items()})


@dataclass(frozen=True, eq=False)
class _Check:
    """Whether a cut model does what it should: it runs, and where asked it equals the masked model."""

    model: nn.Module
    groups: tuple[Group, ...]
    plan: Plan
    program: Program
    compare: bool

    def expected(self) -> tuple[list[Tensor], list[Tensor]]:
        """Outputs of the masked model, and of the masked model in float64 (empty if it cannot run so)."""
        masked = copy.deepcopy(self.model)
        replace_state(masked, masked_tensors(masked, self.groups, self.plan))
        plain = outputs(masked, self.program.args, self.program.kwargs)
        return plain, outputs_double(masked, self.program.args, self.program.kwargs)

    def failure(self, small: nn.Module, expected: tuple[list[Tensor], list[Tensor]] | None) -> str | None:
        """Why `small` is not right; None if it is."""
        try:
            plain = outputs(small, self.program.args, self.program.kwargs)
        except Exception as error:
            return (str(error).strip().splitlines() or [type(error).__name__])[0]
        if expected is None:
            return None
        double = outputs_double(copy.deepcopy(small), self.program.args, self.program.kwargs) if expected[1] else []
        return difference(double, expected[1]) if double else difference(plain, expected[0])


def _rewrite_rest(small: nn.Module, wanted: list[Demand], check: _Check) -> list[Rewrite]:
    """Find the attributes of the user's own modules that must change, by trial."""
    expected = check.expected() if check.compare else None
    proposed = proposals(small, wanted)
    reason = None
    for number, trial in enumerate(trials(proposed)):
        if number == MOST_TRIALS:
            break
        apply(small, trial)
        failure = check.failure(small, expected)
        if failure is None:
            return list(trial)
        # The trial of all proposals tells more than the one of none, which comes first.
        reason = failure if number < 2 else reason
        revert(small, trial)
    raise SurgeryError(_explain(small, wanted, proposed, reason))


def _explain(small: nn.Module, wanted: list[Demand], proposed: list[Rewrite], reason: str | None) -> str:
    tried = sorted({f"{p.module or type(small).__name__}.{p.attribute}" for p in proposed})
    place = next((d for d in wanted if d.modules), None)
    where = (
        f"module {place.modules[0] or type(small).__name__!r}, operator {place.operator}: it names the size "
        f"{place.before} where {place.after} is needed; "
        if place
        else ""
    )
    return (
        f"the cut model does not compute what the masked one does ({reason}); {where}"
        f"attributes tried: {', '.join(tried) if tried else 'none fits'}; let the forward pass read the size "
        "from an attribute or from the tensor's shape, or pass the module's name in ignore=[...]"
    )


def outputs(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """Every tensor that the model gives in eval mode, without gradients."""
    with in_eval_mode(model), torch.no_grad():
        leaves = pytree.tree_leaves(model(*copy.deepcopy(args), **copy.deepcopy(dict(kwargs))))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def outputs_double(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """Likewise in float64; nothing if the model cannot run in it. `model` is converted in place."""

    def widen(leaf: Any) -> Any:
        return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

    try:
        return outputs(model.double(), *pytree.tree_map(widen, (args, dict(kwargs))))
    except Exception:
        return []


def difference(found: list[Tensor], expected: list[Tensor]) -> str | None:
    """How two lists of outputs differ beyond rounding, relative to the largest value; None if not."""
    if [t.shape for t in found] != [t.shape for t in expected]:
        return f"output shapes {[tuple(t.shape) for t in found]} instead of {[tuple(t.shape) for t in expected]}"
    for a, b in zip(found, expected, strict=True):
        if not (b.is_floating_point() or b.is_complex()):
            continue
        scale = float(b.abs().max()) if b.numel() else 0.0
        error = float((a - b).abs().max()) / max(scale, 1e-30) if b.numel() else 0.0
        if not error <= TOLERANCE.get(b.dtype, 5e-2):
            return f"outputs differ by {error:.1e} relative to the largest"
    return None
