"""What a run may take away: the caller's wishes, and the same groups again in the models of later rounds."""

import fnmatch
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from secateur.graph.groups import Ignored, Option, Structure, find_groups, structure
from secateur.graph.trace import Program
from secateur.types import Fallback, Group

EXPERTS = ("expert",)
Places = frozenset[tuple[str, int]]


@dataclass(frozen=True)
class Scope:
    """The caller's wishes; see `prune` for what each means.

    >>> Scope(inexact=("expert", "embed*")).admits(Group("embedding", 8, (), exact=False))
    True
    """

    ignore: Ignored = ()
    multiple_of: Option = 1
    minimum: Option = 1
    fallback: Fallback = "error"
    branches: bool = False
    inexact: Sequence[str] = EXPERTS
    split_stacks: bool = False

    def structure(self, program: Program) -> Structure:
        """All that the types of `program` tell."""
        return structure(program, self.ignore, fallback=self.fallback, split_stacks=self.split_stacks)

    def groups(self, program: Program) -> tuple[Group, ...]:
        """Every group that is not ignored, exact or not."""
        return find_groups(
            program, self.ignore, multiple_of=self.multiple_of, minimum=self.minimum, fallback=self.fallback,
            branches=self.branches, split_stacks=self.split_stacks,
        )  # fmt: skip

    def later_groups(self, program: Program) -> tuple[Group, ...]:
        """The groups of a model that was cut already: patterns of names may fit none that is left."""
        return replace(self, multiple_of=1, minimum=1).groups(program)

    def admits(self, group: Group) -> bool:
        """Whether units of the group may go by the caller's wishes."""
        fits = any(fnmatch.fnmatchcase(word, p) for p in self.inexact for word in (group.name, group.granularity))
        return group.exact or fits


def followed(groups: Sequence[Group], dense: Mapping[str, Group]) -> dict[str, Group]:
    """Name in the dense model -> the group of a later one that holds what is left of it, under its own name.

    A group is named after its first producer, which may have gone with a branch; what ties units together stays.
    The limits of widths are those of the dense group. A group that cannot be told for sure is left out.
    """
    places = {name: _places(group) for name, group in dense.items()}
    names = {group.name: _dense_name(group, dense, places) for group in groups}
    counts = Counter(names.values())
    found = {}
    for group in groups:
        name = names[group.name]
        if name is not None and counts[name] == 1:
            least = min(max(group.minimum, dense[name].minimum), group.width)
            found[name] = replace(group, multiple_of=dense[name].multiple_of, minimum=least)
    return found


def _dense_name(group: Group, dense: Mapping[str, Group], places: Mapping[str, Places]) -> str | None:
    own = _places(group)
    around = [name for name in dense if own <= places[name] and dense[name].granularity == group.granularity]
    return group.name if group.name in around else around[0] if len(around) == 1 else None


def _places(group: Group) -> Places:
    return frozenset((s.parameter, s.dim) for s in group.slices)
