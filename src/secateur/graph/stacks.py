"""Stacked recurrent layers that need not be equally wide.

`nn.LSTM`, `nn.GRU` and `nn.RNN` give all layers of a stack one width. Where a cut leaves them at different
widths, such a module computes with the class below instead: same parameters under the same names, same call,
same results.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence

from secateur.graph.copies import become
from secateur.graph.trace import Program

GATES = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1}
TORCH_CLASSES: dict[str, type[nn.RNNBase]] = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN_TANH": nn.RNN, "RNN_RELU": nn.RNN}


@dataclass(frozen=True, eq=False)
class LayerStates:
    """Final states of layers of different widths: one tensor for each layer and direction.

    It is read as the one tensor is that torch gives where the widths are equal, by index along the first dimension.
    It is no tuple: that is how people tell the states of an LSTM from those of the others.

    >>> states = LayerStates((torch.zeros(1, 2), torch.ones(1, 3)))
    >>> states[-1].tolist(), states[-1, :, 0].tolist(), len(states.unbind())
    ([[1.0, 1.0, 1.0]], [1.0], 2)
    """

    rows: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.rows)

    def __getitem__(self, index: Any) -> Any:
        """A layer's state, part of one, or some of them."""
        first, *rest = index if isinstance(index, tuple) else (index,)
        if isinstance(first, slice):
            taken = _joined(self.rows[first])
            return taken[(slice(None), *rest)] if rest else taken
        return self.rows[first][tuple(rest)] if rest else self.rows[first]

    def unbind(self, dim: int = 0) -> tuple[Tensor, ...]:
        """All of them; `dim` is the first."""
        if dim != 0:
            raise IndexError(f"states of layers of different widths are apart along dimension 0 only; got {dim}")
        return self.rows


class LayerWidths(NamedTuple):
    """Units of one layer: those of its cell, and what it gives (fewer where it is projected)."""

    hidden: int
    output: int


class LayerwiseRecurrent(nn.Module):
    """What a stacked `nn.LSTM`, `nn.GRU` or `nn.RNN` computes, each layer as wide as its own parameters.

    A module of torch's class becomes one of this by `fit_stacks`, and keeps its attributes. The two directions of a
    layer are equally wide.

    Attributes:
        mode: "LSTM", "GRU", "RNN_TANH" or "RNN_RELU".
        input_size: width of the input.
        hidden_size: width of the last layer.
        proj_size: what the last layer's hidden state is mapped to; 0 without projections.
    """

    mode: str
    input_size: int
    hidden_size: int
    num_layers: int
    bias: bool
    batch_first: bool
    dropout: float
    bidirectional: bool
    proj_size: int
    _all_weights: list[list[str]]

    def forward(self, input: Any, hx: Any = None) -> tuple[Any, Any]:
        """Run layer by layer; arguments and results are those of torch's class.

        Final states of different widths come as `LayerStates`, which can be handed in as initial states too.
        """
        if isinstance(input, PackedSequence):
            data, batch_sizes, order, back = input
            output, finals = self._run(data, batch_sizes, self._given(hx, order))
            return PackedSequence(output, batch_sizes, order, back), self._as_torch(finals, back)
        if input.dim() not in (2, 3):
            raise ValueError(f"{self.mode}: expected input of 2 or 3 dimensions, got {input.dim()}")
        if input.dim() == 3:
            output, finals = self._run(input, None, self._given(hx))
            return output, self._as_torch(finals)
        along = 0 if self.batch_first else 1
        output, finals = self._run(input.unsqueeze(along), None, self._given(hx, unbatched=True))
        return output.squeeze(along), self._as_torch(finals, unbatched=True)

    def _run(
        self, data: Tensor, batch_sizes: Tensor | None, given: Sequence[Sequence[Tensor]] | None
    ) -> tuple[Tensor, list[Sequence[Tensor]]]:
        weights = [self.layer_weights(layer) for layer in range(self.num_layers)]
        how = (self.bias, self.dropout, self.training, self.bidirectional, self.batch_first)
        return run_layers(self.mode, data, batch_sizes, given, weights, *how)

    def layer_weights(self, layer: int) -> list[Tensor]:
        """Parameters of one layer in the order in which torch's operators take them."""
        directions = 2 if self.bidirectional else 1
        own = self._all_weights[layer * directions : (layer + 1) * directions]
        return [getattr(self, name) for names in own for name in names]

    def _given(self, hx: Any, order: Tensor | None = None, *, unbatched: bool = False) -> list[list[Tensor]] | None:
        """Initial states as they were given: of each kind, one tensor for each layer."""
        if hx is None:
            return None
        directions = 2 if self.bidirectional else 1
        kinds = []
        for states in hx if self.mode == "LSTM" else (hx,):
            rows = [row.unsqueeze(0) if unbatched else row for row in states.unbind(0)]
            rows = rows if order is None else [row.index_select(0, order) for row in rows]
            kinds.append([torch.stack(rows[k : k + directions]) for k in range(0, len(rows), directions)])
        return kinds

    def _as_torch(
        self, finals: list[Sequence[Tensor]], back: Tensor | None = None, *, unbatched: bool = False
    ) -> Tensor | LayerStates | tuple[Tensor | LayerStates, ...]:
        """Final states in the form in which torch gives them."""
        kinds = []
        for layers in zip(*finals, strict=True):
            ordered = layers if back is None else [state.index_select(1, back) for state in layers]
            kinds.append(_states([state.squeeze(1) for state in ordered] if unbatched else ordered))
        return tuple(kinds) if self.mode == "LSTM" else kinds[0]

    def flatten_parameters(self) -> None:
        """Lay the weights of each layer in one piece of memory where cuDNN computes; elsewhere do nothing."""
        for layer, widths in enumerate(layer_widths(self)):
            weights = self.layer_weights(layer)
            one = SimpleNamespace(
                _flat_weights=weights,
                _flat_weights_names=weights,
                bias=self.bias,
                mode=self.mode,
                input_size=weights[0].shape[1],
                hidden_size=widths.hidden,
                proj_size=widths.output if self.proj_size else 0,
                num_layers=1,
                batch_first=self.batch_first,
                bidirectional=self.bidirectional,
            )
            nn.RNNBase.flatten_parameters(cast("nn.RNNBase", one))

    def _apply(self, fn: Any, recurse: bool = True) -> "LayerwiseRecurrent":
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.flatten_parameters()
        return self

    def extra_repr(self) -> str:
        """For printing."""
        widths = layer_widths(self)
        said = f"{self.mode}, {self.input_size}, hidden_sizes={[w.hidden for w in widths]}"
        said += f", proj_sizes={[w.output for w in widths]}" if self.proj_size else ""
        return said + "".join(
            f", {name}={getattr(self, name)}"
            for name, usual in (("bias", True), ("batch_first", False), ("dropout", 0.0), ("bidirectional", False))
            if getattr(self, name) != usual
        )


