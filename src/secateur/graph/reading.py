"""Types read off an operator that only moves elements, from where each element goes.

    one dimension counts through    product    positions of pixel_shuffle: (channel), (row, r), (column, r)
    runs from several places        concat     padding beside the dimension, a dimension rolled
    every s-th position             stride     the dimension is (position, s)
    anything else                   fixed      reversed, chosen by an irregular index, overlapping windows

What is read at one size must hold at others: `follow` deletes units of each axis, runs the operator on
what is left, and fixes the axis unless that gives the result without the units' positions. Integer
arguments that count positions (`pad`, `start`, `groups`) may take the number that is then right.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from secateur.graph.axes import Axis, Concat, Dims, DimType, Fixed, Product, leaves, positions
from secateur.graph.labels import PADDING, Call, first_numbering, places
from secateur.graph.settle import count
from secateur.graph.unify import Unifier

MOST_SEGMENTS = 16
MOST_TRIALS = 64

REVERSED = "its positions are put in another order"
IRREGULAR = "its positions are chosen one by one"
JOINED = "two dimensions are read along one another"
MASKED = "values are replaced by their positions"
SKIPPED = "positions that are taken in turn"
UNFOLLOWED = "the operator does not go on alike when it grows narrower"


@dataclass(frozen=True)
class Counted:
    """An integer argument (name, place in a list) that is `sign` times the size of `dim`."""

    argument: str
    index: int | None
    dim: DimType
    sign: int


@dataclass(frozen=True)
class Reading:
    """How an operator moves dimensions.

    Attributes:
        operands: types of each operand, over axes of their own.
        results: types of each result, over the same axes.
        counted: arguments that follow the sizes of axes.
        families: axes that must keep equally many units.
    """

    operands: tuple[Dims, ...]
    results: tuple[Dims, ...]
    counted: tuple[Counted, ...] = ()
    families: tuple[tuple[Axis, ...], ...] = ()


def read(call: Call) -> Reading | None:
    """The types of operands and results as the labels show them; None if elements are not only moved."""
    found = places(call)
    if found is None:
        return None
    reader = _Reader(call)
    results = [reader.block(place.contiguous()) for place in found]
    resolve = reader.unifier.resolve
    return Reading(
        tuple(tuple(map(resolve, dims)) for dims in reader.operands),
        tuple(tuple(map(resolve, dims)) for dims in results),
    )


@dataclass(frozen=True)
class _Digit:
    """A factor of a dimension of the result: at each step, the positions in the operand grow by `step`."""

    axis: DimType
    step: tuple[int, ...]


class _Reader:
    """Refines the types of operands block by block of the results."""

    def __init__(self, call: Call) -> None:
        self.unifier = Unifier()
        self.shapes = call.shapes
        self.bounds = torch.tensor(call.starts)
        self.operands = tuple(self._fresh(shape) for shape in call.shapes)

    def _fresh(self, shape: Sequence[int]) -> Dims:
        return tuple(self.unifier.fresh(n) if n > 1 else Fixed(n) for n in shape)

    def block(self, place: Tensor) -> Dims:
        """The types of a part of a result in which each position holds the element `place`."""
        if not place.numel() or int(place.max()) == PADDING:
            return self._fresh(place.shape)
        owner = self._owners(place)
        if owner is not None:
            for dim in range(place.ndim):
                seams = _seams(owner, dim)
                if seams:
                    return self._split(place, dim, seams)
            owners = set(torch.unique(owner).tolist()) - {PADDING}
            if len(owners) > 1:
                return self._give_up(place, owners)
        return self._regular(place, int(place.max()))

    def _owners(self, place: Tensor) -> Tensor | None:
        """Which operand each element comes from; None if all come from one."""
        low, high = (int(torch.bucketize(x, self.bounds, right=True)) for x in torch.aminmax(place))
        return None if low == high and low > 0 else torch.bucketize(place, self.bounds, right=True) - 1

    def _split(self, place: Tensor, dim: int, seams: Sequence[int]) -> Dims:
        edges = [0, *seams, place.shape[dim]]
        parts = [self.block(place.narrow(dim, a, b - a).contiguous()) for a, b in itertools.pairwise(edges)]
        for part in parts[1:]:
            for number, (a, b) in enumerate(zip(parts[0], part, strict=True)):
                if number != dim:
                    self.unifier.unify(a, b)
        return (*parts[0][:dim], Concat(tuple(part[dim] for part in parts)), *parts[0][dim + 1 :])

    def _give_up(self, place: Tensor, owners: set[int]) -> Dims:
        for number in owners:
            self._fix(self.operands[number], IRREGULAR)
        return tuple(Fixed(n, IRREGULAR) for n in place.shape)

    def _fix(self, dims: Sequence[DimType], reason: str) -> None:
        for dim in dims:
            self.unifier.fix(dim, reason)

    def _regular(self, place: Tensor, some: int) -> Dims:
        """A block that one operand fills, but for padding."""
        number = int(torch.bucketize(some, self.bounds, right=True)) - 1
        dims, shape = self.operands[number], self.shapes[number]
        local = place - int(self.bounds[number])
        is_full = int(place.min()) >= 0
        origin = (0,) * place.ndim if is_full else _origin(place >= 0)
        if origin is None:
            self._fix(dims, IRREGULAR)
            return tuple(Fixed(n, IRREGULAR) for n in place.shape)
        lines = [_unravel(_line(local, origin, dim), shape) for dim in range(place.ndim)]
        own = _unravel(local[origin].reshape(1), shape)[0]
        odd_in, odd_out = _inseparable(local, place, lines, own, shape)
        digits: list[list[_Digit]] = []
        for dim, line in enumerate(lines):
            found = None if dim in odd_out else _digits(line)
            if found is None and dim not in odd_out and (seams := _breaks(line)):
                return self._split(place, dim, seams)
            if found is None:
                odd_in |= {k for k in range(len(shape)) if bool((line[:, k] != line[0, k]).any())}
            digits.append(
                [_Digit(Fixed(len(line), IRREGULAR), (0,) * len(shape))]
                if found is None
                else [_Digit(self.unifier.fresh(size), step) for size, step in found]
            )
        self._fix([dims[k] for k in odd_in], IRREGULAR)
        start = [int(own[k]) + sum(int(line[0, k] - own[k]) for line in lines) for k in range(len(shape))]
        self._tie(dims, start, [digit for row in digits for digit in row], odd_in)
        if not is_full:
            self._fix_masked(place >= 0, digits)
        return tuple(_product([digit.axis for digit in row]) for row in digits)

    def _tie(self, dims: Dims, start: Sequence[int], digits: Sequence[_Digit], odd: set[int]) -> None:
        """Each dimension of the operand is the product of the digits that count through it."""
        for number, dim in enumerate(dims):
            own = sorted((d for d in digits if d.step[number]), key=lambda d: abs(d.step[number]))
            joined = [d for d in own if sum(map(bool, d.step)) > 1]
            layout = None if joined or number in odd else _layout(dim.size, start[number], own, number)
            if layout is not None:
                before, factors = layout
                read = _product(factors)
                rest = self._fresh((before, dim.size - before - read.size))
                self.unifier.unify(dim, Concat((rest[0], read, rest[1])))
            elif dim.size > 1:
                is_turned = any(d.step[number] < 0 for d in own)
                reason = JOINED if joined else REVERSED if is_turned else IRREGULAR
                self._fix([dim, *(d.axis for d in own)], reason)

    def _fix_masked(self, valid: Tensor, digits: Sequence[Sequence[_Digit]]) -> None:
        """Where padding lies must not depend on an axis."""
        flat = [digit for row in digits for digit in row]
        by_digit = valid.reshape([d.axis.size for d in flat])
        for number, digit in enumerate(flat):
            if bool((by_digit.any(number) != by_digit.all(number)).any()):
                self._fix([digit.axis], MASKED)


def _layout(size: int, start: int, digits: Sequence[_Digit], number: int) -> tuple[int, list[DimType]] | None:
    """Positions before the first that is read, and the factors that count through those that are.

    Args:
        size: of dimension `number` of the operand.
        start: its position where all digits are zero.
        digits: those that move along it, the fastest first.
        number: of the dimension.
    """
    factors: list[DimType] = []
    span, rest, skips = 1, start, False
    for digit in digits:
        step = digit.step[number]
        if step < span or step % span:
            return None
        if step > span:
            factors.append(Fixed(step // span, SKIPPED))
            skips = True
        factors.append(digit.axis)
        span = step * digit.axis.size
    if not skips:
        return start, factors[::-1] or [Fixed(1, IRREGULAR)]
    for factor in factors:
        rest, position = divmod(rest, factor.size)
        if position and not isinstance(factor, Fixed):
            return None
    return (0, factors[::-1]) if span == size and not rest else None


def _product(factors: Sequence[DimType]) -> DimType:
    return factors[0] if len(factors) == 1 else Product(tuple(factors))


def _line(local: Tensor, origin: tuple[int, ...], dim: int) -> Tensor:
    for number in reversed([k for k in range(local.ndim) if k != dim]):
        local = local.select(number, origin[number])
    return local


def _unravel(numbers: Tensor, shape: Sequence[int]) -> Tensor:
    """Positions (elements, dimensions) of elements that are numbered row by row."""
    columns = []
    for number in range(len(shape)):
        inner = math.prod(shape[number + 1 :])
        columns.append(numbers // inner % shape[number])
    return torch.stack(columns, 1) if columns else numbers.new_zeros(len(numbers), 0)


def _seams(owner: Tensor, dim: int) -> list[int]:
    """Where along `dim` whole slices of padding begin or end, or slices of another operand; [] if it is too odd."""
    others = [k for k in range(owner.ndim) if k != dim]
    highest = owner.amax(others) if others else owner
    lowest = owner.masked_fill(owner == PADDING, torch.iinfo(owner.dtype).max)
    lowest = lowest.amin(others) if others else lowest
    if bool(((lowest != highest) & (highest != PADDING)).any()):
        highest = torch.where(highest == PADDING, PADDING, 0)
    return _changes(highest)


def _changes(values: Tensor) -> list[int]:
    found: list[int] = ((values[1:] != values[:-1]).nonzero().flatten() + 1).tolist()
    return found if len(found) < MOST_SEGMENTS else []


def _breaks(line: Tensor) -> list[int]:
    """Where positions do not go on as they mostly do."""
    steps = line[1:] - line[:-1]
    kinds, which, counts = torch.unique(steps, dim=0, return_inverse=True, return_counts=True)
    found: list[int] = ((which != counts.argmax()).nonzero().flatten() + 1).tolist()
    return found if len(found) < MOST_SEGMENTS and len(kinds) > 1 else []


def _digits(line: Tensor) -> list[tuple[int, tuple[int, ...]]] | None:
    """The factors of a dimension, the slowest first: size, and what one step adds to each position.

    >>> _digits(torch.tensor([[0], [1], [4], [5]]))
    [(2, (4,)), (2, (1,))]
    """
    found: list[tuple[int, tuple[int, ...]]] = []
    while (size := len(line)) > 1:
        step = line[1] - line[0]
        steady = (line == line[0] + torch.arange(size).unsqueeze(1) * step).all(1)
        run = size if bool(steady.all()) else int(steady.to(torch.int8).argmin())
        if size % run:
            return None
        blocks = line.reshape(size // run, run, -1)
        if not torch.equal(blocks - blocks[:, :1], (blocks[:1] - blocks[:1, :1]).expand_as(blocks)):
            return None
        found.insert(0, (run, tuple(step.tolist())))
        line = blocks[:, 0]
    return found


def _origin(valid: Tensor) -> tuple[int, ...] | None:
    """A position all of whose lines are free of padding."""
    good = valid.clone()
    for dim in range(valid.ndim):
        good &= valid.all(dim, keepdim=True)
    found = good.nonzero()
    return tuple(found[0].tolist()) if len(found) else None


def _inseparable(
    local: Tensor, place: Tensor, lines: Sequence[Tensor], own: Tensor, shape: Sequence[int]
) -> tuple[set[int], set[int]]:
    """Dimensions of the operand whose positions are not a sum over dimensions of the result; and of the result."""
    spread = [line - own for line in lines]
    low = own + sum(s.amin(0) for s in spread)
    high = own + sum(s.amax(0) for s in spread)
    inner = torch.tensor([math.prod(shape[k + 1 :]) for k in range(len(shape))])
    valid = place >= 0
    in_box = bool((low >= 0).all() and (high < torch.tensor(shape)).all())
    if in_box and bool((~valid | (local == _sum([(s * inner).sum(1) for s in spread]) + (own * inner).sum())).all()):
        return set(), set()
    odd_in, odd_out = set(), set()
    for number, size in enumerate(shape):
        position = local // int(inner[number]) % size
        if bool((valid & (position != _sum([s[:, number] for s in spread]) + own[number])).any()):
            odd_in.add(number)
            odd_out |= {k for k in range(local.ndim) if bool((valid & (position != position.narrow(k, 0, 1))).any())}
    return odd_in, odd_out


def _sum(rows: Sequence[Tensor]) -> Tensor:
    """rows[0][i] + rows[1][j] + ... at each position (i, j, ...)."""
    total = torch.zeros((), dtype=torch.int64)
    for number, row in enumerate(rows):
        total = total + row.reshape(-1, *[1] * (len(rows) - 1 - number))
    return total


def follow(call: Call, reading: Reading, alive: frozenset[int], counting: frozenset[str]) -> Reading:
    """`reading` with every axis fixed that runs at other sizes do not bear out.

    Args:
        call: what was read.
        reading: the result of `read`.
        alive: axes to try; the others are fixed already, for another reason.
        counting: names of arguments that may count positions.
    """
    everything = dict.fromkeys(_axes(reading))
    axes = [axis for axis in everything if axis.id in alive and axis.size > 1]
    trial = _Trial(call, reading, counting)
    counted: tuple[Counted, ...] = ()
    bundles: list[tuple[Axis, ...]] = []
    for axis in axes:
        taken = [a for bundle in bundles for a in bundle]
        if axis in taken:
            continue
        for bundle in _bundles(axis, [a for a in axes if a not in taken]):
            more = trial.explain(bundle, taken, counted)
            if more is not None:
                counted += more
                bundles.append(bundle)
                break
    bundles = [bundle for bundle in bundles if trial.holds(bundle, counted)]
    tried = {axis for bundle in bundles for axis in bundle}
    free = tried | (set(everything) - set(axes))
    return Reading(
        tuple(tuple(_kept(dim, free) for dim in dims) for dims in reading.operands),
        tuple(tuple(_kept(dim, free) for dim in dims) for dims in reading.results),
        tuple(replace(c, dim=_kept(c.dim, free)) for c in counted if tried & set(leaves(c.dim))),
        tuple(bundle for bundle in bundles if len(bundle) > 1),
    )


def _bundles(axis: Axis, axes: Sequence[Axis]) -> Iterator[tuple[Axis, ...]]:
    """The axis alone, with one other that is as wide, and with all that are."""
    alike = [other for other in axes if other.size == axis.size and other != axis]
    yield (axis,)
    yield from ((axis, other) for other in alike)
    if len(alike) > 1:
        yield (axis, *alike)


def _axes(reading: Reading) -> Iterator[Axis]:
    for dims in (*reading.operands, *reading.results):
        for dim in dims:
            yield from leaves(dim)


def _kept(dim: DimType, free: set[Axis]) -> DimType:
    match dim:
        case Axis(_, size):
            return dim if dim in free and size > 1 else Fixed(size, UNFOLLOWED if size > 1 else "")
        case Product(factors):
            return Product(tuple(_kept(f, free) for f in factors))
        case Concat(parts):
            return Concat(tuple(_kept(p, free) for p in parts))
        case Fixed():
            return dim


class _Trial:
    """Deletes units from the operands, and compares what the operator then gives with what it should."""

    def __init__(self, call: Call, reading: Reading, counting: frozenset[str]) -> None:
        self._call, self._reading = call, reading
        self._operands = [first_numbering(t) for t in call.numbered()]
        self._results = [t.clone() for t in call.run([t.clone() for t in self._operands])]
        self._parts = tuple(dict.fromkeys(p for dims in (*reading.operands, *reading.results) for p in _runs(dims)))
        self._integers = dict(_integers(call.named, counting))

    def explain(
        self, axes: Sequence[Axis], others: Sequence[Axis], known: Sequence[Counted]
    ) -> tuple[Counted, ...] | None:
        """Which further arguments count positions, so that `axes` may lose units, alone and with `others`; or None."""
        taken = {(c.argument, c.index) for c in known}
        options = [
            [Counted(*place, part, 1 if value > 0 else -1) for part in self._parts_of(abs(value), axes)]
            for place, value in self._integers.items()
            if place not in taken
        ]
        for choice in itertools.islice(_fewest_first(options), MOST_TRIALS):
            if self.holds(axes, [*known, *choice]) and self.holds([*axes, *others], [*known, *choice]):
                return choice
        return None

    def _parts_of(self, size: int, axes: Sequence[Axis]) -> list[DimType]:
        return [part for part in self._parts if part.size == size and set(axes) & set(leaves(part))]

    def holds(self, axes: Sequence[Axis], counted: Sequence[Counted]) -> bool:
        """Whether results go on alike when each axis loses its first unit, and when it keeps its last one only."""
        widest = max(axis.size for axis in axes)
        return all(self._holds(axes, counted, gone) for gone in dict.fromkeys((1, widest - 1)))

    def _holds(self, axes: Sequence[Axis], counted: Sequence[Counted], gone: int) -> bool:
        widths = {axis.id: max(axis.size - gone, 1) for axis in axes}
        changed = {
            (c.argument, c.index): c.sign * after for c in counted if (after := count(c.dim, widths)) != c.dim.size
        }
        operands = [_cut(t, dims, widths) for t, dims in zip(self._operands, self._reading.operands, strict=True)]
        try:
            results = self._call.run(operands, changed)
        except (RuntimeError, IndexError, ValueError, TypeError):
            return False
        if len(results) != len(self._results):
            return False
        whole = zip(self._results, self._reading.results, strict=True)
        return all(_equal(a, _cut(t, dims, widths)) for a, (t, dims) in zip(results, whole, strict=True))


def _fewest_first(options: Sequence[Sequence[Counted]]) -> Iterator[tuple[Counted, ...]]:
    """Every way to take at most one of each of `options`."""
    for number in range(len(options) + 1):
        for some in itertools.combinations(options, number):
            yield from itertools.product(*some)


def _cut(tensor: Tensor, dims: Dims, widths: Mapping[int, int]) -> Tensor:
    """`tensor` with the last `widths[id]` units of each axis."""
    for number, dim in enumerate(dims):
        gone = [where[: len(where) - widths[id_]].flatten() for id_, where in positions(dim).items() if id_ in widths]
        if gone:
            keep = torch.ones(dim.size, dtype=torch.bool)
            keep[torch.cat(gone)] = False
            tensor = tensor.index_select(number, keep.nonzero().flatten())
    return tensor.clone()


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and (torch.equal(a, b) or bool(((a == b) | (a.isnan() & b.isnan())).all()))


def _integers(named: Mapping[str, object], counting: frozenset[str]) -> Iterator[tuple[tuple[str, int | None], int]]:
    for name, value in named.items():
        if name not in counting:
            continue
        if type(value) is int:
            yield (name, None), value
        elif isinstance(value, list | tuple):
            yield from (((name, k), v) for k, v in enumerate(value) if type(v) is int)


def _runs(dims: Sequence[DimType]) -> Iterator[DimType]:
    """Every part of a dimension that an integer may count."""
    for dim in dims:
        match dim:
            case Axis():
                yield dim
            case Product(pieces) | Concat(pieces):
                yield from _runs(pieces)
                for first, last in itertools.combinations(range(len(pieces) + 1), 2):
                    if last - first > 1:
                        yield type(dim)(pieces[first:last])
            case Fixed():
                pass
