"""Which groups can be cut out of the user's own module: found by trying."""

from collections.abc import Sequence

import torch
from torch import nn

from secateur.criteria.chance import Random
from secateur.criteria.statistics import Statistics
from secateur.errors import SurgeryError
from secateur.graph.trace import Program
from secateur.surgery.cut import cut
from secateur.surgery.plan import plan
from secateur.types import Group, Note


def cuttable_groups(
    model: nn.Module, program: Program, groups: Sequence[Group]
) -> tuple[tuple[Group, ...], tuple[Note, ...]]:
    """The exact groups that survive a trial cut, and why the others do not.

    All groups are tried at once first; only if that fails, one by one.
    """
    exact = [group for group in groups if group.exact and group.width > 1]
    notes = [Note(g.name, f"removal is not exact: {g.note}") for g in groups if not g.exact]
    if _failure(model, program, exact) is None:
        return tuple(exact), tuple(notes)
    sound: list[Group] = []
    for group in exact:
        failure = _failure(model, program, [group]) or _failure(model, program, [*sound, group])
        if failure is None:
            sound.append(group)
        else:
            notes.append(Note(group.name, failure))
    return tuple(sound), tuple(notes)


def _failure(model: nn.Module, program: Program, groups: Sequence[Group]) -> str | None:
    scores = {group.name: Random(1)(group, Statistics()).to(torch.float64) for group in groups}
    try:
        cut(model, plan(groups, scores, sparsity=0.4), program=program)
    except SurgeryError as error:
        return str(error)
    return None
