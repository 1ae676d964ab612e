"""Whether a unit is zero wherever it is summed, once the weights that make it are.

Where something sums over units without a weight (queries with keys, a plain sum), masking zeroes the weights
that make them. A unit is then gone only if every step on its way keeps zero zero: `elu(x) + 1` does not.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from secateur.graph.axes import leaves
from secateur.graph.lookup import bare_axes
from secateur.graph.rules.labelled import MOVERS
from secateur.graph.typing import MOVES_ONLY, Typing, arguments, operator_name

NOT_ZERO = "its units are not zero where they are summed, even when the weights that make them are"


def remark_not_zero(typing: Typing) -> None:
    """Flag axes that something sums over without a weight and that would not be zero there."""
    zeros = Zeros(typing, frozenset(_written_through_views(typing)))
    for contraction in typing.contractions:
        for axis in bare_axes(typing, contraction):
            if not any(zeros.at(operand, axis.id) for operand in contraction.operands):
                typing.remark(axis, NOT_ZERO)


@dataclass(frozen=True, eq=False)
class Zeros:
    """Which values are zero in the units of which axes; what is not known to be is not.

    Attributes:
        typing: the types.
        written: values that are written through a view of them.
    """

    typing: Typing
    written: frozenset[fx.Node]
    known: dict[tuple[fx.Node, int], bool] = field(default_factory=dict)

    def at(self, value: Any, axis: int) -> bool:
        """Whether `value` is zero at every position of a unit of `axis` that is masked."""
        if not isinstance(value, fx.Node) or value in self.written:
            return False
        key = value, axis
        if key not in self.known:
            self.known[key] = False
            self.known[key] = self._find(value, axis)
        return self.known[key]

    def _find(self, node: fx.Node, axis: int) -> bool:
        if node.op == "placeholder":
            return str(node.target) in self.typing.program.names and self.holds(node, axis)
        if node.op != "call_function":
            return False
        # What has summed the axis away is not zero, though its weights for one unit are.
        if isinstance(self.typing.values.get(node), tuple) and not self.holds(node, axis):
            return False
        rule = _RULES.get(operator_name(node))
        return rule is not None and rule(self, node, axis)

    def holds(self, value: Any, axis: int) -> bool:
        """Whether a dimension of `value` has the axis in it."""
        types = self.typing.values.get(value) if isinstance(value, fx.Node) else None
        resolve = self.typing.unifier.resolve
        return isinstance(types, tuple) and any(axis == leaf.id for dim in types for leaf in leaves(resolve(dim)))


def _first(zeros: Zeros, node: fx.Node, axis: int) -> bool:
    return zeros.at(node.args[0], axis)


def _any(zeros: Zeros, node: fx.Node, axis: int) -> bool:
    """Products: one factor that is zero is enough."""
    return any(zeros.at(operand, axis) for operand in _tensors(node.args))


def _all(zeros: Zeros, node: fx.Node, axis: int) -> bool:
    """Sums: every term must be zero, so none may be a number or lack the axis."""
    is_scaled_only = all(isinstance(a, fx.Node) for a in node.args[:2])
    return is_scaled_only and all(zeros.at(operand, axis) for operand in node.args[:2])


def _joined(zeros: Zeros, node: fx.Node, axis: int) -> bool:
    return all(zeros.at(part, axis) for part in node.args[0] if zeros.holds(part, axis))  # type: ignore[union-attr]


def _moved(zeros: Zeros, node: fx.Node, axis: int) -> bool:
    """Elements of the operands, and zeros."""
    holders = [operand for operand in _tensors(node.args) if zeros.holds(operand, axis)]
    return bool(holders) and all(zeros.at(operand, axis) for operand in holders)


def _padded(zeros: Zeros, node: fx.Node, axis: int) -> bool:
    """Zeros beside zeros; an axis of the padding alone is zero too."""
    return not arguments(node).get("value") and (_first(zeros, node, axis) or not zeros.holds(node.args[0], axis))


def _weighted(zeros: Zeros, node: fx.Node, axis: int) -> bool:
    """Weight and bias make the unit; with neither the input would have to."""
    named = arguments(node)
    bias = named.get("bias")
    return zeros.at(named["weight"], axis) and (bias is None or zeros.at(bias, axis))


def _powered(zeros: Zeros, node: fx.Node, axis: int) -> bool:
    exponent = node.args[1]
    return isinstance(exponent, int | float) and exponent > 0 and _first(zeros, node, axis)


def _clamped(zeros: Zeros, node: fx.Node, axis: int) -> bool:
    named = arguments(node)
    least, most = named.get("min", named.get("min_val")), named.get("max", named.get("max_val"))
    is_around = all(isinstance(n, int | float | None) for n in (least, most)) and (least or 0) <= 0 <= (most or 0)
    return is_around and _first(zeros, node, axis)


def _filled(zeros: Zeros, node: fx.Node, axis: int) -> bool:
    return arguments(node).get("value") == 0 and _first(zeros, node, axis)


def _recurrent(zeros: Zeros, node: fx.Node, axis: int) -> bool:
    """With no weight and no state a cell's unit stays at zero."""
    named = arguments(node)
    states = named["hx"] if isinstance(named["hx"], list | tuple) else [named["hx"]]
    return all(isinstance(s, fx.Node) and operator_name(s) in {"aten.zeros", "aten.new_zeros"} for s in states)


