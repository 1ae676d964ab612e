"""Groups: the axes that remain unfixed, each with every parameter slice that it ties together."""

import fnmatch
import functools
import itertools
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from secateur.errors import ArgumentError
from secateur.graph.axes import Axis, Concat, Dims, DimType, Product, fixed_sizes, leaves, positions, positions_within
from secateur.graph.branches import Branch, find_branches
from secateur.graph.infer import infer
from secateur.graph.lookup import Lookup, look_up
from secateur.graph.nesting import outer_axes
from secateur.graph.trace import Program
from secateur.graph.typing import Typing
from secateur.types import Fallback, FixedAxis, Group, Rows, Slice

IGNORED = "ignored at the caller's wish"


@dataclass(frozen=True, eq=False)
class Structure:
    """All that typing a program tells.

    Attributes:
        groups: what can be cut.
        fixed: what cannot, and why.
        typing: the types themselves.
        axis_groups: axis id -> name of its group.
        fallback: "graph" if the groups are those that only a graph can follow too.
        split_stacks: whether layers of one stacked recurrent module may end at different widths.
        branches: residual branches that can go as a whole.
    """

    groups: tuple[Group, ...]
    fixed: tuple[FixedAxis, ...]
    typing: Typing
    axis_groups: dict[int, str]
    fallback: Fallback = "error"
    split_stacks: bool = False
    branches: tuple[Branch, ...] = ()

    @property
    def units(self) -> tuple[Group, ...]:
        """All groups, those of one branch each too."""
        return self.groups + tuple(branch.group for branch in self.branches)

    def has(self, sizes: Mapping[str, int]) -> bool:
        """Whether there are groups of these names and numbers of units."""
        return sizes.items() <= {group.name: group.size for group in self.units}.items()

    def coverage(self) -> float:
        """Share of removable positions, over all parameters, that lie in a group.

        Positions fixed by the meaning of the model (inputs, outputs, kernel taps, vocabulary) do not
        count as removable.
        """
        free = sum(extent(s) for g in self.groups for s in g.slices if s.trained)
        lost = sum(f.size for f in self.fixed if not f.reason.startswith(BY_MEANING))
        return free / (free + lost) if free + lost else 0.0


Ignored = Collection[str | Callable[[str], bool]]
Option = int | Mapping[str, int]

LAYER = re.compile(r"(?:(.*)\.)?(?:weight|bias)_(?:ih|hh|hr)_l(\d+)(?:_reverse)?")

PLACES = {"outer": "head", "inner": "head_dim"}

BY_MEANING = (
    "an input of the model",
    "an output of the model",
    "a tap of a kernel",
    "rows of an embedding",
    "rows of a table",
    "not used by the forward pass",
    "the gates of",
    "holds one position",
    "a position in space",
    IGNORED,
)


def find_groups(
    program: Program,
    ignore: Ignored = (),
    *,
    multiple_of: Option = 1,
    minimum: Option = 1,
    fallback: Fallback = "error",
    branches: bool = False,
    split_stacks: bool = False,
) -> tuple[Group, ...]:
    """Every set of parameter slices that can be cut together.

    Args:
        program: from `trace`.
        ignore: what must stay: names of modules or parameters, globs (`"layer4.*"`), or functions of a
            parameter's name.
        multiple_of: widths stay multiples of this: one number, or glob of group names -> number.
        minimum: the least width, likewise.
        fallback: "graph" also finds what the model's own forward pass could not follow; a plan remembers it for
            `mask`, `cut` and `plan.cost`.
        branches: residual branches too, each a group of one unit that may go (a sparsity of 1).
        split_stacks: each layer of a stacked `nn.LSTM`, `nn.GRU` or `nn.RNN` is a group of its own (`"rnn.l0"`), so
            that layers may end at different widths; `cut` then puts an equivalent stack in the module's place. The
            two directions of a layer stay equally wide. Layers stay together where one tensor holds the states of
            all: where an initial state is given, or the final states are read otherwise than layer by layer; the
            group's note says so. Else all layers are one group, and keep equally many units each.

    Raises:
        ArgumentError: a number below 1, or a pattern that fits no group.

    >>> import secateur as sc, torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.ReLU(), torch.nn.Linear(5, 2))
    >>> [(g.name, g.size) for g in sc.find_groups(sc.trace(net, (torch.zeros(1, 3),)))]
    [('0', 5)]
    """
    found = structure(program, ignore, fallback=fallback, split_stacks=split_stacks)
    groups = found.groups
    names = [group.name for group in groups]
    multiples, least = _option(names, multiple_of, "multiple_of"), _option(names, minimum, "minimum")
    sized = tuple(
        replace(g, multiple_of=multiples[g.name], minimum=min(max(g.minimum, least[g.name]), g.width)) for g in groups
    )
    return sized + found.units[len(groups) :] if branches else sized


def find_fixed(
    program: Program, ignore: Ignored = (), *, fallback: Fallback = "error", split_stacks: bool = False
) -> tuple[FixedAxis, ...]:
    """Every parameter dimension that no group of `find_groups` holds, and why."""
    return structure(program, ignore, fallback=fallback, split_stacks=split_stacks).fixed


