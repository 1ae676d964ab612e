"""Which axes a forward pass lets change, and which only together.

A cut model runs if every integer that its forward pass names is what the cut tensors need. Integers that
come from attributes can be rewritten; the same attribute in two places ties two axes; an integer that
is written down as a number fixes the axis that it counts.
"""

import functools
import itertools
from collections import ChainMap, Counter, defaultdict, deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from torch import fx

from secateur.graph.axes import Axis, Concat, DimType, Fixed, Product, leaves
from secateur.graph.sources import Arithmetic, Attribute, Extent, Literal, Source, evaluate, solve, source_leaves
from secateur.graph.typing import Constant, Typing, operator_name
from secateur.types import Fallback

Widths = Mapping[int, int]
"""Axis id -> units that stay; an axis that is not named keeps all."""


def settle(typing: Typing, fallback: Fallback = "error") -> None:
    """Fix what the forward pass cannot follow, and tie what it can only follow together.

    With `fallback="graph"` only what operators themselves ask for: the integers of a graph are ours to write.
    """
    _remark_computed(typing)
    if fallback == "graph":
        settle_families(typing)
        return
    _keep_comparisons(typing)
    for constant in typing.constants:
        if isinstance(constant.source, Literal):
            typing.fix([constant.dim], _WRITTEN.format(operator_name(constant.node).removeprefix("aten.")))
    typing.families += _counted_alike(typing.constants + typing.agreements) + _read_off_shapes(typing)
    typing.families += _divided(typing)
    settle_families(typing)
    _try_every_axis(typing)
    settle_families(typing)


_WRITTEN = "the forward pass gives {} its size as a number, not from an attribute or a shape"
_COMPARED = "the forward pass compares its size with a number"
_UNFOLLOWED = "no attribute of the model makes {} follow it"


def count(dim: DimType, widths: Widths) -> int:
    """Positions of a resolved type that are left when each axis keeps `widths[id]` units.

    >>> count(Product((Fixed(2), Axis(7, 5))), {7: 3})
    6
    """
    match dim:
        case Axis(id_, size):
            return widths.get(id_, size)
        case Fixed(size):
            return size
        case Product(factors):
            total = 1
            for factor in factors:
                total *= count(factor, widths)
            return total
        case Concat(parts):
            return sum(count(part, widths) for part in parts)


def _remark_computed(typing: Typing) -> None:
    """Flag axes whose size is more to the forward pass than a size: a scale, the number of slopes, a limit."""
    sizes = typing.program.sizes
    explained: dict[fx.Node, set[Source]] = defaultdict(set)
    for constant in typing.constants:
        if constant.source is not None:
            explained[constant.node].add(constant.source)
    odd = list(sizes.computed)
    for call, sources in enumerate(sizes.calls):
        if sources:
            nodes = sizes.nodes.get(call, ())
            odd += [s for s in sources if not any(s in explained[node] for node in nodes)]
    attributes = {c.source: c.dim for c in typing.constants if isinstance(c.source, Attribute)}
    for leaf in dict.fromkeys(leaf for source in odd for leaf in source_leaves(source)):
        dim = attributes.get(leaf) if isinstance(leaf, Attribute) else None
        if isinstance(leaf, Extent):
            dim = extent_dim(typing, leaf)
        if dim is not None and any(leaves(typing.unifier.resolve(dim))):
            typing.remark(dim, "the forward pass computes with its size", "python")


def _keep_comparisons(typing: Typing) -> None:
    """Sizes that the forward pass compared and found equal stay so: they end an assertion or choose a branch."""
    for pair in typing.program.sizes.compared:
        extents = [source for source in pair if isinstance(source, Extent)]
        dims = [dim for extent in extents if (dim := extent_dim(typing, extent)) is not None]
        if any(isinstance(source, Literal) for source in pair):
            # Nothing comes and goes in a dimension of one position or none.
            if pair[0].value > 1:
                typing.fix(dims, _COMPARED)
                typing.agreements += _held_at(typing, pair)
        elif len(dims) == 2:
            typing.families.append(tuple(dims))
        elif len(extents) == len(dims) == 1:
            (source,) = (source for source in pair if source is not extents[0])
            place = (extents[0].call or 0, extents[0].place)
            typing.agreements.append(Constant(typing.program.sizes.makers[place], "", None, dims[0], 1, source))


