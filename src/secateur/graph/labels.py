"""Run an operator that only moves elements on numbered elements, to see where each one goes."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

MOST_ELEMENTS = 2**22  # the square of a number up to here, and a quarter, is exact in float64


@dataclass(frozen=True)
class Operand:
    """Stands for a tensor in the arguments of a call."""

    number: int


@dataclass(frozen=True, eq=False)
class Call:
    """An operator and its arguments, with an `Operand` for each tensor that it moves elements of.

    Attributes:
        target: the operator.
        named: all its arguments, by the names of its schema.
        shapes: shape of each operand.
    """

    target: Any
    named: Mapping[str, Any]
    shapes: tuple[tuple[int, ...], ...]

    @cached_property
    def _key(self) -> tuple[Any, ...]:
        return self.target, _hashable(self.named), self.shapes

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Call) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @property
    def starts(self) -> tuple[int, ...]:
        """The first number of each operand, and the one after the last of all."""
        return tuple(itertools.accumulate(map(math.prod, self.shapes), initial=0))

    def numbered(self) -> list[Tensor]:
        """The operands, their elements numbered from zero, all through."""
        return [
            torch.arange(start, end, dtype=torch.float64).reshape(shape)
            for (start, end), shape in zip(itertools.pairwise(self.starts), self.shapes, strict=True)
        ]

    def run(
        self, operands: Sequence[Tensor], changed: Mapping[tuple[str, int | None], int] | None = None
    ) -> list[Tensor]:
        """The results on `operands`, with some integer arguments (name, place in a list) changed."""
        named = {name: _filled(value, operands) for name, value in self.named.items()}
        for (name, index), value in (changed or {}).items():
            named[name] = value if index is None else [value if k == index else v for k, v in enumerate(named[name])]
        schema = self.target._schema.arguments
        args = [named[a.name] for a in schema if not a.kwarg_only]
        result = self.target(*args, **{a.name: named[a.name] for a in schema if a.kwarg_only})
        return [result] if isinstance(result, Tensor) else list(result)


PADDING = -1


def first_numbering(numbers: Tensor) -> Tensor:
    """What elements hold when the operator runs: no usual padding value."""
    return numbers + 1.5


def places(call: Call) -> list[Tensor] | None:
    """The number of the element that lies at each position of each result; None if elements are not only moved.

    An element that comes from no operand (padding) is the same whatever the operands hold. Every other one
    holds what its element holds, under two numberings of which the second is neither linear nor in the
    same order: sums, means and maxima give themselves away.

    Raises:
        Exception: the operator refuses such operands.

    >>> named = {"self": Operand(0), "dims": [0]}
    >>> places(Call(torch.ops.aten.flip.default, named, ((3,),)))[0].tolist()
    [2, 1, 0]
    >>> named = {"self": Operand(0), "dim": 0, "dtype": None}
    >>> places(Call(torch.ops.aten.cumsum.default, named, ((3,),))) is None
    True
    """
    first = call.run([first_numbering(t) for t in call.numbered()])
    second = call.run([_second(first_numbering(t)) for t in call.numbered()])
    found = [_places(a, b) for a, b in zip(first, second, strict=True)]
    return None if any(place is None for place in found) else found  # type: ignore[return-value]


def _second(first: Tensor) -> Tensor:
    return -first * first


def _places(first: Tensor, second: Tensor) -> Tensor | None:
    if first.dtype != torch.float64:
        return None
    is_moved = (second == _second(first)) & (second != first)
    place = (first - 1.5).to(torch.int64)
    if bool(is_moved.all()):
        return place
    same = (first == second) | (first.isnan() & second.isnan())
    return place.masked_fill_(same, PADDING) if bool((is_moved | same).all()) else None


def _filled(value: Any, operands: Sequence[Tensor]) -> Any:
    match value:
        case Operand(number):
            return operands[number]
        case list() | tuple():
            return [_filled(v, operands) for v in value]
        case _:
            return value


def _hashable(value: Any) -> Any:
    match value:
        case Tensor():
            return tuple(value.shape), str(value.dtype), tuple(value.reshape(-1).tolist())
        case Mapping():
            return tuple((name, _hashable(v)) for name, v in value.items())
        case list() | tuple():
            return tuple(map(_hashable, value))
        case _:
            return value
