"""Repair of a recurrent layer: its products are fitted, and what they do step after step is judged.

A fit needs the hidden states that the cut layer will have, which depend on the fit. It starts from those of the
dense layer, and is repeated with those that came of it, as long as the outputs on held-out samples come closer.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from secateur.capture.calls import Place
from secateur.capture.forms import Dense
from secateur.capture.recurrent import Layer, Weights
from secateur.repairs.least_squares import FOLDS, in_folds, solve
from secateur.repairs.rows import kept_columns, kept_rows
from secateur.surgery.tensors import Marked

ROUNDS = 3
ROLES = ("ih", "hh", "hr")
"""Weights of a layer: from its inputs, from its state, and the projection of an LSTM."""

Values = Mapping[str, Tensor]
"""Tensor of a role ("ih", "hh", "bias_ih", "bias_hh", "hr") -> its values."""


@dataclass(frozen=True, eq=False)
class Pair:
    """The same layer in the dense and in the cut model, on the same batch."""

    dense: Layer
    small: Layer


@dataclass(frozen=True, eq=False)
class Kept:
    """Rows of each product's weight, and columns of the hidden state, that are left."""

    rows: Mapping[str, Tensor]
    columns: Tensor


@dataclass(frozen=True, eq=False)
class Outcome:
    """New values of the layer's tensors, and the held-out error of its outputs before and after."""

    values: Values
    before: float
    after: float


def kept_of(layers: Pair, names: Callable[[Tensor], str], marks: Mapping[str, Sequence[Marked]]) -> Kept | None:
    """What is left of a layer; None where its gates do not keep the same units.

    Args:
        layers: the dense and the cut layer.
        names: tensor of the dense model -> its name.
        marks: what was removed, by name.
    """
    rows = {}
    for role in ROLES:
        dense, small = getattr(layers.dense.weights, role), getattr(layers.small.weights, role)
        if dense is None:
            continue
        name = names(dense)
        places = Place(name, 0, len(dense)), Place(name, 0, len(small))
        found = kept_rows((Dense(), places[0]), (Dense(), places[1]), tuple(dense.shape), marks.get(name, ()))
        if found is None:
            return None
        rows[role] = found[0]
    hh = layers.dense.weights.hh
    return Kept(rows, kept_columns(tuple(hh.shape), marks.get(names(hh), ())))


def repaired_layer(pairs: Sequence[Pair], kept: Kept, name: str) -> Outcome:
    """Fit the products of one layer in one direction.

    Args:
        pairs: the layer on every batch.
        kept: what is left of it.
        name: for errors.

    Raises:
        NumericalError: inputs or states that are not finite.
    """
    fitted, held = _split(pairs)
    old = _values(pairs[0].small.weights)
    best, before = 0, _error(held, kept, old)
    least = before
    for rounds in range(1, ROUNDS + 1):
        error = _error(held, kept, _fit(fitted, kept, old, rounds, name))
        # NaN is not below anything.
        if error < least:
            best, least = rounds, error
    return Outcome(_fit(pairs, kept, old, best, name) if best else old, before, least)


def _split(pairs: Sequence[Pair]) -> tuple[list[Pair], list[Pair]]:
    """Samples to fit on, and every `FOLDS`-th one to judge by; packed sequences are held out by batches."""
    fitted: list[Pair] = []
    held: list[Pair] = []
    if any(pair.small.inputs.ndim == 2 for pair in pairs):
        held = list(pairs[FOLDS - 1 :: FOLDS]) or list(pairs[1:]) or list(pairs)
        return [p for p in pairs if p not in held] or list(pairs), held
    first = 0
    for pair in pairs:
        count = pair.small.inputs.shape[1]
        fold = (first + torch.arange(count)) % FOLDS
        first += count
        for chosen, into in ((fold != FOLDS - 1, fitted), (fold == FOLDS - 1, held)):
            if bool(chosen.any()):
                into.append(Pair(_taken(pair.dense, chosen), _taken(pair.small, chosen)))
    return fitted or held, held or fitted


def _taken(layer: Layer, chosen: Tensor) -> Layer:
    rows = chosen.nonzero().flatten().to(layer.inputs.device)
    state = tuple(s[rows] for s in layer.state)
    return replace(layer, inputs=layer.inputs[:, rows], state=state, sizes=[len(rows)] * len(layer.sizes))


def _values(weights: Weights) -> Values:
    roles = ("ih", "hh", "bias_ih", "bias_hh", "hr")
    found = {role: getattr(weights, role) for role in roles}
    return {role: tensor.detach().double().cpu() for role, tensor in found.items() if tensor is not None}


def _with(layer: Layer, values: Values) -> Layer:
    like = layer.weights.ih
    tensors = {role: tensor.to(like.device, like.dtype) for role, tensor in values.items()}
    return replace(layer, weights=Weights(**tensors))


def _error(pairs: Sequence[Pair], kept: Kept, values: Values) -> float:
    """Squared error of the outputs of the cut layer, run with these values, as a share of the dense outputs' size."""
    error = size = 0.0
    for pair in pairs:
        wanted = pair.dense.run(functional.linear)[0][..., kept.columns.to(pair.dense.inputs.device)].double()
        found = _with(pair.small, values).run(functional.linear)[0].double()
        error += float((found - wanted).square().sum())
        size += float(wanted.square().sum())
    return error / max(size, torch.finfo(torch.float64).tiny)