def _held_at(typing: Typing, pair: Sequence[Source]) -> list[Constant]:
    """Attributes that are compared with a number keep their values: each as if it counted that many fixed positions."""
    found: dict[Attribute, Constant] = {}
    attributes = {leaf for source in pair for leaf in source_leaves(source) if isinstance(leaf, Attribute)}
    for constant in typing.constants:
        for leaf in attributes.intersection(source_leaves(constant.source) if constant.source is not None else ()):
            found[leaf] = Constant(constant.node, "", None, Fixed(leaf.value, _COMPARED), 1, leaf)
    return list(found.values())


def _counted_alike(constants: Sequence[Constant]) -> list[tuple[DimType, ...]]:
    """Dimensions whose sizes come from one attribute stay equally wide."""
    counted: dict[Attribute, dict[DimType, None]] = defaultdict(dict)
    for constant in constants:
        if isinstance(constant.source, Attribute) and constant.sign == 1:
            counted[constant.source][constant.dim] = None
    return [tuple(dims) for dims in counted.values() if len(dims) > 1]


def _read_off_shapes(typing: Typing) -> list[tuple[DimType, ...]]:
    """A dimension whose size is read off another's, as in `out.reshape(batch, length, x.shape[-1])`, stays as wide."""
    found: dict[tuple[DimType, DimType], None] = {}
    for constant in typing.constants:
        if isinstance(constant.source, Extent) and constant.sign == 1:
            read = extent_dim(typing, constant.source)
            if read is not None and read != typing.unifier.resolve(constant.dim):
                found[constant.dim, read] = None
    return list(found)


def _divided(typing: Typing) -> list[tuple[DimType, ...]]:
    """A dimension that is divided to size another, as in `view(n, self.heads, x.shape[-1] // self.heads)`.

    It stays as wide as what it is divided by times what it gives.
    """
    counted: dict[Source, DimType] = {
        c.source: c.dim for c in typing.constants if isinstance(c.source, Attribute) and c.sign == 1
    }
    found: dict[tuple[DimType, DimType], None] = {}
    for constant in typing.constants:
        if not isinstance(constant.source, Arithmetic) or constant.source.symbol != "//" or constant.sign != 1:
            continue
        whole, by = constant.source.left, constant.source.right
        divided = extent_dim(typing, whole) if isinstance(whole, Extent) else counted.get(whole)
        times = extent_dim(typing, by) if isinstance(by, Extent) else counted.get(by)
        parts = Product((times or Fixed(by.value), constant.dim))
        if divided is not None and divided.size == parts.size:
            found[divided, parts] = None
    return list(found)


def settle_families(typing: Typing) -> None:
    """Axes that must stay equally wide: one fixed, all fixed; layouts that differ cannot be kept equal."""
    changed = True
    while changed:
        changed = False
        for family in typing.families:
            changed |= _settle(typing, [typing.unifier.resolve(dim) for dim in family])


def _settle(typing: Typing, family: Sequence[DimType]) -> bool:
    free = [dim for dim in family if not isinstance(dim, Fixed)]
    fixed = [dim for dim in family if isinstance(dim, Fixed)]
    if not free or (not fixed and len({_width(dim) for dim in free}) == 1):
        return False
    if fixed:
        typing.fix(free, fixed[0].reason or "it must stay as wide as an axis that is fixed")
        return True
    axes = [dim for dim in free if isinstance(dim, Axis)]
    products = [dim.factors for dim in free if isinstance(dim, Product)]
    if len(products) == len(free):
        products = _without_common(products)
    if len(axes) == len(free):
        return False
    layouts = {tuple(f.size for f in factors) for factors in products}
    if len(layouts) == 1 and len(products) + len(axes) == len(free):
        for axis in axes:
            typing.unify(axis, Product(typing.fresh(*layouts)))
        return _tie_factors(typing, products) or bool(axes)
    for dim in free[1:]:
        typing.unify(free[0], dim)
    return True