def structure(
    program: Program, ignore: Ignored = (), *, fallback: Fallback = "error", split_stacks: bool = False
) -> Structure:
    """Type `program` and read groups and fixed axes off the types; this is done once for a program."""
    key = ("structure", fallback, split_stacks)
    if key not in program.derived:
        program.derived[key] = _structure(program, fallback, split_stacks)
    whole: Structure = program.derived[key]
    return _without(whole, ignore) if ignore else whole


def structure_for(program: Program, sizes: Mapping[str, int], fallback: Fallback = "error") -> Structure:
    """The structure that has groups of these names and numbers of units, as a plan names them.

    Where none has, the one in which the layers of a stack are one group.
    """
    found = structure(program, fallback=fallback)
    if found.has(sizes):
        return found
    split = structure(program, fallback=fallback, split_stacks=True)
    return split if split.has(sizes) else found


def _without(whole: Structure, ignore: Ignored) -> Structure:
    """The structure in which all that is ignored stays."""
    left = {g.name: g for g in whole.groups if any(is_ignored(s.parameter, ignore) for s in g.slices)}
    fixed = [FixedAxis(s.parameter, s.dim, extent(s), IGNORED) for g in left.values() for s in g.slices]
    return replace(
        whole,
        groups=tuple(g for g in whole.groups if g.name not in left),
        fixed=(*whole.fixed, *fixed),
        axis_groups={id_: name for id_, name in whole.axis_groups.items() if name not in left},
        branches=tuple(b for b in whole.branches if not any(is_ignored(name, ignore) for name in b.parameters)),
    )


def _structure(program: Program, fallback: Fallback, split_stacks: bool) -> Structure:
    typing = infer(program, fallback, split_stacks=split_stacks)
    outer = outer_axes(typing)
    known = look_up(typing, fallback)
    # Equal types lie equally: one index tensor serves all their slices.
    where = functools.cache(positions)
    slices: dict[int, list[Slice]] = defaultdict(list)
    sizes: dict[int, int] = {}
    fixed: list[FixedAxis] = []
    for name, dims in known.state.items():
        for number, dim in enumerate(dims):
            fixed += [FixedAxis(name, number, f.size, f.reason) for f in fixed_sizes(dim)]
            for axis in dict.fromkeys(leaves(dim)):
                sizes[axis.id] = axis.size
                found = _slice(name, dims, number, axis, outer.get(axis.id), where)
                slices[axis.id].append(replace(found, trained=name in program.trained))
    members = _members(typing, [id_ for id_ in slices if _is_cuttable(slices[id_], sizes[id_])])
    groups = _named([_group(known, family, slices, sizes, outer) for family in members])
    places: dict[int, Rows] = {}
    for family, group in zip(members, groups, strict=True):
        for id_, row in zip(family, _first_rows(family, outer), strict=True):
            places[id_] = Rows(group.name, row * group.width, _rows_of(id_, outer))
    nested = tuple(
        replace(group, nesting=_nesting_of(family, places, outer), fallback=fallback)
        for family, group in zip(members, groups, strict=True)
    )
    named_axes = {id_: place.outer for id_, place in places.items()}
    branches = tuple(replace(b, group=replace(b.group, fallback=fallback)) for b in find_branches(program))
    return Structure(nested, tuple(fixed), typing, named_axes, fallback, split_stacks, branches)


def extent(s: Slice) -> int:
    """Positions of its dimension that a slice covers.

    >>> import torch
    >>> extent(Slice("w", 0, torch.tensor([[0], [1], [0], [1]])))
    2
    """
    return len(torch.unique(s.index))


def _slice(
    name: str,
    dims: Dims,
    number: int,
    axis: Axis,
    outer: Axis | None,
    where: Callable[[DimType], Mapping[int, torch.Tensor]],
) -> Slice:
    """Where the units of an axis lie along one dimension; those within an outer axis are told apart by it."""
    dim = dims[number]
    if outer is None:
        return Slice(name, number, where(dim)[axis.id])
    if outer in leaves(dim):
        return Slice(name, number, positions_within(dim, axis, outer))
    beside = next(k for k, other in enumerate(dims) if outer in leaves(other))
    rows = where(dims[beside])[outer.id].repeat_interleave(axis.size, 0)
    return Slice(name, number, where(dim)[axis.id].repeat(outer.size, 1), within=(beside, rows))


def _rows_of(id_: int, outer: Mapping[int, Axis]) -> int:
    return outer[id_].size if id_ in outer else 1


def _first_rows(family: Sequence[int], outer: Mapping[int, Axis]) -> list[int]:
    """The first row of each axis of a family in their group."""
    return list(itertools.accumulate((_rows_of(id_, outer) for id_ in family), initial=0))[:-1]


