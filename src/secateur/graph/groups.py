"""Groups: the axes that remain unfixed, each with every parameter slice that it ties together."""

import fnmatch
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace

from secateur.graph.axes import Axis, Concat, DimType, Product, fixed_sizes, leaves, positions
from secateur.graph.infer import infer
from secateur.graph.trace import Program
from secateur.graph.typing import Typing
from secateur.types import FixedAxis, Group, Slice

IGNORED = "ignored at the caller's wish"


@dataclass(frozen=True, eq=False)
class Structure:
    """All that typing a program tells.

    Attributes:
        groups: what can be cut.
        fixed: what cannot, and why.
        typing: the types themselves.
        axis_groups: axis id -> (name of its group, row in it).
    """

    groups: tuple[Group, ...]
    fixed: tuple[FixedAxis, ...]
    typing: Typing
    axis_groups: dict[int, tuple[str, int]]

    def coverage(self) -> float:
        """Share of removable positions, over all parameters, that lie in a group.

        Positions fixed by the meaning of the model (inputs, outputs, kernel taps, vocabulary) do not
        count as removable.
        """
        free = sum(len(s.index) * s.index.shape[1] for g in self.groups for s in g.slices if s.trained)
        lost = sum(f.size for f in self.fixed if not f.reason.startswith(BY_MEANING))
        return free / (free + lost) if free + lost else 0.0


PLACES = {"outer": "head", "inner": "head_dim"}

BY_MEANING = (
    "an input of the model",
    "an output of the model",
    "a tap of a kernel",
    "rows of an embedding",
    "the gates of",
    "holds one position",
    "a position in space",
    IGNORED,
)


def find_groups(
    program: Program, ignore: Collection[str] = (), *, predicate: Callable[[str], bool] | None = None
) -> tuple[Group, ...]:
    """Every set of parameter slices that can be cut together.

    Args:
        program: from `trace`.
        ignore: names of modules or parameters, or globs (`"layer4.*"`), whose units must stay.
        predicate: called with each parameter's name; true means that it must stay.

    >>> import secateur as sc, torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.ReLU(), torch.nn.Linear(5, 2))
    >>> [(g.name, g.size) for g in sc.find_groups(sc.trace(net, (torch.zeros(1, 3),)))]
    [('0', 5)]
    """
    return structure(program, ignore, predicate=predicate).groups


def find_fixed(program: Program, ignore: Collection[str] = ()) -> tuple[FixedAxis, ...]:
    """Every parameter dimension that no group holds, and why."""
    return structure(program, ignore).fixed


def structure(
    program: Program, ignore: Collection[str] = (), *, predicate: Callable[[str], bool] | None = None
) -> Structure:
    """Type `program` and read groups and fixed axes off the types."""
    typing = infer(program)
    for name, dims in typing.state.items():
        if is_ignored(name, ignore) or (predicate is not None and predicate(name)):
            typing.fix(dims, IGNORED)
    slices: dict[int, list[Slice]] = defaultdict(list)
    sizes: dict[int, int] = {}
    fixed: list[FixedAxis] = []
    for name, dims in typing.state.items():
        for number, dim in enumerate(dims):
            resolved = typing.unifier.resolve(dim)
            fixed += [FixedAxis(name, number, f.size, f.reason) for f in fixed_sizes(resolved)]
            sizes |= {axis.id: axis.size for axis in leaves(resolved)}
            for id_, index in positions(resolved).items():
                slices[id_].append(Slice(name, number, index, trained=name in program.trained))
    members = _members(typing, [id_ for id_ in slices if _is_cuttable(slices[id_], sizes[id_])])
    groups = [_group(typing, family, slices, sizes) for family in members]
    named = _named(groups)
    where = {id_: (g.name, row) for family, g in zip(members, named, strict=True) for row, id_ in enumerate(family)}
    return Structure(tuple(named), tuple(fixed), typing, where)


def is_ignored(name: str, ignore: Collection[str]) -> bool:
    """Whether a pattern names the parameter, one of its modules, or matches it as a glob.

    >>> is_ignored("layer1.0.conv.weight", ["layer1.0"]), is_ignored("fc.weight", ["layer*"])
    (True, False)
    """
    return any(
        name == pattern or name.startswith(pattern + ".") or fnmatch.fnmatchcase(name, pattern) for pattern in ignore
    )


def _is_cuttable(slices: list[Slice], size: int) -> bool:
    return size > 1 and any(s.trained for s in slices)