def _width(dim: DimType) -> frozenset[tuple[tuple[int, ...], int]]:
    """The size of a dimension as a polynomial in the widths of its axes: (axes, coefficient) of each term.

    >>> _width(Concat((Axis(1, 2), Axis(1, 2)))) == _width(Product((Fixed(2), Axis(1, 2))))
    True
    """
    return frozenset(_terms(dim).items())


def _terms(dim: DimType) -> Counter[tuple[int, ...]]:
    match dim:
        case Axis(id_):
            return Counter({(id_,): 1})
        case Fixed(size):
            return Counter({(): size})
        case Concat(parts):
            return sum(map(_terms, parts), Counter())
        case Product(factors):
            return functools.reduce(_times, map(_terms, factors))


def _times(a: Counter[tuple[int, ...]], b: Counter[tuple[int, ...]]) -> Counter[tuple[int, ...]]:
    product: Counter[tuple[int, ...]] = Counter()
    for (ids, times), (more, by) in itertools.product(a.items(), b.items()):
        product[tuple(sorted(ids + more))] += times * by
    return product


def _without_common(products: Sequence[tuple[DimType, ...]]) -> list[tuple[DimType, ...]]:
    """Factors that all products have, in whatever order, do not tell their sizes apart.

    >>> _without_common([(Axis(1, 2), Axis(2, 3)), (Axis(2, 3), Axis(4, 2))])
    [(Axis(id=1, size=2),), (Axis(id=4, size=2),)]
    """
    common = Counter(products[0])
    for factors in products[1:]:
        common &= Counter(factors)
    left = []
    for factors in products:
        spare, own = common.copy(), []
        for factor in factors:
            if spare[factor]:
                spare[factor] -= 1
            else:
                own.append(factor)
        left.append(tuple(own))
    return left


def _tie_factors(typing: Typing, products: Sequence[tuple[DimType, ...]]) -> bool:
    """Products of factors of equal sizes stay equally wide if their factors do."""
    known = {frozenset(map(typing.unifier.resolve, family)) for family in typing.families}
    fresh = [tuple(factors) for factors in zip(*products, strict=True) if len(set(factors)) > 1]
    fresh = [family for family in fresh if frozenset(family) not in known]
    typing.families += fresh
    return bool(fresh)


