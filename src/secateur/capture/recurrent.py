"""Recurrent layers step by step, so that each product with one of their weights is a call of its own."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Kind = Literal["lstm", "gru", "rnn_tanh", "rnn_relu"]
Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""`linear(inputs, weight, bias)`."""


@dataclass(frozen=True, eq=False)
class Weights:
    """The parameters of one layer in one direction.

    Attributes:
        ih: (gates x hidden, inputs).
        hh: (gates x hidden, outputs).
        bias_ih: (gates x hidden,) or None.
        bias_hh: likewise.
        hr: (outputs, hidden): the projection of an LSTM; None without one.
    """

    ih: Tensor
    hh: Tensor
    bias_ih: Tensor | None = None
    bias_hh: Tensor | None = None
    hr: Tensor | None = None


State = tuple[Tensor, ...]
"""Hidden state (samples, outputs), and for an LSTM its cells (samples, hidden)."""


def step(kind: Kind, from_inputs: Tensor, state: State, weights: Weights, linear: Product) -> State:
    """One step of one layer.

    Args:
        kind: which network.
        from_inputs: (samples, gates x hidden): product of the inputs with `weights.ih`, with its bias.
        state: before the step.
        weights: of the layer.
        linear: makes the products.
    """
    hidden = state[0]
    from_hidden = linear(hidden, weights.hh, weights.bias_hh)
    if kind == "lstm":
        i, f, g, o = (from_inputs + from_hidden).chunk(4, 1)
        cells = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
        hidden = o.sigmoid() * cells.tanh()
        return (hidden if weights.hr is None else linear(hidden, weights.hr, None)), cells
    if kind == "gru":
        (ir, iz, i_new), (hr, hz, h_new) = from_inputs.chunk(3, 1), from_hidden.chunk(3, 1)
        new = (i_new + (ir + hr).sigmoid() * h_new).tanh()
        update = (iz + hz).sigmoid()
        return (new + update * (hidden - new),)
    total = from_inputs + from_hidden
    return (total.tanh() if kind == "rnn_tanh" else total.relu(),)


def run_layer(
    kind: Kind,
    inputs: Tensor,
    sizes: Sequence[int],
    state: State,
    weights: Weights,
    linear: Product,
    *,
    is_reverse: bool,
) -> tuple[Tensor, State]:
    """One layer in one direction.

    Args:
        kind: which network.
        inputs: (time, samples, columns), or packed: (sum of sizes, columns).
        sizes: samples at each step, not increasing; all the same where nothing is packed.
        state: at first, for all samples.
        weights: of the layer.
        linear: makes the products.
        is_reverse: from the last step to the first.

    Returns:
        Outputs, in the layout of the inputs, and the state at last.
    """
    if inputs.ndim == 3:
        # Samples first, so that whoever sees the call can tell them apart.
        from_inputs = linear(inputs.transpose(0, 1), weights.ih, weights.bias_ih).transpose(0, 1)
        steps = list(from_inputs.unbind(0))
    else:
        steps = list(torch.split(linear(inputs, weights.ih, weights.bias_ih), list(sizes)))
    outputs: list[Tensor] = [inputs] * len(steps)
    for t in reversed(range(len(steps))) if is_reverse else range(len(steps)):
        now = tuple(s[: sizes[t]] for s in state)
        after = step(kind, steps[t], now, weights, linear)
        outputs[t] = after[0]
        # Sequences that are over, or have not begun, keep the state that they have.
        state = tuple(torch.cat([new, old[sizes[t] :]]) for new, old in zip(after, state, strict=True))
    return (torch.stack(outputs) if inputs.ndim == 3 else torch.cat(outputs)), state


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer in one direction, about to be run.

    Attributes:
        kind: which network.
        inputs: (time, samples, columns), or packed: (sum of sizes, columns).
        sizes: samples at each step.
        state: at first.
        weights: its parameters, as the operator was given them.
        is_reverse: from the last step to the first.
    """

    kind: Kind
    inputs: Tensor
    sizes: Sequence[int]
    state: State
    weights: Weights
    is_reverse: bool

    def run(self, linear: Product) -> tuple[Tensor, State]:
        """Outputs, in the layout of the inputs, and the state at last."""
        return run_layer(
            self.kind, self.inputs, self.sizes, self.state, self.weights, linear, is_reverse=self.is_reverse
        )


def run_stack(
    kind: Kind,
    inputs: Tensor,
    sizes: Sequence[int] | None,
    states: Sequence[Tensor],
    layers: Sequence[Weights],
    recur: Callable[[Layer], tuple[Tensor, State]],
    *,
    directions: int,
    dropout: float = 0.0,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """All layers of a stacked module.

    Args:
        kind: which network.
        inputs: (time, samples, columns), or packed.
        sizes: samples at each step of packed inputs; None where they are not.
        states: hidden state (layers x directions, samples, outputs), and for an LSTM its cells.
        layers: weights, layer by layer, the directions of a layer together.
        recur: runs one layer in one direction.
        directions: 1 or 2.
        dropout: between the layers; 0 outside training.

    Returns:
        Outputs of the last layer, and the states at last.
    """
    per_step = list(sizes) if sizes is not None else [inputs.shape[1]] * inputs.shape[0]
    last: list[State] = []
    for number in range(0, len(layers), directions):
        if number and dropout:
            inputs = functional.dropout(inputs, dropout)
        ends = []
        for d in range(directions):
            state = tuple(s[number + d] for s in states)
            out, end = recur(Layer(kind, inputs, per_step, state, layers[number + d], bool(d)))
            ends.append(out)
            last.append(end)
        inputs = torch.cat(ends, dim=-1)
    return inputs, tuple(torch.stack(parts) for parts in zip(*last, strict=True))
