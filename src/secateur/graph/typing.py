"""Inference: walk the program once, and give every dimension of every tensor its type."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, fx

from secateur.graph.axes import Dims, DimType, Fixed
from secateur.graph.sources import Source
from secateur.graph.trace import Program
from secateur.graph.unify import ONE_UNIT, Unifier

ONE_STATE = "final states of several layers or directions are read as one tensor, so these stay equally wide"


@dataclass(frozen=True)
class RowDims:
    """The types of a tensor whose last dimension is another axis at each index of the first.

    The final hidden state of a stacked recurrent network: (layers, batch, hidden of that layer).
    """

    dims: Dims
    rows: Dims


@dataclass(frozen=True)
class Contraction:
    """An operator sums over `dim`, which is dimension `at` of the parameter `source`.

    No source: all factors, the `operands`, are activations. No `at`: the parameter was reshaped on its way.
    """

    dim: DimType
    source: str | None = None
    at: int | None = None
    operands: tuple[fx.Node, ...] = ()


@dataclass(frozen=True)
class MacTerm:
    """Multiply-adds of one operator: `times` x the product of the sizes of `dims`.

    Where `summed` holds a single position in all, there is nothing to add: torch multiplies, which does not count.
    """

    node: str
    times: int
    dims: Dims
    summed: Dims | None = None


@dataclass(frozen=True)
class Constant:
    """An integer in the call of `node` is the number of positions of `dim`.

    Attributes:
        node: the call.
        argument: name of the argument in the operator's schema.
        index: which element of the argument, where that is a list.
        dim: what it counts.
        sign: -1 where the call counts from the end.
        source: where the forward pass takes it from; None where that is not known.
    """

    node: fx.Node
    argument: str
    index: int | None
    dim: DimType
    sign: int = 1
    source: Source | None = None


@dataclass(frozen=True)
class Remark:
    """`dim` is not removed exactly, and why.

    Attributes:
        dim: the dimension.
        text: the reason, for people.
        pinned: a graph computes with the number of the uncut network, and is exact: "operator" where it is
            an operator's default, "python" where the forward pass works it out.
    """

    dim: DimType
    text: str
    pinned: Literal["", "operator", "python"] = ""


Types = Dims | RowDims | None


@dataclass
class Typing:
    """Everything inference knows: types of values and parameters, and facts about axes."""

    program: Program
    split_stacks: bool = False
    """Layers of one stacked recurrent module may end at different widths."""
    unifier: Unifier = field(default_factory=Unifier)
    values: dict[fx.Node, Types | list[Types]] = field(default_factory=dict)
    state: dict[str, Dims] = field(default_factory=dict)
    families: list[tuple[DimType, ...]] = field(default_factory=list)
    contractions: list[Contraction] = field(default_factory=list)
    remarks: list[Remark] = field(default_factory=list)
    tied: list[tuple[DimType, str]] = field(default_factory=list)
    """Dimensions of layers that stay equally wide though they were to be apart, and why."""
    ranked: list[DimType] = field(default_factory=list)
    chosen: dict[fx.Node, DimType] = field(default_factory=dict)
    """Integers that are positions along a dimension -> that dimension."""
    facts: dict[fx.Node, tuple[list[Contraction], list[Remark]]] = field(default_factory=dict)
    minimums: list[tuple[DimType, int]] = field(default_factory=list)
    mac_terms: list[MacTerm] = field(default_factory=list)
    constants: list[Constant] = field(default_factory=list)
    agreements: list[Constant] = field(default_factory=list)

    def dims(self, value: Any) -> Dims:
        """The types of a tensor argument, one for each dimension."""
        types = self.values.get(value) if isinstance(value, fx.Node) else None
        if isinstance(types, RowDims):
            return self._merge_rows(types)
        if not isinstance(types, tuple):
            raise AssertionError(f"{value} is not a typed tensor")
        return types

    def fresh(self, shape: Sequence[int]) -> Dims:
        """A new axis for each dimension."""
        return tuple(self.unifier.fresh(n) if n > 1 else Fixed(n, ONE_UNIT) for n in shape)

    def unify(self, a: DimType, b: DimType) -> DimType:
        """Tie two types and give the result."""
        self.unifier.unify(a, b)
        return a

    def fix(self, dims: Sequence[DimType], reason: str) -> None:
        """Make all leaves of `dims` unremovable."""
        for dim in dims:
            self.unifier.fix(dim, reason)

    def contract(self, dim: DimType, operand: Any, factors: Sequence[fx.Node] = ()) -> None:
        """Note that `dim` is summed over against `operand`, or without a weight; `factors` are what is multiplied."""
        source = self.source(operand)
        at = next((k for k, own in enumerate(self.state[source]) if own == dim), None) if source else None
        self.contractions.append(Contraction(dim, source, at, tuple(factors)))

    def remark(self, dim: DimType, text: str, pinned: Literal["", "operator", "python"] = "") -> None:
        """Note that removing part of `dim` is not exact."""
        self.remarks.append(Remark(dim, text, pinned))

    def rank(self, dim: DimType, least: int) -> None:
        """Note that the best `least` units of `dim` are chosen: when one is gone, another takes its place."""
        self.ranked.append(dim)
        self.minimums.append((dim, least))
        self.remark(dim, "units are chosen by their rank: when one is gone, another takes its place")

    def constant(self, node: fx.Node, dim: DimType, argument: str, index: int | None = None, sign: int = 1) -> None:
        """Note that the call of `node` names the size of `dim` as a number, if it does."""
        given = arguments(node).get(argument)
        values: list[Any] = list(given) if isinstance(given, list | tuple) else [given]
        place = index or 0
        if place < len(values) and type(values[place]) is int and values[place] == sign * dim.size:
            source = self.program.sizes.source(node, values, place)
            self.constants.append(Constant(node, argument, index, dim, sign, source))

    def constants_of(self, node: fx.Node, dims: Sequence[DimType], argument: str) -> None:
        """Note that a list argument of `node` names the sizes of `dims`, one after the other."""
        for index, dim in enumerate(dims):
            self.constant(node, dim, argument, index)

    def count_macs(
        self, node: fx.Node, dims: Sequence[DimType], times: int = 1, summed: Sequence[DimType] | None = None
    ) -> None:
        """Note what `node` costs."""
        self.mac_terms.append(MacTerm(node.name, times, tuple(dims), None if summed is None else tuple(summed)))

    def source(self, value: Any) -> str | None:
        """The parameter or buffer that `value` is, possibly moved around, cast, or scaled: zero where that is zero."""
        if not isinstance(value, fx.Node):
            return None
        if value.op == "placeholder":
            return self.program.names.get(str(value.target))
        name = operator_name(value)
        if name in MOVES_ONLY or name in {"aten.div", "aten._weight_norm"}:
            return self.source(value.args[0])
        return self.source(value.args[0]) or self.source(value.args[1]) if name == "aten.mul" else None

    def _merge_rows(self, types: RowDims) -> Dims:
        for row in types.rows[1:]:
            self.unifier.unify(types.rows[0], row)
        if self.split_stacks and len(types.rows) > 1:
            self.tied.append((types.rows[0], ONE_STATE))
        return (*types.dims[:-1], types.rows[0])


# Operators whose result holds elements of their first operand and no others.
_MOVES_ONLY = """
    view reshape permute transpose t expand contiguous clone alias detach to _to_copy select slice squeeze unsqueeze
    flatten unflatten movedim split chunk unbind swapaxes lift_fresh_copy
    view_as reshape_as expand_as broadcast_to _unsafe_view moveaxis swapdims mT mH adjoint matrix_H numpy_T ravel
    atleast_1d atleast_2d atleast_3d narrow diagonal unfold tensor_split hsplit vsplit dsplit
    split_with_sizes unsafe_split unsafe_chunk unsafe_split_with_sizes
    flip fliplr flipud roll rot90 pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle
    repeat tile repeat_interleave