@dataclass(frozen=True, eq=False)
class Equations:
    """What must hold for the forward pass to run: each constant is the size of its dimension.

    Attributes:
        typing: the types.
        constants: those with a source that is not a plain number.
        dims: the resolved type that each counts.
        axes: every axis that a constant counts or is computed from, by id.
        touching: axis id -> constants that count it or are computed from it.
        using: attribute -> constants computed from it.
    """

    typing: Typing
    constants: tuple[Constant, ...]
    dims: tuple[DimType, ...]
    axes: Mapping[int, Axis] = field(default_factory=dict)
    touching: Mapping[int, Sequence[int]] = field(default_factory=dict)
    using: Mapping[Attribute, Sequence[int]] = field(default_factory=dict)

    def wanted(self, number: int, widths: Widths) -> int:
        """The value that constant `number` must have."""
        return self.constants[number].sign * count(self.dims[number], widths)

    def attributes(self, widths: Widths) -> tuple[dict[Attribute, int], Constant | None]:
        """New values of attributes under which every constant is right, and the first that none makes right."""
        found: dict[Attribute, int] = {}
        pending = sorted({n for axis in widths for n in self.touching.get(axis, ())}, key=self._is_compound)
        queue, seen = deque(pending), set(pending)
        while queue:
            number = queue.popleft()
            new = self._satisfy(number, widths, found)
            if new is None:
                return found, self.constants[number]
            found |= new
            more = [n for attribute in new for n in self.using[attribute] if n not in seen]
            queue.extend(more)
            seen.update(more)
        wrong = (n for n in self._affected(widths, found) if not self._holds(n, widths, found))
        return found, next((self.constants[n] for n in wrong), None)

    def _affected(self, widths: Widths, found: Iterable[Attribute]) -> list[int]:
        numbers = {n for axis in widths for n in self.touching.get(axis, ())}
        return sorted(numbers | {n for attribute in found for n in self.using[attribute]})

    def _is_compound(self, number: int) -> tuple[bool, int]:
        return not isinstance(self.constants[number].source, Attribute), number

    def _holds(self, number: int, widths: Widths, found: Mapping[Attribute, int]) -> bool:
        value = self._value(number, widths, found, None)
        return value is None or value == self.wanted(number, widths)

    def _value(
        self, number: int, widths: Widths, found: Mapping[Attribute, int], unknown: Attribute | None
    ) -> int | None:
        source = self.constants[number].source
        assert source is not None
        return evaluate(source, lambda leaf: self._leaf(leaf, widths, found, unknown))

    def _leaf(
        self, leaf: Attribute | Extent, widths: Widths, found: Mapping[Attribute, int], unknown: Attribute | None
    ) -> int | None:
        if isinstance(leaf, Attribute):
            return None if leaf == unknown else found.get(leaf, leaf.value)
        dim = extent_dim(self.typing, leaf)
        return None if dim is None else count(dim, widths)

    def _satisfy(self, number: int, widths: Widths, found: dict[Attribute, int]) -> dict[Attribute, int] | None:
        """What makes a constant right: a value for an attribute that has none yet if need be; None if nothing does."""
        source, wanted = self.constants[number].source, self.wanted(number, widths)
        assert source is not None
        if self._holds(number, widths, found):
            return {source: wanted} if isinstance(source, Attribute) and source not in found else {}
        for leaf in dict.fromkeys(source_leaves(source)):
            if not isinstance(leaf, Attribute) or leaf in found:
                continue
            solved = solve(source, wanted, partial(self._leaf, widths=widths, found=found, unknown=leaf))
            if solved and self._gives(number, widths, ChainMap(dict([solved]), found)):
                return dict([solved])
        return None

    def _gives(self, number: int, widths: Widths, found: Mapping[Attribute, int]) -> bool:
        return self._value(number, widths, found, None) == self.wanted(number, widths)


def equations(typing: Typing) -> Equations:
    """The equations of a typed program, indexed by axis and by attribute."""
    noted = [*typing.constants, *typing.agreements]
    constants = tuple(c for c in noted if c.source is not None and not isinstance(c.source, Literal))
    dims = tuple(typing.unifier.resolve(c.dim) for c in constants)
    axes: dict[int, Axis] = {}
    touching: dict[int, list[int]] = defaultdict(list)
    using: dict[Attribute, list[int]] = defaultdict(list)
    for number, (constant, dim) in enumerate(zip(constants, dims, strict=True)):
        assert constant.source is not None
        held = [dim]
        for leaf in source_leaves(constant.source):
            if isinstance(leaf, Attribute):
                using[leaf].append(number)
            elif isinstance(leaf, Extent) and (of := extent_dim(typing, leaf)) is not None:
                held.append(of)
        own = {axis.id: axis for d in held for axis in leaves(d)}
        axes |= own
        for id_ in own:
            touching[id_].append(number)
    return Equations(typing, constants, dims, axes, touching, using)