def run_layers(
    mode: str,
    data: Tensor,
    batch_sizes: Tensor | None,
    given: Sequence[Sequence[Tensor]] | None,
    weights: Sequence[Sequence[Tensor]],
    has_biases: bool,
    dropout: float,
    training: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, list[Sequence[Tensor]]]:
    """One layer after the other, by torch's operators.

    Args:
        mode: "LSTM", "GRU", "RNN_TANH" or "RNN_RELU".
        data: (batch, steps, features), (steps, batch, features), or the data of a packed sequence.
        batch_sizes: of a packed sequence.
        given: initial states: of each kind, (directions, batch, width) of each layer. None: zeros.
        weights: of each layer, in the operator's order.
        has_biases: whether there are biases among them.
        dropout: probability, between layers and in training.
        training: whether dropout acts.
        bidirectional: whether layers run in both directions.
        batch_first: the layout of `data`.

    Returns:
        The last layer's output, and of each layer its final states of each kind, (directions, batch, width).
    """
    operator = getattr(torch._VF, mode.lower())
    how: tuple[bool, ...] = (bidirectional,) if batch_sizes is not None else (bidirectional, batch_first)
    sizes = () if batch_sizes is None else (batch_sizes,)
    batch: Any = data.size(0 if batch_first else 1) if batch_sizes is None else batch_sizes[0]
    finals: list[Sequence[Tensor]] = []
    for layer, own in enumerate(weights):
        if given is None:
            widths = _state_widths(mode, own, 2 if bidirectional else 1)
            shapes = [(2 if bidirectional else 1, batch, width) for width in widths]
            states = [torch.zeros(*shape, dtype=data.dtype, device=data.device) for shape in shapes]
        else:
            states = [kind[layer] for kind in given]
        state = tuple(states) if mode == "LSTM" else states[0]
        data, *final = operator(data, *sizes, state, own, has_biases, 1, 0.0, training, *how)
        finals.append(final)
        if dropout and layer + 1 < len(weights):
            data = functional.dropout(data, dropout, training)
    return data, finals


