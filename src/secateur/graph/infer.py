"""Give every value of a program its types, by one rule for each operator."""

from typing import Any

from torch import fx
from torch.utils import _pytree as pytree

from secateur.graph.axes import Dims, Fixed
from secateur.graph.rules.labelled import labelled_rule
from secateur.graph.rules.pointwise import MADE_IN_FORWARD, tensor_operands
from secateur.graph.rules.table import rule_for
from secateur.graph.settle import settle
from secateur.graph.trace import Program
from secateur.graph.typing import MOVES_ONLY, Types, Typing, operator_name, shape_of
from secateur.graph.zeros import remark_not_zero
from secateur.types import Fallback

BROKEN = "the rule of"


def infer(program: Program, fallback: Fallback = "error", *, split_stacks: bool = False) -> Typing:
    """Type every dimension of every tensor in `program`.

    An operator without a rule fixes everything it touches: the result can be less prunable, never
    wrong.

    Args:
        program: from `trace`.
        fallback: "error" fixes what the user's own forward pass cannot follow, "graph" does not.
        split_stacks: layers of one stacked recurrent module may end at different widths.
    """
    typing = Typing(program, split_stacks)
    typing.state.update({name: typing.fresh(shape) for name, shape in program.shapes.items()})
    for node in program.nodes:
        match node.op:
            case "placeholder":
                typing.values[node] = _placeholder(typing, node)
            case "call_function":
                typing.values[node] = _call(typing, node)
            case "output":
                for value in pytree.tree_leaves(node.args):
                    if value in typing.values and shape_of(value) is not None:
                        typing.fix(typing.dims(value), "an output of the model")
    _fix_unused(typing)
    settle(typing, fallback)
    remark_not_zero(typing)
    return typing


def _placeholder(typing: Typing, node: fx.Node) -> Types:
    name = typing.program.names.get(str(node.target))
    if name is not None:
        return typing.state[name]
    shape = shape_of(node)
    if not isinstance(shape, tuple):
        return None
    is_input = str(node.target) in typing.program.user_inputs
    reason = "an input of the model" if is_input else MADE_IN_FORWARD
    return tuple(Fixed(n, reason) for n in shape)


def _call(typing: Typing, node: fx.Node) -> Types | list[Types]:
    _pass_positions(typing, node)
    if operator_name(node) == "getitem":
        values = typing.values.get(node.args[0])  # type: ignore[arg-type]
        return values[node.args[1]] if isinstance(values, list) else None  # type: ignore[index]
    shapes = shape_of(node)
    if shapes is None:
        return None
    rule = rule_for(node)
    known = len(typing.contractions), len(typing.remarks)
    try:
        result = _checked(node, rule(typing, node) if rule else labelled_rule(typing, node), shapes)
        reason = f"no rule for the operator {operator_name(node)}"
    except Exception as error:
        # A mistake of ours must cost units, not the user's day; the tests' law refuses such a reason.
        result, reason = None, f"{BROKEN} {operator_name(node)} does not fit this call ({error})"
    typing.facts[node] = typing.contractions[known[0] :], typing.remarks[known[1] :]
    return _unknown(typing, node, shapes, reason) if result is None else result


def _pass_positions(typing: Typing, node: fx.Node) -> None:
    """Positions that are only moved around are positions still; of what topk gives, the second are."""
    operand = node.args[0] if node.args else None
    if not isinstance(operand, fx.Node) or operand not in typing.chosen or operator_name(node) not in MOVES_ONLY:
        return
    if isinstance(typing.values.get(operand), list) and node.args[1:] != (1,):
        return
    typing.chosen[node] = typing.chosen[operand]


def _unknown(typing: Typing, node: fx.Node, shapes: Any, reason: str) -> Types | list[Types]:
    for operand in tensor_operands(typing, node):
        typing.fix(typing.dims(operand), reason)
    return _fixed(shapes, reason)


def _fixed(shapes: Any, reason: str) -> Types | list[Types]:
    if isinstance(shapes, list):
        return [tuple(Fixed(n, reason) for n in shape) for shape in shapes]
    return tuple(Fixed(n, reason) for n in shapes)


def _checked(node: fx.Node, result: Any, shapes: Any) -> Types | list[Types]:
    """A rule that gives other sizes than the program is our own mistake: find it here, not later."""
    if result is None:
        return None
    pairs = zip(result, shapes, strict=False) if isinstance(shapes, list) else [(result, shapes)]
    for types, shape in pairs:
        if isinstance(types, tuple) and tuple(d.size for d in types) != tuple(shape):
            raise AssertionError(f"rule of {operator_name(node)} gave sizes {_sizes(types)}, program has {shape}")
    return result  # type: ignore[no-any-return]


def _sizes(dims: Dims) -> tuple[int, ...]:
    return tuple(d.size for d in dims)


def _fix_unused(typing: Typing) -> None:
    used = {
        typing.program.names[str(n.target)]
        for n in typing.program.nodes
        if n.op == "placeholder" and n.users and str(n.target) in typing.program.names
    }
    for name, dims in typing.state.items():
        if name not in used:
            typing.fix(dims, "not used by the forward pass on the example inputs")
