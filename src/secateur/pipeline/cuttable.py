"""Which groups can be cut out of the user's own module: found by trying."""

from collections.abc import Sequence

import torch
from torch import nn

from secateur.criteria.chance import Random
from secateur.criteria.statistics import Statistics
from secateur.errors import SurgeryError
from secateur.graph.modes import training_only
from secateur.graph.trace import Program
from secateur.pipeline.scope import Scope
from secateur.surgery.cut import cut
from secateur.surgery.plan import Plan, plan
from secateur.types import Group, Note


def cuttable_groups(
    model: nn.Module, program: Program, groups: Sequence[Group], scope: Scope | None = None
) -> tuple[tuple[Group, ...], tuple[Note, ...]]:
    """The groups that `scope` admits (exact ones and experts) and that survive a trial cut; why the others do not.

    All groups are tried at once first, then all branches; only where that fails, one by one.
    """
    wanted = [group for group in groups if (scope or Scope()).admits(group)]
    inside = [group for group in wanted if group.width > 1]
    whole = [group for group in wanted if group.minimum == 0]
    notes = [
        Note(g.name, f"removal is not exact: {g.note}; name it in inexact=[...] to let its units go")
        for g in groups
        if g not in wanted
    ]
    sound: list[Group] = []
    # Branches apart: a cut that takes one out says nothing of the groups that lie in it.
    for tried in (inside, whole):
        if _failure(model, program, tried) is None:
            sound += tried
        else:
            notes += _one_by_one(model, program, tried, sound)
    return tuple(sound), tuple(notes)


def training_misfits(model: nn.Module, program: Program, groups: Sequence[Group]) -> tuple[str, ...]:
    """Modules that only training mode reaches and that do not fit there once `groups` are cut."""
    found = training_only(program)
    if not found or not groups:
        return ()
    small = cut(model, _trial(groups), program=program)
    try:
        with torch.no_grad(), torch.random.fork_rng():
            small.train()(*program.args, **program.kwargs)
    except Exception:
        return found
    return ()


def _one_by_one(model: nn.Module, program: Program, tried: Sequence[Group], sound: list[Group]) -> list[Note]:
    """Add to `sound` what can be cut along with it; notes on what cannot."""
    notes = []
    for group in tried:
        beside = [other for other in sound if other in tried]
        failure = _failure(model, program, [group]) or _failure(model, program, [*beside, group])
        if failure is None:
            sound.append(group)
        else:
            notes.append(Note(group.name, failure))
    return notes


def _failure(model: nn.Module, program: Program, groups: Sequence[Group]) -> str | None:
    try:
        cut(model, _trial(groups), program=program)
    except SurgeryError as error:
        return str(error)
    return None


def _trial(groups: Sequence[Group]) -> Plan:
    scores = {group.name: Random(1)(group, Statistics()).to(torch.float64) for group in groups}
    # Not all alike, so that widths which must stay equal show up.
    shares = {group.name: (0.4, 0.25)[number % 2] for number, group in enumerate(groups)}
    return plan(groups, scores, sparsity={g.name: 1.0 if g.minimum == 0 else shares[g.name] for g in groups})