Products = Mapping[str, tuple[Tensor, Tensor]]
"""Role -> inputs and outputs of a layer's product over all steps: (samples, steps, columns)."""


@dataclass(frozen=True, eq=False)
class _Data:
    """What a fit goes by.

    Attributes:
        dense: products of the dense layer on each batch.
        now: those of the cut layer.
        kept: what is left of the dense one.
        old: values of the cut layer's tensors, to shrink towards.
        name: for errors.
    """

    dense: Sequence[Products]
    now: Sequence[Products]
    kept: Kept
    old: Values
    name: str

    def targets(self, role: str) -> list[Tensor]:
        """What the dense layer's product gives in the rows that are left."""
        return [_columns(each[role][1], self.kept.rows[role]) for each in self.dense]

    def inputs(self, role: str) -> list[Tensor]:
        """What goes into the cut layer's product."""
        return [each[role][0] for each in self.now]


def _columns(table: Tensor, chosen: Tensor) -> Tensor:
    return table[..., chosen.to(table.device)]


def _recorded(layer: Layer) -> Products:
    roles = {id(getattr(layer.weights, role)): role for role in ROLES}
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        outputs = functional.linear(inputs, weight, bias)
        seen.setdefault(roles[id(weight)], []).append((inputs, outputs))
        return outputs

    layer.run(linear)
    is_packed = layer.inputs.ndim == 2
    found = {}
    for role, steps in seen.items():
        # A reverse layer goes from the last step to the first, its inputs' product is made all at once.
        ordered = steps[::-1] if layer.is_reverse and role != "ih" else steps
        joined = [
            parts[0] if role == "ih" else torch.cat(parts) if is_packed else torch.stack(parts, 1)
            for parts in zip(*ordered, strict=True)
        ]
        inputs, outputs = (t.unsqueeze(1) if is_packed else t for t in joined)
        found[role] = (inputs, outputs)
    return found


def _fit(pairs: Sequence[Pair], kept: Kept, old: Values, rounds: int, name: str) -> Values:
    values = old
    dense = [_recorded(pair.dense) for pair in pairs]
    for number in range(rounds):
        now = [_recorded(_with(pair.small, values)) for pair in pairs]
        if number == 0:
            now = [_led_by(own, seen, kept) for own, seen in zip(now, dense, strict=True)]
        values = _fit_products(pairs[0].small.kind, _Data(dense, now, kept, old, name))
    return values


def _led_by(own: Products, dense: Products, kept: Kept) -> Products:
    """The cut layer's products as if its states were those of the dense layer."""
    led = dict(own)
    led["hh"] = (_columns(dense["hh"][0], kept.columns), own["hh"][1])
    if "hr" in own:
        # Hidden units that are left: rows of the first gate.
        units = kept.rows["ih"][: own["hr"][0].shape[-1]]
        led["hr"] = (_columns(dense["hr"][0], units), own["hr"][1])
    return led


def _fit_products(kind: str, data: _Data) -> Values:
    # The reset gate of a GRU multiplies the hidden product alone, so both products have targets of their own.
    fitted = dict(data.old)
    fitted |= _fit_one("ih", data) | _fit_one("hh", data) if kind == "gru" else _fit_sum(data)
    if "hr" in data.old:
        fitted |= _fit_one("hr", data)
    return fitted


def _fit_sum(data: _Data) -> dict[str, Tensor]:
    """Both products at once: nothing sees but their sum."""
    old = data.old
    inputs = [torch.cat(both, dim=-1) for both in zip(data.inputs("ih"), data.inputs("hh"), strict=True)]
    targets = [a + b for a, b in zip(data.targets("ih"), data.targets("hh"), strict=True)]
    constant = old["bias_ih"] + old["bias_hh"] if "bias_ih" in old else None
    weights, offset = _least_squares(inputs, targets, torch.cat([old["ih"], old["hh"]], dim=1), constant, data.name)
    width = old["ih"].shape[1]
    fitted = {"ih": weights[:, :width], "hh": weights[:, width:]}
    return fitted if offset is None else {**fitted, "bias_ih": offset - old["bias_hh"]}


def _fit_one(role: str, data: _Data) -> dict[str, Tensor]:
    bias = f"bias_{role}"
    weights, offset = _least_squares(
        data.inputs(role), data.targets(role), data.old[role], data.old.get(bias), data.name
    )
    return {role: weights} if offset is None else {role: weights, bias: offset}


def _least_squares(
    inputs: Sequence[Tensor], targets: Sequence[Tensor], old: Tensor, constant: Tensor | None, name: str
) -> tuple[Tensor, Tensor | None]:
    parts = None
    first = 0
    for x, y in zip(inputs, targets, strict=True):
        found = in_folds(x.unsqueeze(2), y.unsqueeze(2), first)
        parts = found if parts is None else [a + b for a, b in zip(parts, found, strict=True)]
        first += len(x)
    assert parts is not None
    if constant is None:
        parts = [part.without_constant() for part in parts]
        return solve(parts, old.unsqueeze(0), name, has_constant=False).weights[0], None
    solution = solve(parts, torch.cat([old, constant.unsqueeze(1)], dim=1).unsqueeze(0), name)
    return solution.weights[0, :, :-1], solution.weights[0, :, -1]
