"""The operators of a program one by one, as calls that can be run by themselves at any widths."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from secateur.graph.axes import Dims, leaves
from secateur.graph.groups import Structure
from secateur.graph.settle import count
from secateur.graph.typing import Constant, RowDims, Typing, operator_name

FREE = frozenset({"getitem", "aten._assert_tensor_metadata", "aten.sym_size"})
"""What no time is spent on."""


@dataclass(frozen=True)
class Shaped:
    """A tensor without values.

    Attributes:
        shape: its sizes.
        order: its dimensions, the one that varies slowest in memory first.
        dtype: of its elements.
        device: where it lies.
    """

    shape: tuple[int, ...]
    order: tuple[int, ...]
    dtype: str
    device: str

    @property
    def bytes(self) -> int:
        """Memory of its elements."""
        return math.prod(self.shape) * int(getattr(torch, self.dtype).itemsize)

    def tensor(self) -> Tensor:
        """Ones, which no operator refuses: positions, masks, variances, and nothing grows when written in place."""
        flat = torch.ones([self.shape[k] for k in self.order], dtype=getattr(torch, self.dtype), device=self.device)
        return flat.permute([self.order.index(k) for k in range(len(self.shape))])


@dataclass(frozen=True)
class Call:
    """An operator with its arguments, `Shaped` in place of tensors.

    Attributes:
        name: of the operator, with its overload.
        target: what is called.
        args: positional arguments.
        kwargs: by keyword.
    """

    name: str
    target: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @property
    def key(self) -> str:
        """Equal for calls that take equally long."""
        return f"{self.name}{self.args!r}{sorted(self.kwargs.items())!r}"

    @property
    def bytes(self) -> int:
        """Memory of its operands."""
        return sum(leaf.bytes for leaf in pytree.tree_leaves((self.args, self.kwargs)) if isinstance(leaf, Shaped))

    def prepared(self) -> Callable[[], Any]:
        """The call with tensors, ready to run."""
        args, kwargs = pytree.tree_map(_filled, (self.args, dict(self.kwargs)))
        return lambda: self.target(*args, **kwargs)


@dataclass(frozen=True, eq=False)
class Operator:
    """A call of a program as a function of what is kept.

    Attributes:
        node: the call.
        scope: groups whose widths its operands have.
        tensors: the types of each of its operands.
        macs: (how often, of what sizes the product) of its multiply-adds.
        branches: residual branches that it is a part of; where one is gone, so is the call.
    """

    node: fx.Node
    scope: tuple[str, ...]
    tensors: tuple[Dims, ...]
    macs: tuple[tuple[int, Dims], ...]
    branches: tuple[str, ...]
    _typing: Typing
    _axes: Mapping[str, tuple[int, ...]]
    _constants: tuple[Constant, ...]

    def at(self, widths: Mapping[str, int]) -> Call:
        """The call when groups keep so many units in a row; those that are not named keep all."""
        kept = {axis: width for name, width in widths.items() for axis in self._axes.get(name, ())}
        resolve = self._typing.unifier.resolve

        def operand(node: fx.Node) -> Any:
            value, types = node.meta.get("val"), _types(self._typing, node)
            if not isinstance(value, Tensor):
                return value
            shape = tuple(value.shape) if types is None else tuple(count(resolve(dim), kept) for dim in types)
            order = tuple(sorted(range(len(shape)), key=lambda k: -int(value.stride()[k])))
            return Shaped(tuple(map(int, shape)), order, str(value.dtype).removeprefix("torch."), str(value.device))

        counted = {(c.argument, c.index or 0): c.sign * count(resolve(c.dim), kept) for c in self._constants}
        args, kwargs = _with_constants(self.node, counted)
        args, kwargs = fx.node.map_arg((args, kwargs), operand)
        assert callable(self.node.target)
        return Call(str(self.node.target), self.node.target, args, kwargs)


def operators(found: Structure) -> tuple[Operator, ...]:
    """Every call of a program that takes time, in the order in which they run."""
    typing = found.typing
    axes: dict[str, tuple[int, ...]] = {}
    for axis, name in found.axis_groups.items():
        axes[name] = (*axes.get(name, ()), axis)
    constants: dict[fx.Node, list[Constant]] = defaultdict(list)
    for constant in typing.constants:
        constants[constant.node].append(constant)

    def resolved(dims: Dims) -> Dims:
        return tuple(typing.unifier.resolve(dim) for dim in dims)

    macs: dict[str, list[tuple[int, Dims]]] = defaultdict(list)
    for term in typing.mac_terms:
        macs[term.node].append((term.times, resolved(term.dims)))
    result = []
    for node in typing.program.nodes:
        if node.op != "call_function" or operator_name(node) in FREE:
            continue
        tensors = tuple(resolved(_types(typing, operand) or ()) for operand in node.all_input_nodes)
        ids = [axis.id for dims in tensors for dim in dims for axis in leaves(dim)]
        scope = tuple(dict.fromkeys(found.axis_groups[id_] for id_ in ids if id_ in found.axis_groups))
        branches = tuple(b.group.name for b in found.branches if node.name in b.nodes)
        own = (tensors, tuple(macs[node.name]), branches, typing, axes, tuple(constants[node]))
        result.append(Operator(node, scope, *own))
    return tuple(result)


def _types(typing: Typing, node: fx.Node) -> Dims | None:
    types = typing.values.get(node)
    if isinstance(types, RowDims):
        return (*types.dims[:-1], types.rows[0])
    return types if isinstance(types, tuple) else None


def _filled(leaf: Any) -> Any:
    return leaf.tensor() if isinstance(leaf, Shaped) else leaf


def _with_constants(node: fx.Node, counted: Mapping[tuple[str, int], int]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call, with the integers that count a dimension written anew."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return node.args, dict(node.kwargs)
    names = [argument.name for argument in schema.arguments]
    args = tuple(_sized(names[k], value, counted) for k, value in enumerate(node.args))
    return args, {name: _sized(name, value, counted) for name, value in node.kwargs.items()}


def _sized(name: str, value: Any, counted: Mapping[tuple[str, int], int]) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        return counted.get((name, 0), int(value))
    if isinstance(value, list | tuple):
        return [_one(name, k, item, counted) for k, item in enumerate(value)]
    return value


def _one(name: str, index: int, item: Any, counted: Mapping[tuple[str, int], int]) -> Any:
    is_size = isinstance(item, int) and not isinstance(item, bool)
    return counted.get((name, index), int(item)) if is_size else item