def uneven_stack(
    mode: str,
    data: Tensor,
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor | LayerStates, ...]:
    """A recurrent operator on layers of different widths, from states of zero: an operator of cut graphs.

    >>> stack = nn.GRU(2, 3, 2)
    >>> x = torch.ones(1, 1, 2)
    >>> given = uneven_stack("GRU", x, list(stack.parameters()), True, 2, 0.0, False, False, False)
    >>> all(torch.equal(a, b) for a, b in zip(given, stack(x), strict=True))
    True
    """
    each = len(params) // num_layers
    layers = [params[k : k + each] for k in range(0, len(params), each)]
    output, finals = run_layers(mode, data, None, None, layers, has_biases, dropout, train, bidirectional, batch_first)
    return (output, *map(_states, zip(*finals, strict=True)))


def _state_widths(mode: str, weights: Sequence[Tensor], directions: int) -> list[int]:
    """Widths of a layer's hidden state and, of an LSTM, of its cell state: the wider one where it is projected."""
    widths = [weights[1].shape[1]]
    if mode == "LSTM":
        each = len(weights) // directions
        widths.append(weights[each - 1 if each % 2 else 1].shape[1])
    return widths


def _states(layers: Sequence[Tensor]) -> Tensor | LayerStates:
    """States of all layers, the first dimension of each its directions, as one tensor if they are equally wide."""
    return _joined([row for state in layers for row in state.unbind(0)])


def _joined(rows: Sequence[Tensor]) -> Tensor | LayerStates:
    # Plain integers: while a program is traced, sizes that are compared are taken to stay equal.
    is_even = len({int(row.shape[-1]) for row in rows}) == 1
    return torch.stack(list(rows)) if is_even else LayerStates(tuple(rows))


def layer_widths(module: Any) -> list[LayerWidths]:
    """The widths of each layer of a stack, of torch's class or ours.

    >>> layer_widths(nn.LSTM(2, 5, 2, proj_size=3))
    [LayerWidths(hidden=5, output=3), LayerWidths(hidden=5, output=3)]
    """
    tensors = (getattr(module, f"weight_hh_l{layer}") for layer in range(module.num_layers))
    return [LayerWidths(len(weight) // GATES[module.mode], weight.shape[1]) for weight in tensors]


def fit_stacks(model: nn.Module) -> tuple[str, ...]:
    """Give every recurrent module in `model` the class that its tensors fit, in place; paths of those of ours.

    >>> stack = nn.GRU(2, 3, 2)
    >>> stack.weight_ih_l1 = nn.Parameter(torch.zeros(12, 3))
    >>> stack.weight_hh_l1 = nn.Parameter(torch.zeros(12, 4))
    >>> fit_stacks(stack), type(stack).__name__
    (('',), 'LayerwiseRecurrent')
    """
    left = []
    for path, module in model.named_modules():
        # A subclass may compute something else.
        if type(module) in (*TORCH_CLASSES.values(), LayerwiseRecurrent):
            is_even = len(set(layer_widths(module))) == 1
            if is_even and isinstance(module, LayerwiseRecurrent):
                become(module, TORCH_CLASSES[module.mode])._init_flat_weights()
            elif not is_even:
                vars(module).pop("_flat_weights", None)
                vars(module).pop("_flat_weight_refs", None)
                become(module, LayerwiseRecurrent).flatten_parameters()
                left.append(path)
    return tuple(left)


def stack_parameters(program: Program, node: fx.Node) -> list[str] | None:
    """Canonical names of the parameters of the stack that makes this call of a recurrent operator, in its order.

    None if no module of torch's own class makes it.
    """
    path, module = module_path(node), _caller(program, node)
    if type(module) not in TORCH_CLASSES.values():
        return None
    prefix = f"{path}." if path else ""
    return [program.aliases.get(prefix + name, "") for name in module._flat_weights_names]  # type: ignore[union-attr]


def is_layerwise(program: Program, node: fx.Node) -> bool:
    """Whether a stack of ours makes this call."""
    return isinstance(_caller(program, node), LayerwiseRecurrent)


def _caller(program: Program, node: fx.Node) -> nn.Module | None:
    try:
        path = module_path(node)
        return None if path is None else program.model.get_submodule(path)
    except AttributeError:
        return None


def module_path(node: fx.Node) -> str | None:
    """Path of the module whose forward was running; None if that is not known."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return stack[-1][0] if stack else None