"""
MOVES_ONLY = frozenset(f"aten.{name}" for name in _MOVES_ONLY.split()) | {"getitem"}


def operator_name(node: fx.Node) -> str:
    """Name of the operator without overload and without the mark of in-place operators.

    >>> import torch
    >>> graph = fx.Graph()
    >>> x = graph.placeholder("x")
    >>> operator_name(graph.call_function(torch.ops.aten.relu_.default, (x,)))
    'aten.relu'
    """
    return _name_of(node.target)


@functools.cache
def _name_of(target: Any) -> str:
    if hasattr(target, "_schema"):
        namespace, name = target._schema.name.split("::")
        return f"{namespace}.{name.rstrip('_') if not name.startswith('__') else name}"
    return str(getattr(target, "__name__", target))


def shape_of(node: fx.Node) -> tuple[int, ...] | list[tuple[int, ...]] | None:
    """Shape of what `node` gives: one, a list for several tensors, None for no tensor."""
    value = node.meta.get("val")
    if isinstance(value, Tensor):
        return tuple(int(n) for n in value.shape)
    if isinstance(value, tuple | list):
        return [tuple(int(n) for n in v.shape) if isinstance(v, Tensor) else () for v in value]
    return None


def arguments(node: fx.Node) -> Mapping[str, Any]:
    """Arguments of an operator by the names of its schema, defaults filled in."""
    names, defaults = _parameters(node.target)
    return defaults | dict(zip(names, node.args, strict=False)) | node.kwargs


@functools.cache
def _parameters(target: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Names of an operator's arguments, and the defaults of those that have one."""
    known = target._schema.arguments
    return tuple(a.name for a in known), {a.name: a.default_value for a in known if a.has_default_value()}
