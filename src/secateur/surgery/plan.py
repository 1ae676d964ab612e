"""Plans: which units of each group stay. Decided, checked and serialisable; nothing is changed yet."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import get_args

import torch
from torch import Tensor

from secateur.errors import ArgumentError, NumericalError, PlanError
from secateur.graph.costs import cost_model, item_bytes
from secateur.graph.groups import structure_for
from secateur.graph.trace import Program
from secateur.types import Cost, Fallback, Group, Rows

Scores = Mapping[str, Tensor]
SCHEMA_VERSION = 1


@dataclass(frozen=True, eq=False)
class Plan:
    """The units that each group keeps; a group that is not named keeps all.

    Attributes:
        keep: group -> int64 positions of the kept units, ascending.
        sizes: group -> number of units before.
        nesting: group whose rows lie within the units of others -> those, in order of the rows.
        fallback: that which the groups were found with; `mask`, `cut` and `cost` find them again with it.
    """

    keep: Mapping[str, Tensor]
    sizes: Mapping[str, int]
    nesting: Mapping[str, tuple[Rows, ...]] = field(default_factory=dict)
    fallback: Fallback = "error"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Plan):
            return NotImplemented
        same_groups = dict(self.sizes) == dict(other.sizes) and self.keep.keys() == other.keep.keys()
        same_way = self.fallback == other.fallback
        return same_groups and same_way and all(torch.equal(kept, other.keep[name]) for name, kept in self.keep.items())

    __hash__ = None  # type: ignore[assignment]

    def mask(self, group: str) -> Tensor:
        """Bool (units,), True = keep."""
        mask = torch.zeros(self.sizes[group], dtype=torch.bool)
        mask[self.keep[group]] = True
        return mask

    def sparsity(self, group: str) -> float:
        """Fraction of the group's units that are removed, in [0, 1); 1 for a branch that goes."""
        return 1 - len(self.keep[group]) / self.sizes[group]

    def then(self, later: "Plan") -> "Plan":
        """This plan and, on what it leaves, `later`: one plan for the original model.

        >>> first = Plan({"a": torch.tensor([0, 2, 3])}, {"a": 5})
        >>> first.then(Plan({"a": torch.tensor([1])}, {"a": 3})).keep["a"].tolist()
        [2]
        """
        keep, sizes = dict(self.keep), dict(self.sizes)
        nesting = {**later.nesting, **self.nesting}
        for name, kept in later.keep.items():
            alive = self._alive_rows(nesting.get(name, ()))
            size = sizes.setdefault(name, later.sizes[name] * len(alive) // max(int(alive.sum()), 1))
            rows = keep.get(name, torch.arange(size)).reshape(len(alive), -1)
            left = rows[alive].flatten()
            if len(left) != later.sizes[name]:
                raise PlanError(
                    f"group {name!r}: the later plan is for {later.sizes[name]} units, this one leaves {len(left)}"
                )
            chosen = left[kept].reshape(int(alive.sum()), -1)
            # Rows of outer units that are gone keep equally many, whichever.
            rows = rows[:, : chosen.shape[1]].clone()
            rows[alive] = chosen
            keep[name] = rows.flatten()
        return Plan(keep, sizes, nesting, _widest_fallback((self.fallback, later.fallback)))

    def renamed(self, names: Mapping[str, str]) -> "Plan":
        """The same plan with other names of groups; those that `names` lacks stay.

        >>> Plan({"a": torch.tensor([0])}, {"a": 2}).renamed({"a": "b"}).sizes
        {'b': 2}
        """
        return Plan(
            {names.get(name, name): kept for name, kept in self.keep.items()},
            {names.get(name, name): size for name, size in self.sizes.items()},
            {
                names.get(name, name): tuple(replace(r, outer=names.get(r.outer, r.outer)) for r in rows)
                for name, rows in self.nesting.items()
            },
            self.fallback,
        )

    def _alive_rows(self, nesting: Sequence[Rows]) -> Tensor:
        """Which rows of a group lie in outer units that this plan keeps: bool (rows,)."""
        alive = [
            self.mask(rows.outer)[rows.first : rows.first + rows.count]
            if rows.outer in self.keep
            else torch.ones(rows.count, dtype=torch.bool)
            for rows in nesting
        ]
        return torch.cat(alive) if alive else torch.ones(1, dtype=torch.bool)

    def cost(self, program: Program, *, fallback: Fallback | None = None) -> Cost:
        """The cost of the cut model, predicted from the types; latency is not predicted.

        Args:
            program: of the model.
            fallback: that which the groups of the plan were found with; None = as the plan remembers it.
        """
        found = structure_for(program, self.sizes, fallback or self.fallback)
        rows = {group.name: group.rows for group in found.units}
        unknown = sorted(set(self.keep) - set(rows))
        if unknown:
            raise PlanError(f"the program has no group {unknown[0]!r}; the plan is for another model")
        model = cost_model(found, item_bytes(program))
        widths = {name: len(kept) // rows[name] for name, kept in self.keep.items()}
        return Cost(model.macs(widths), model.params(widths), model.memory_bytes(widths))

    def to_json(self) -> str:
        """The plan as JSON text; `from_json` gives it back."""
        groups = {
            name: {"size": self.sizes[name], "keep": kept.tolist()}
            | ({"nesting": [asdict(rows) for rows in self.nesting[name]]} if name in self.nesting else {})
            for name, kept in sorted(self.keep.items())
        }
        return json.dumps({"schema_version": SCHEMA_VERSION, "fallback": self.fallback, "groups": groups})

    @staticmethod
    def from_json(text: str) -> "Plan":
        """Read a plan back.

        Raises:
            PlanError: the text is not a plan, or its indices are not ascending positions.

        >>> plan = Plan({"a": torch.tensor([0, 2])}, {"a": 3})
        >>> Plan.from_json(plan.to_json()) == plan
        True
        """
        try:
            raw = json.loads(text)
            groups = raw["groups"]
            version = raw["schema_version"]
            fallback = raw.get("fallback", "error")  # a plan of before it was remembered
            keep = {str(n): torch.tensor(g["keep"], dtype=torch.int64) for n, g in groups.items()}
            sizes = {str(n): int(g["size"]) for n, g in groups.items()}
            nesting = {str(n): tuple(Rows(**r) for r in g["nesting"]) for n, g in groups.items() if "nesting" in g}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise PlanError(f"this is not a plan in JSON: {error}; write one with plan.to_json()") from error
        if version != SCHEMA_VERSION:
            raise PlanError(f"the plan has schema version {version}; this release reads version {SCHEMA_VERSION}")
        if fallback not in get_args(Fallback):
            raise PlanError(f"the plan's fallback is {fallback!r}; it must be one of {list(get_args(Fallback))}")
        for name, kept in keep.items():
            check_keep(name, kept, sizes[name])
        return Plan(keep, sizes, nesting, fallback)


def plan(
    groups: Sequence[Group],
    scores: Scores,
    *,
    sparsity: float | Mapping[str, float] | None = None,
    widths: Mapping[str, int] | None = None,
) -> Plan:
    """Keep the highest-scored units of each group.

    Args:
        groups: from `find_groups`.
        scores: group name -> float (units,), higher = keep.
        sparsity: fraction of units to remove in [0, 1): one number for all exact groups, or one for
            each group that is named. Widths are rounded up, so no more is removed than asked. A branch,
            a group of one unit that may go, goes at 1.
        widths: units to keep in a row of each group that is named, as an allocation has them. Exactly one of the two.

    Raises:
        ArgumentError: both or neither of sparsity and widths, a value that a group does not allow, or of a group that
            does not exist.
        NumericalError: a score is NaN.

    >>> group = Group("fc", 4, ())
    >>> plan([group], {"fc": torch.tensor([3.0, 1.0, 2.0, 4.0])}, sparsity=0.5).keep["fc"].tolist()
    [0, 3]
    """
    by_name = {group.name: group for group in groups}
    if (sparsity is None) == (widths is None):
        raise ArgumentError(f"pass exactly one of sparsity and widths; got sparsity={sparsity}, widths={widths}")
    if widths is not None:
        _check_widths(groups, widths)
        return plan_widths(groups, scores, widths)
    if isinstance(sparsity, Mapping):
        wanted = dict(sparsity)
    else:
        assert sparsity is not None
        wanted = {group.name: sparsity for group in groups if group.exact}
    for name in wanted:
        if name not in by_name:
            raise ArgumentError(f"sparsity names the group {name!r}; the groups are {sorted(by_name)}")
    widths = {name: kept_width(by_name[name], value) for name, value in wanted.items()}
    return plan_widths(groups, scores, widths)


def _check_widths(groups: Sequence[Group], widths: Mapping[str, int]) -> None:
    by_name = {group.name: group for group in groups}
    for name, width in widths.items():
        if name not in by_name:
            raise ArgumentError(f"widths names the group {name!r}; the groups are {sorted(by_name)}")
        group = by_name[name]
        whole = width == group.width or width % group.multiple_of == 0
        if not (group.minimum <= width <= group.width and whole):
            raise ArgumentError(
                f"group {name!r} cannot keep {width} units a row: it has {group.width}, and keeps at least "
                f"{group.minimum} and a multiple of {group.multiple_of}"
            )


def plan_widths(groups: Sequence[Group], scores: Scores, widths: Mapping[str, int]) -> Plan:
    """Keep the `widths[name]` highest-scored units in each row of each named group."""
    chosen = [group for group in groups if group.name in widths]
    keep = {group.name: top_units(group, scores, widths[group.name]) for group in chosen}
    nesting = {group.name: group.nesting for group in chosen if group.nesting}
    fallback = _widest_fallback(group.fallback for group in chosen)
    return Plan(keep, {group.name: group.size for group in chosen}, nesting, fallback)


def _widest_fallback(given: Iterable[Fallback]) -> Fallback:
    return "graph" if "graph" in given else "error"


def kept_width(group: Group, sparsity: float) -> int:
    """Units that a row keeps at `sparsity`: rounded up to the group's multiple, at least its minimum.

    >>> kept_width(Group("fc", 10, (), multiple_of=4), 0.5)
    8
    """
    if not 0 <= sparsity < 1 and not (sparsity == 1 and group.minimum == 0):
        raise ArgumentError(f"sparsity of group {group.name!r} is {sparsity}; it must lie in [0, 1)")
    # The guard against rounding noise: 10 * (1 - 0.7) is 3.0000000000000004.
    wanted = math.ceil(round(group.width * (1 - sparsity), 9))
    rounded = math.ceil(max(wanted, group.minimum) / group.multiple_of) * group.multiple_of
    return min(rounded, group.width)


def top_units(group: Group, scores: Scores, width: int) -> Tensor:
    """Positions of the `width` best units of each row, ascending; ties go to the lower position."""
    if group.name not in scores:
        raise ArgumentError(f"there are no scores for group {group.name!r}; score it first")
    values = torch.as_tensor(scores[group.name])
    if values.shape != (group.size,):
        raise PlanError(f"scores of group {group.name!r} have shape {tuple(values.shape)}; needed ({group.size},)")
    if bool(values.isnan().any()):
        raise NumericalError(f"scores of group {group.name!r} hold NaN; check the calibration data and the loss")
    rows = values.reshape(group.rows, group.width)
    best = rows.argsort(dim=1, descending=True, stable=True)[:, :width]
    offset = torch.arange(group.rows).unsqueeze(1) * group.width
    return (best.sort(dim=1).values + offset).flatten()


def kept_widths(groups: Sequence[Group], plan: Plan) -> dict[str, int]:
    """Units that `plan` keeps in a row of each group that it names."""
    return {group.name: len(plan.keep[group.name]) // group.rows for group in groups if group.name in plan.keep}


def check_keep(name: str, kept: Tensor, size: int) -> None:
    """Refuse positions that are not ascending, in range and at least one; a single unit, a branch, may go."""
    if kept.ndim == 1 and len(kept) == 0 and size == 1:
        return
    if kept.ndim != 1 or len(kept) == 0:
        raise PlanError(f"group {name!r} would keep no units; at least one must stay")
    is_sound = int(kept[0]) >= 0 and int(kept[-1]) < size and bool((kept.diff() > 0).all())
    if not is_sound:
        raise PlanError(f"group {name!r}: kept positions must be ascending and within 0..{size - 1}")


def check_plan(plan: Plan, groups: Sequence[Group]) -> None:
    """Refuse a plan that was made for another model.

    Raises:
        PlanError: names the group, its size in the plan and in the model.
    """
    by_name = {group.name: group for group in groups}
    for name, kept in plan.keep.items():
        group = by_name.get(name)
        if group is None:
            raise PlanError(
                f"the plan names the group {name!r}, which this model does not have; its groups are {sorted(by_name)}"
            )
        if group.size != plan.sizes[name]:
            raise PlanError(
                f"group {name!r} has {group.size} units in this model, {plan.sizes[name]} in the plan: "
                "the plan is for another model"
            )
        check_keep(name, kept, group.size)
        rows = plan.mask(name).reshape(group.rows, group.width).sum(dim=1)
        if bool((rows != rows[0]).any()):
            raise PlanError(
                f"group {name!r} must keep equally many units in each of its {group.rows} rows; got {rows.tolist()}"
            )