def _always(zeros: Zeros, node: fx.Node, axis: int) -> bool:
    return True


def _tensors(args: Iterable[Any]) -> Iterable[fx.Node]:
    for arg in args:
        if isinstance(arg, fx.Node):
            yield arg
        elif isinstance(arg, list | tuple):
            yield from _tensors(arg)


def _written_through_views(typing: Typing) -> Iterable[fx.Node]:
    for node in typing.program.nodes:
        schema = getattr(node.target, "_schema", None)
        target = node.args[0] if schema is not None and schema.is_mutable and node.args else None
        while isinstance(target, fx.Node) and operator_name(target) in MOVES_ONLY and target.args:
            target = target.args[0]
            if isinstance(target, fx.Node):
                yield target


_NAMES: dict[Callable[[Zeros, fx.Node, int], bool], str] = {
    _first: (
        "relu relu6 leaky_relu gelu silu mish elu selu celu tanh sin tan asin atan sinh erf abs neg sqrt square "
        "sign hardswish hardshrink softshrink threshold prelu expm1 log1p round floor ceil trunc dropout "
        "feature_dropout alpha_dropout native_dropout div sum mean norm cumsum col2im "
        "index index_select gather max_pool1d max_pool2d max_pool3d "
        "avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d "
        "adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d upsample_nearest1d upsample_nearest2d "
        "upsample_bilinear2d upsample_bicubic2d view_as_real view_as_complex real imag _conj conj type_as "
        "glu max min amax amin fft_fft fft_ifft fft_rfft fft_irfft"
    ),
    _any: "mul matmul mm bmm mv dot einsum bilinear",
    _all: "add sub",
    _joined: "cat concat stack",
    _padded: "pad constant_pad_nd",
    _weighted: (
        "linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d batch_norm instance_norm "
        "layer_norm group_norm"
    ),
    _powered: "pow",
    _clamped: "clamp hardtanh",
    _filled: "masked_fill",
    _recurrent: "lstm gru rnn_tanh rnn_relu",
    _always: "zeros new_zeros zeros_like zero",
}

_RULES = {f"aten.{name}": rule for rule, names in _NAMES.items() for name in names.split()} | {
    **dict.fromkeys(MOVERS, _moved),
    **dict.fromkeys(MOVES_ONLY, _first),
    **dict.fromkeys(("aten.embedding", "aten.embedding_bag"), _first),
    "aten.scaled_dot_product_attention": lambda zeros, node, axis: zeros.at(arguments(node)["value"], axis),
    "aten.addmm": lambda zeros, node, axis: zeros.at(node.args[0], axis) and zeros.at(node.args[2], axis),
    "aten.where": lambda zeros, node, axis: all(zeros.at(branch, axis) for branch in node.args[1:3]),
}
