"""Sources of integers: literals, attributes of modules, extents of tensors, and arithmetic with these.

A forward pass that reads `self.heads` and hands it to `view` will follow a cut once that attribute is rewritten; one
that says `view(-1, 12)` never will. `Sized` integers remember which it was, and pass it on through arithmetic.
"""

import operator
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Literal:
    """A number that the forward pass writes down itself."""

    value: int


@dataclass(frozen=True)
class Attribute:
    """`holder.name` of the module at `module`, or its element `index`.

    The name may lead through plain objects: `config.hidden_size`.
    """

    module: str
    name: str
    value: int
    index: int | None = None


@dataclass(frozen=True)
class Extent:
    """Dimension `dim` of the shape of a tensor; `call` and `place` say which, None if that is not known.

    The calls `INPUT` and `STATE` stand for what the model is given and for what it holds.
    """

    value: int
    dim: int
    call: int | None = None
    place: int = 0


@dataclass(frozen=True)
class Arithmetic:
    """Two sources and what is done with them."""

    symbol: str
    left: "Source"
    right: "Source"
    value: int


Source = Literal | Attribute | Extent | Arithmetic

INPUT, STATE = -1, -2

READ = Literal(-1 << 63)
"""Stands for a number that is the value of a tensor, as the largest batch of a packed sequence is."""

OPERATIONS: Mapping[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "//": operator.floordiv,
    "%": operator.mod,
}


def evaluate(source: Source, known: Callable[[Attribute | Extent], int | None]) -> int | None:
    """The value of `source` under `known`; None where it depends on something unknown.

    >>> half = Arithmetic("//", Extent(8, 1), Literal(2), 4)
    >>> evaluate(half, lambda leaf: 6)
    3
    """
    match source:
        case Literal(value):
            return value
        case Arithmetic(symbol, left, right):
            a, b = evaluate(left, known), evaluate(right, known)
            if a is None or b is None or (symbol in {"//", "%"} and b == 0):
                return None
            return OPERATIONS[symbol](a, b)
        case _:
            return known(source)


def source_leaves(source: Source) -> Iterator[Literal | Attribute | Extent]:
    """The sources that arithmetic was done with."""
    if isinstance(source, Arithmetic):
        yield from source_leaves(source.left)
        yield from source_leaves(source.right)
    else:
        yield source


def solve(
    source: Source, wanted: int, known: Callable[[Attribute | Extent], int | None]
) -> tuple[Attribute, int] | None:
    """The one unknown attribute in `source` and the value that makes `source` equal `wanted`.

    >>> heads, width = Attribute("", "heads", 4), Attribute("", "width", 24)
    >>> solve(Arithmetic("//", width, heads, 6), 6, {heads: 3}.get)
    (Attribute(module='', name='width', value=24, index=None), 18)
    """
    match source:
        case Attribute():
            return (source, wanted) if known(source) is None else None
        case Arithmetic(symbol, left, right):
            a, b = evaluate(left, known), evaluate(right, known)
            if b is not None and a is None:
                inverse = {"+": wanted - b, "-": wanted + b, "*": wanted // b if b else 0, "//": wanted * b}
                return solve(left, inverse[symbol], known) if symbol in inverse else None
            if a is not None and b is None:
                inverse = {"+": wanted - a, "-": a - wanted, "*": wanted // a if a else 0}
                return solve(right, inverse[symbol], known) if symbol in inverse else None
    return None


class Sized(int):
    """An integer that remembers its source; arithmetic with integers passes it on."""

    source: Source

    def __new__(cls, source: Source) -> "Sized":
        """The integer that `source` gives now."""
        made = super().__new__(cls, source.value)
        made.source = source
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> "Sized":
        return self

    def __reduce__(self) -> tuple[type[int], tuple[int]]:
        return int, (int(self),)


def source_of(value: int) -> Source:
    """Where an integer comes from; a plain one was written down."""
    return value.source if isinstance(value, Sized) else Literal(int(value))


COMPUTED: ContextVar[list[Source] | None] = ContextVar("COMPUTED", default=None)
"""Where integers are noted that become real numbers; None = nowhere."""
COMPARED: ContextVar[list[tuple[Source, Source]] | None] = ContextVar("COMPARED", default=None)
"""Where pairs are noted that were compared and found equal; None = nowhere."""


def _leaving(name: str) -> Callable[..., Any]:
    """An operation whose result is a real number: it carries no source, so what goes in is noted."""
    plain = getattr(int, name)

    def method(self: Sized, *others: Any) -> Any:
        noted = COMPUTED.get()
        if noted is not None:
            noted.append(self.source)
        return plain(int(self), *others)

    return method


for _name in ("float", "truediv", "rtruediv", "pow", "rpow"):
    setattr(Sized, f"__{_name}__", _leaving(f"__{_name}__"))


def _arithmetic(name: str, symbol: str, *, swapped: bool) -> Callable[[Sized, Any], Any]:
    plain = getattr(int, name)

    def method(self: Sized, other: Any) -> Any:
        result = plain(self, other)
        if type(result) is not int or isinstance(other, bool):
            return result
        left, right = (source_of(other), self.source) if swapped else (self.source, source_of(other))
        return Sized(Arithmetic(symbol, left, right, result))

    return method


for _symbol, _name in {"+": "add", "-": "sub", "*": "mul", "//": "floordiv", "%": "mod"}.items():
    setattr(Sized, f"__{_name}__", _arithmetic(f"__{_name}__", _symbol, swapped=False))
    setattr(Sized, f"__r{_name}__", _arithmetic(f"__r{_name}__", _symbol, swapped=True))


def _comparing(name: str) -> Callable[[Sized, Any], Any]:
    """A comparison: where it finds two sizes equal, the forward pass may count on that."""
    plain = getattr(int, name)

    def method(self: Sized, other: Any) -> Any:
        noted = COMPARED.get()
        if noted is not None and type(other) in (int, Sized) and int(self) == int(other):
            noted.append((self.source, source_of(other)))
        return plain(self, other)

    return method


for _name in ("eq", "ne"):
    setattr(Sized, f"__{_name}__", _comparing(f"__{_name}__"))
Sized.__hash__ = int.__hash__  # type: ignore[method-assign]