def _members(typing: Typing, ids: list[int]) -> list[tuple[int, ...]]:
    """Axes that form one group: the rows of a family together, every other axis alone."""
    free = set(ids)
    taken: dict[int, tuple[int, ...]] = {}
    for family in typing.families:
        rows = [typing.unifier.resolve(dim) for dim in family]
        own = list(dict.fromkeys(row.id for row in rows if isinstance(row, Axis) and row.id in free))
        for known in [taken[id_] for id_ in own if id_ in taken]:
            own = list(dict.fromkeys([*known, *own]))
        taken |= dict.fromkeys(own, tuple(own))
    return list(dict.fromkeys(taken.get(id_, (id_,)) for id_ in ids))


def _group(typing: Typing, family: tuple[int, ...], slices: dict[int, list[Slice]], sizes: dict[int, int]) -> Group:
    """One group of the axes of `family`, its rows; a row's units follow those of the row before."""
    width = sizes[family[0]]
    own: list[Slice] = []
    for row, id_ in enumerate(family):
        bare = _is_summed_bare(typing, id_)
        own += [
            replace(s, first=row * width, masked=s.trained and (bare or _is_consumer(typing, s))) for s in slices[id_]
        ]
    notes = [r.text for r in typing.remarks if set(family) & _ids(typing, r.dim)]
    return Group(
        name=_producer(own),
        size=width * len(family),
        slices=tuple(own),
        granularity=_granularity(typing, own, family),
        rows=len(family),
        exact=not notes,
        note="; ".join(dict.fromkeys(notes)),
        minimum=2 if _nesting(typing, own, family) else 1,
    )


def _ids(typing: Typing, dim: DimType) -> set[int]:
    return {axis.id for axis in leaves(typing.unifier.resolve(dim))}


def _is_summed_bare(typing: Typing, id_: int) -> bool:
    """Whether something sums over the axis without a parameter: then only its makers can be zeroed."""
    return any(c.source is None and id_ in _ids(typing, c.dim) for c in typing.contractions)


def _is_consumer(typing: Typing, s: Slice) -> bool:
    """Whether an operator sums over this very dimension of the parameter."""
    own = typing.state[s.parameter][s.dim]
    return any(
        c.source == s.parameter
        and (c.at == s.dim or (c.at is None and typing.unifier.resolve(c.dim) == typing.unifier.resolve(own)))
        for c in typing.contractions
    )


def _producer(slices: list[Slice]) -> str:
    """The module that makes the units: owner of the first slice that is not a consumer's input."""
    trained = [s for s in slices if s.trained]
    made = [s for s in trained if not s.masked] or [s for s in trained if s.dim == 0] or trained
    owner, _, leaf = made[0].parameter.rpartition(".")
    return owner if leaf in {"weight", "bias"} or leaf.startswith(("weight_", "bias_")) else made[0].parameter


def _granularity(typing: Typing, slices: list[Slice], family: tuple[int, ...]) -> str:
    if any(s.parameter.rpartition(".")[2].startswith("weight_hh") for s in slices):
        return "hidden"
    is_conv = max(len(typing.state[s.parameter]) for s in slices) >= 3
    place = _nesting(typing, slices, family)
    if place:
        return {"outer": "channel_group", "inner": "channel"}[place] if is_conv else PLACES[place]
    return "channel" if is_conv else "neuron"


def _nesting(typing: Typing, slices: list[Slice], family: tuple[int, ...]) -> str | None:
    """Say "outer" or "inner" for an axis that lies in a product with other axes."""
    dims = (typing.unifier.resolve(typing.state[s.parameter][s.dim]) for s in slices)
    return next((place for dim in dims if (place := _place(dim, family))), None)


def _place(dim: DimType, family: tuple[int, ...]) -> str | None:
    """Whether the axis is an outer or an inner factor of a product of axes."""
    for part in dim.parts if isinstance(dim, Concat) else (dim,):
        if isinstance(part, Product):
            axes = [f for f in part.factors if isinstance(f, Axis)]
            for number, axis in enumerate(axes):
                if axis.id in family and len(axes) > 1:
                    return "outer" if number < len(axes) - 1 else "inner"
    return None


def _named(groups: list[Group]) -> list[Group]:
    """Unique names: the granularity is added where a module makes several kinds of units.

    Such groups, and all that lie in a product of axes, keep two units at least: an axis of one position
    vanishes from the types, and its siblings would have other names in the cut model than in the plan.
    """
    counts: dict[str, int] = defaultdict(int)
    for group in groups:
        counts[group.name] += 1
    names = [g.name if counts[g.name] == 1 else f"{g.name}:{g.granularity}" for g in groups]
    least = [max(g.minimum, 1 if counts[g.name] == 1 else 2) for g in groups]
    numbered = zip(groups, _numbered(names), least, strict=True)
    return [replace(g, name=name, minimum=minimum) for g, name, minimum in numbered]


def _numbered(names: list[str]) -> Iterator[str]:
    seen: dict[str, int] = defaultdict(int)
    for name in names:
        seen[name] += 1
        yield (name or "model") if seen[name] == 1 else f"{name}#{seen[name]}"