def _nesting_of(family: Sequence[int], places: Mapping[int, Rows], outer: Mapping[int, Axis]) -> tuple[Rows, ...]:
    """The units of other groups that the rows of a family lie in; nothing where they lie in none."""
    around = [places.get(outer[id_].id, Rows("", 0, 1)) if id_ in outer else Rows("", 0, 1) for id_ in family]
    found = tuple(replace(place, count=_rows_of(id_, outer)) for id_, place in zip(family, around, strict=True))
    return found if any(rows.outer for rows in found) else ()


def _option(names: Sequence[str], given: Option, what: str) -> dict[str, int]:
    """The number for each group: the last pattern that fits decides, 1 where none does."""
    found = dict.fromkeys(names, given if isinstance(given, int) else 1)
    for pattern, number in given.items() if isinstance(given, Mapping) else [("*", given)] if names else []:
        fitting = [name for name in names if name == pattern or fnmatch.fnmatchcase(name, pattern)]
        if number < 1 or not fitting:
            raise ArgumentError(
                f"{what}: {pattern!r} -> {number}; needed a number of at least 1 and a pattern that fits one of "
                f"the groups {names}"
            )
        found |= dict.fromkeys(fitting, number)
    return found


def is_ignored(name: str, ignore: Ignored) -> bool:
    """Whether a pattern names the parameter, one of its modules, or matches it as a glob.

    >>> is_ignored("layer1.0.conv.weight", ["layer1.0"]), is_ignored("fc.weight", ["layer*"])
    (True, False)
    """
    return any(
        pattern(name)
        if callable(pattern)
        else name == pattern or name.startswith(pattern + ".") or fnmatch.fnmatchcase(name, pattern)
        for pattern in ignore
    )


def _is_cuttable(slices: list[Slice], size: int) -> bool:
    return size > 1 and any(s.trained for s in slices)


def _members(typing: Typing, ids: list[int]) -> list[tuple[int, ...]]:
    """Axes that form one group: the rows of a family together, every other axis alone.

    Rows stand in the order in which the parameters hold them, so that a cut model's rows are the model's.
    """
    place = {id_: number for number, id_ in enumerate(ids)}
    taken: dict[int, tuple[int, ...]] = {}
    for family in typing.families:
        rows = [typing.unifier.resolve(dim) for dim in family]
        own = {row.id for row in rows if isinstance(row, Axis) and row.id in place}
        own.update(*[taken[id_] for id_ in own if id_ in taken])
        taken |= dict.fromkeys(own, tuple(sorted(own, key=place.__getitem__)))
    return list(dict.fromkeys(taken.get(id_, (id_,)) for id_ in ids))


def _group(
    known: Lookup,
    family: tuple[int, ...],
    slices: Mapping[int, list[Slice]],
    sizes: Mapping[int, int],
    outer: Mapping[int, Axis],
) -> Group:
    """One group of the axes of `family`; a row's units follow those of the row before."""
    width = sizes[family[0]]
    own: list[Slice] = []
    for row, id_ in zip(_first_rows(family, outer), family, strict=True):
        bare = id_ in known.bare
        own += [replace(s, first=row * width, masked=bare or known.is_consumer(s, id_)) for s in slices[id_]]
    notes = known.why_inexact(family)
    place = _nesting(known, own, family)
    return Group(
        name=_producer(known, own),
        size=width * sum(_rows_of(id_, outer) for id_ in family),
        slices=tuple(own),
        granularity="expert" if known.ranked.intersection(family) else _granularity(known, own, place),
        rows=sum(_rows_of(id_, outer) for id_ in family),
        exact=not notes,
        note="; ".join(notes + known.why_tied(family)),
        minimum=max(known.least(family), 2 if place else 1),
    )


def _producer(known: Lookup, slices: list[Slice]) -> str:
    """The module that makes the units: owner of the first slice that is not a consumer's input.

    Where that is a stack of recurrent layers and one of them alone makes the units, the layer.
    """
    trained = [s for s in slices if s.trained]
    made = [s for s in trained if not s.masked] or [s for s in trained if s.dim == 0] or trained
    owner, _, leaf = made[0].parameter.rpartition(".")
    places = (LAYER.fullmatch(s.parameter) for s in made)
    layers = {place[2] for place in places if place and (place[1] or "") == owner}
    if len(layers) == 1 and f"{owner}.weight_ih_l1".removeprefix(".") in known.state:
        return f"{owner}.l{layers.pop()}".removeprefix(".")
    return owner if leaf in {"weight", "bias"} or leaf.startswith(("weight_", "bias_")) else made[0].parameter


def _granularity(known: Lookup, slices: list[Slice], place: str | None) -> str:
    if any(s.parameter.rpartition(".")[2].startswith("weight_hh") for s in slices):
        return "hidden"
    is_conv = max(len(known.state[s.parameter]) for s in slices) >= 3
    if place:
        return {"outer": "channel_group", "inner": "channel"}[place] if is_conv else PLACES[place]
    return "channel" if is_conv else "neuron"


def _nesting(known: Lookup, slices: list[Slice], family: tuple[int, ...]) -> str | None:
    """Say "outer" or "inner" for an axis that lies in a product with other axes."""
    dims = (known.state[s.parameter][s.dim] for s in slices)
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
