"""What the calibration data tells of one weight of a recurrent layer, over all its steps.

Outputs that are wanted are those of the dense layer from its own inputs and states. Where a gate adds both products,
the one with the states is to give what the one with the inputs, which is sparse by then, leaves open.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from secateur.capture.forms import Dense
from secateur.capture.recurrent import Layer
from secateur.sparsity.seen import Seen, seen_rows

Role = Literal["ih", "hh", "hr"]
ROLES: tuple[Role, ...] = ("ih", "hh", "hr")


@dataclass(frozen=True, eq=False)
class _Products:
    """Of one weight, in the order in which they are made: inputs, outputs with the bias, and the bias."""

    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    biases: list[Tensor | None] = field(default_factory=list)

    def without_bias(self) -> list[Tensor]:
        return [y if b is None else y - b for y, b in zip(self.outputs, self.biases, strict=True)]


def seen_layer(layers: Sequence[Layer], role: Role, targets: Sequence[Layer] | None = None) -> Seen:
    """Inputs of one weight of a layer, as the layer runs now on all batches, and outputs that are wanted.

    Args:
        layers: the layer, on each batch.
        role: which of its weights.
        targets: the same in the dense model; None: outputs that the weight makes of its own inputs.
    """
    found: list[Seen] = []
    first = 0
    for number, layer in enumerate(layers):
        now = _products(layer)
        wanted = None if targets is None else _wanted(targets[number], now, layer, role)
        most = 0
        for step, inputs in enumerate(now[role].inputs):
            design = Dense().design(inputs)
            found.append(seen_rows(design, first, None if wanted is None else Dense().responses(wanted[step])))
            most = max(most, len(design))
        first += most
    total = found[0]
    for part in found[1:]:
        total = total + part
    return total


def _wanted(dense: Layer, now: dict[Role, _Products], layer: Layer, role: Role) -> list[Tensor]:
    then = _products(dense)
    own = then[role].without_bias()
    if role != "hh" or layer.kind == "gru":
        # The reset gate of a GRU multiplies the product with the states alone.
        return own
    before, after = (_by_step(one, products["ih"].outputs[0]) for one, products in ((dense, then), (layer, now)))
    return [y + a - b for y, a, b in zip(own, before, after, strict=True)]


def _products(layer: Layer) -> dict[Role, _Products]:
    found: dict[Role, _Products] = {role: _Products() for role in ROLES}
    roles: dict[int, Role] = {id(getattr(layer.weights, role)): role for role in ROLES}

    def product(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        outputs = functional.linear(inputs, weight, bias)
        made = found[roles[id(weight)]]
        made.inputs.append(inputs)
        made.outputs.append(outputs)
        made.biases.append(bias)
        return outputs

    layer.run(product)
    return found


def _by_step(layer: Layer, outputs: Tensor) -> list[Tensor]:
    """The product with the inputs, which is made for all steps at once, in the order of the steps."""
    steps = list(outputs.unbind(1)) if layer.inputs.ndim == 3 else list(torch.split(outputs, list(layer.sizes)))
    return steps[::-1] if layer.is_reverse else steps


def role_of(layer: Layer, is_it: Callable[[Tensor], bool]) -> Role:
    """The role of the first weight of which `is_it` holds."""
    return next(role for role in ROLES if (w := getattr(layer.weights, role)) is not None and is_it(w))