def extent_dim(typing: Typing, extent: Extent) -> DimType | None:
    """The type whose size the forward pass read off a tensor's shape; None if the tensor is not known."""
    if extent.call is None:
        return None
    node = typing.program.sizes.makers.get((extent.call, extent.place))
    types = typing.values.get(node) if node is not None else None
    if not isinstance(types, tuple) or extent.dim >= len(types):
        return None
    dim = typing.unifier.resolve(types[extent.dim])
    return dim if dim.size == extent.value else None


def _try_every_axis(typing: Typing) -> None:
    """Shrink each bundle of axes that must stay equally wide, and see whether the forward pass could follow."""
    changed = True
    while changed:
        system = equations(typing)
        bundles = _bundles(typing, system)
        changed = any([_try(typing, system, bundles, bundle) for bundle in dict.fromkeys(bundles.values())])


Bundle = frozenset[Axis]


def _bundles(typing: Typing, system: Equations) -> dict[Axis, Bundle]:
    """Axis -> those that must stay as wide, for axes that some constant depends on."""
    own_axes = (system.axes[id_] for id_ in system.touching if id_ in system.axes)
    together = {axis: frozenset([axis]) for axis in own_axes}
    for family in typing.families:
        # Products stay equally wide by their factors, which have families of their own.
        own = {dim for dim in map(typing.unifier.resolve, family) if isinstance(dim, Axis)}
        whole = frozenset(itertools.chain.from_iterable(together.get(axis, {axis}) for axis in own))
        together.update(dict.fromkeys(whole, whole))
    return together


def _try(typing: Typing, system: Equations, bundles: Mapping[Axis, Bundle], bundle: Bundle) -> bool:
    """Tie or fix a bundle that cannot change alone; whether anything was done."""
    if any(isinstance(typing.unifier.resolve(axis), Fixed) for axis in bundle):
        return False
    wrong = _fails(system, bundle)
    if wrong is None:
        return False
    grown = _grow(typing, system, bundles, bundle, wrong)
    if grown:
        typing.families.append(grown)
    else:
        typing.fix(list(bundle), _UNFOLLOWED.format(operator_name(wrong.node).removeprefix("aten.")))
    return True


def _grow(
    typing: Typing, system: Equations, bundles: Mapping[Axis, Bundle], bundle: Bundle, wrong: Constant
) -> tuple[Axis, ...]:
    """`bundle` with the axes that must shrink beside it, each step making right what was wrong; nothing if none do."""
    for more in _companions(typing, wrong, bundle):
        larger = bundle.union(*(bundles.get(axis, {axis}) for axis in more))
        now = _fails(system, larger)
        if now is None:
            return tuple(sorted(larger, key=lambda axis: axis.id))
        if now is not wrong:
            return _grow(typing, system, bundles, larger, now)
    return ()


def _fails(system: Equations, axes: Collection[Axis]) -> Constant | None:
    """The first constant that does not follow when equally wide axes shrink, by whatever number."""
    # One width is not enough: with `c // 2` at a boundary, one unit less in the first half passes by rounding.
    size = min(axis.size for axis in axes)
    for fewer in sorted({1, min(2, size - 1), size // 2, size - 1} - {0}):
        wrong = system.attributes({axis.id: axis.size - fewer for axis in axes})[1]
        if wrong is not None:
            return wrong
    return None


def _companions(typing: Typing, wrong: Constant, bundle: Bundle) -> Iterable[tuple[Axis, ...]]:
    """Axes of the same size that the failing constant also depends on: each alone, then all."""
    assert wrong.source is not None
    dims = [typing.unifier.resolve(wrong.dim)]
    extents = [leaf for leaf in source_leaves(wrong.source) if isinstance(leaf, Extent)]
    dims += [dim for extent in extents if (dim := extent_dim(typing, extent)) is not None]
    sizes = {axis.size for axis in bundle}
    others = list(dict.fromkeys(axis for dim in dims for axis in leaves(dim)))
    others = [axis for axis in others if axis not in bundle and axis.size in sizes]
    yield from ((axis,) for axis in others)
    if len(others) > 1:
        yield tuple(others)
