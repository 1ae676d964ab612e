"""Arguments of a scan that are of the wrong kind, named before anything is measured."""

from collections.abc import Mapping, Sequence

from secateur.errors import ArgumentError
from secateur.graph.trace import Program, named_state
from secateur.sensitivity.racing import Racing
from secateur.types import Group


def check_how(racing: object, deepen: object, surrogate: object, executor: object, progress: object) -> None:
    """Refuse what says in the wrong way how a scan is to be run."""
    check_kind("racing", racing, racing is None or isinstance(racing, Racing), "sc.Racing((tolerance,))")
    check_kind("deepen", deepen, deepen is None or callable(deepen), "sc.Contenders(costs, [budget])")
    is_surrogate = surrogate is None or (
        isinstance(surrogate, Mapping) and all(isinstance(own, Mapping) for own in surrogate.values())
    )
    check_kind("surrogate", surrogate, is_surrogate, "{group name: {width: predicted damage}}, as sc.predict gives")
    check_kind("executor", executor, executor is None or hasattr(executor, "start"), "sc.ProcessExecutor(2), or None")
    check_kind("progress", progress, progress is None or hasattr(progress, "stage"), "sc.make_progress(), or None")


def check_groups(program: Program, groups: Sequence[Group]) -> None:
    """Refuse groups that are not of the model, or no list of groups."""
    is_right = not isinstance(groups, Mapping | Group) and all(isinstance(group, Group) for group in groups)
    check_kind("groups", groups, is_right, "a list of groups, as find_groups(program) gives")
    places = {piece.parameter for group in groups for piece in group.slices}
    if missing := sorted(places - named_state(program.model).keys()):
        raise ArgumentError(
            f"the model has no {missing[0]!r}, in which units of the groups lie: it is another one than that of the "
            "groups, or was changed since; trace it and find its groups again"
        )


def check_kind(name: str, given: object, is_right: bool, needed: str) -> None:
    """Refuse an argument that is not of the right kind."""
    if not is_right:
        raise ArgumentError(f"{name} is a {type(given).__name__}; pass {needed}")
