"""LSTM, GRU and plain recurrent networks, of any depth and in either direction."""

from dataclasses import dataclass
from typing import Any

from torch import fx

from secateur.graph.axes import Concat, Dims, DimType, Fixed, Product
from secateur.graph.stacks import module_path, stack_parameters
from secateur.graph.typing import RowDims, Types, Typing, arguments, operator_name, shape_of

GATES = {"aten.lstm": 4, "aten.gru": 3, "aten.rnn_tanh": 1, "aten.rnn_relu": 1}
STEP = "a step of a sequence, or a sample"
GIVEN = "its initial state is given, one tensor for all layers, so they stay equally wide"
OTHER_CLASS = "not a module of torch's own class with parameters of its own, so its layers stay equally wide"
FILLED = ("aten.zeros", "aten.ones", "aten.full", "aten.new_zeros", "aten.zeros_like", "aten.empty")


@dataclass(frozen=True)
class Cell:
    """Parameters of one layer in one direction, and what it gives at each step."""

    input_weight: Any
    hidden_weight: Any
    biases: tuple[Any, ...]
    projection: Any | None


def recurrent_rule(typing: Typing, node: fx.Node) -> list[Types]:
    """Each layer and direction has a hidden axis of its own; one module keeps them equally wide.

    Where layers may be apart, the two directions of each still stay equally wide: one call of the operator runs both.
    """
    named = arguments(node)
    gates = GATES[operator_name(node)]
    states = named["hx"] if isinstance(named["hx"], list | tuple) else [named["hx"]]
    directions = 2 if named["bidirectional"] else 1
    cells = _cells(list(named["params"]), int(named["num_layers"]) * directions, has_biases=named["has_biases"])
    # A packed sequence is its "data": steps and samples in one dimension.
    *batch_steps, feature = typing.dims(named["input"] if "input" in named else named["data"])
    typing.fix(batch_steps, STEP)
    hidden: list[DimType] = []
    given: list[DimType] = []
    for layer in range(len(cells) // directions):
        outputs = []
        for cell in cells[layer * directions : (layer + 1) * directions]:
            inner, out = _cell(typing, node, cell, feature, tuple(batch_steps), gates)
            hidden.append(inner)
            outputs.append(out)
        given += outputs
        feature = outputs[0] if directions == 1 else Concat(tuple(outputs))
    is_stack = typing.split_stacks and len(cells) > directions
    together = directions if is_stack and _may_split(typing, node, hidden) else len(cells)
    for kind in (hidden,) if given == hidden else (hidden, given):
        typing.families += [tuple(kind[k : k + together]) for k in range(0, len(kind), together)]
    rows = [tuple(given), tuple(hidden)][: len(states)]
    finals = [_final_state(typing, state, row) for state, row in zip(states, rows, strict=True)]
    return [(*batch_steps, feature), *finals]


def recurrent_cell_rule(typing: Typing, node: fx.Node) -> Types | list[Types]:
    """`lstm_cell`, `gru_cell`, `rnn_*_cell`: one step."""
    named = arguments(node)
    gates = GATES[operator_name(node).removesuffix("_cell")]
    states = named["hx"] if isinstance(named["hx"], list | tuple) else [named["hx"]]
    cell = Cell(named["w_ih"], named["w_hh"], (named.get("b_ih"), named.get("b_hh")), None)
    dims = typing.dims(named["input"])
    inner, out = _cell(typing, node, cell, dims[-1], dims[:-1], gates)
    for state in states:
        typing.unify(typing.dims(state)[-1], inner)
    return [(*dims[:-1], out), (*dims[:-1], inner)] if len(states) == 2 else (*dims[:-1], out)


def _may_split(typing: Typing, node: fx.Node, hidden: list[DimType]) -> bool:
    """Whether an equivalent stack of layers of any width can take the place of the module that makes the call."""
    named = arguments(node)
    states = named["hx"] if isinstance(named["hx"], list | tuple) else [named["hx"]]
    own = [typing.program.names.get(str(p.target)) if p.op == "placeholder" else None for p in named["params"]]
    reason = None
    if own != stack_parameters(typing.program, node):
        reason = OTHER_CLASS
    elif any(operator_name(state) not in FILLED or module_path(state) != module_path(node) for state in states):
        reason = GIVEN
    if reason is not None:
        typing.tied += [(dim, reason) for dim in hidden]
    return reason is None


def _cells(params: list[Any], count: int, *, has_biases: bool) -> list[Cell]:
    """The parameters of each cell; an LSTM that maps its hidden state to a smaller one has one more."""
    each = len(params) // count
    projected = each > 2 + 2 * has_biases
    return [
        Cell(p[0], p[1], tuple(p[2:4]) if has_biases else (), p[-1] if projected else None)
        for p in (params[k : k + each] for k in range(0, len(params), each))
    ]


def _cell(
    typing: Typing, node: fx.Node, cell: Cell, feature: DimType, batch_steps: Dims, gates: int
) -> tuple[DimType, DimType]:
    """Type one cell; the result is its hidden (cell state) axis and the axis of what it gives."""
    rows, width = typing.dims(cell.input_weight)
    hidden: DimType = typing.unifier.fresh(rows.size // gates)
    stacked = Product((Fixed(gates, "the gates of a recurrent cell"), hidden))
    typing.unify(rows, stacked)
    typing.unify(width, feature)
    typing.contract(width, cell.input_weight)
    hidden_rows, hidden_width = typing.dims(cell.hidden_weight)
    typing.unify(hidden_rows, stacked)
    for bias in cell.biases:
        if isinstance(bias, fx.Node):
            typing.unify(typing.dims(bias)[0], stacked)
    out = hidden
    if cell.projection is not None:
        out, inner = typing.dims(cell.projection)
        typing.unify(inner, hidden)
        typing.contract(inner, cell.projection)
        # Torch tells a projection by the two states being of unequal width.
        typing.minimums.append((hidden, out.size + 1))
        typing.count_macs(node, [*batch_steps, out, inner])
    typing.unify(hidden_width, out)
    typing.contract(hidden_width, cell.hidden_weight)
    typing.count_macs(node, [*batch_steps, stacked, width])
    typing.count_macs(node, [*batch_steps, stacked, hidden_width])
    return hidden, out


def _final_state(typing: Typing, initial: Any, rows: tuple[DimType, ...]) -> Types:
    """Final hidden states, (layers x directions, batch, hidden); the initial one has the same shape."""
    initial_dims = typing.dims(initial)
    # One value everywhere serves any layer; they are as wide as the last. Else every layer shares its axis.
    is_filled = operator_name(initial) in FILLED
    for row in rows[-1:] if is_filled else rows:
        typing.unify(initial_dims[-1], row)
    lead = tuple(Fixed(d.size, "a layer or sample") for d in initial_dims[:-1])
    if len(rows) == 1:
        return (*lead, rows[0])
    return RowDims((*lead, rows[0]), rows)


def pack_rule(typing: Typing, node: fx.Node) -> list[Types]:
    """`_pack_padded_sequence`: samples and steps become one dimension; beside it how many samples each step has."""
    batch, steps, *features = typing.dims(arguments(node)["input"])
    typing.fix([batch, steps], STEP)
    return _bookkept(node, 1, features)


def unpack_rule(typing: Typing, node: fx.Node) -> list[Types]:
    """`_pad_packed_sequence`: the other way round; beside it the lengths."""
    packed, *features = typing.dims(arguments(node)["data"])
    typing.fix([packed], STEP)
    return _bookkept(node, 2, features)


def _bookkept(node: fx.Node, lead: int, features: list[DimType]) -> list[Types]:
    shapes = shape_of(node)
    assert isinstance(shapes, list)
    first, second = ([Fixed(n, STEP) for n in shape] for shape in shapes)
    return [(*first[:lead], *features), tuple(second)]
