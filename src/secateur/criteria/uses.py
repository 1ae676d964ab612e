"""What one run of a model does with its parameters, so that their gradients can be taken apart by sample.

A use is a product (`capture.calls.Call`) or a term: a bias, the gain of a norm, a table of embeddings, a
parameter that is added or multiplied elementwise. Each knows the edge of autograd's graph at which the
gradient of its outputs appears, and how to find the parameter's gradient for each sample from it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from secateur.capture.calls import Call, Place
from secateur.capture.forms import Form
from secateur.capture.watch import Places


@dataclass(frozen=True, eq=False)
class Product:
    """A weight that was used as a linear map.

    Attributes:
        place: of the weight.
        form: how it was used.
        inputs: what went in.
        outputs: edge of the gradient of what came out.
        reads: edge of the gradient of what went in, by this use alone; None where nobody asked.
    """

    place: Place
    form: Form
    inputs: Tensor
    outputs: GradientEdge
    reads: GradientEdge | None

    @property
    def leading(self) -> int:
        """Samples (or equally many parts of each) that can be told apart."""
        return self.form.samples(self.inputs)


Part = slice | None
"""Entries along the leading dimension; None for all of them."""


@dataclass(frozen=True, eq=False)
class Term:
    """A parameter that was used in another way.

    Attributes:
        place: of the parameter.
        leading: samples (or equally many parts of each) that can be told apart.
        outputs: edge of the gradient of what came out.
        gradients: gradient of the outputs, part of the leading dimension, number of samples in it -> gradient
            of the place for each of these samples, (samples, ...).
    """

    place: Place
    leading: int
    outputs: GradientEdge
    gradients: Callable[[Tensor, Part, int], Tensor]


def part_of(table: Tensor, part: Part) -> Tensor:
    """These entries along the first dimension."""
    return table if part is None else table[part]


def bias_term(call: Call, outputs: GradientEdge) -> Term | None:
    """The bias of a call; None without one that is a parameter."""
    if call.bias is None:
        return None
    form = call.form

    def gradients(g: Tensor, part: Part, samples: int) -> Tensor:
        rows = form.responses(part_of(g, part)).flatten(2)
        return rows.reshape(samples, -1, rows.shape[-1]).sum(1)

    return Term(call.bias, form.samples(call.inputs), outputs, gradients)


class Terms(TorchFunctionMode):
    """Meanwhile, record every use of a parameter that is a term, other than the biases of products."""

    def __init__(self, places: Places) -> None:
        super().__init__()
        self.places = places
        self.found: list[Term] = []
        # Rows of a table that are the same for all samples, as learned positions are, until they are added.
        self.rows: dict[int, tuple[Tensor, Term, Tensor]] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        reader = _READERS.get(func)
        outputs = func(*args, **named)
        if reader is not None and isinstance(outputs, Tensor) and outputs.requires_grad:
            edge = get_gradient_edge(outputs)
            for tensor, leading, gradients in reader(outputs, *args, **named) or ():
                place = self.places.find(tensor)
                if place is not None:
                    self.found.append(Term(place, leading, edge, gradients))
                    if func is functional.embedding and args:
                        self.rows[id(outputs)] = (outputs, self.found[-1], args[0])
            if reader is _add and not named:
                self._read_rows(outputs, edge, args)
        return outputs

    def _read_rows(self, outputs: Tensor, edge: GradientEdge, operands: Sequence[Any]) -> None:
        """Rows of a table that are added to every sample are read by every sample."""
        for operand in operands:
            rows, term, where = self.rows.get(id(operand), (None, None, None))
            if rows is None or term is None or where is None:
                continue
            shape = (1,) * (outputs.ndim - rows.ndim) + tuple(rows.shape)
            if shape[0] == 1 < len(outputs) and shape[1:] == outputs.shape[1:]:
                self.found = [other for other in self.found if other is not term]
                self.found.append(Term(term.place, len(outputs), edge, _for_every_sample(term, where)))


def _for_every_sample(term: Term, where: Tensor) -> Callable[[Tensor, Part, int], Tensor]:
    def gradients(g: Tensor, part: Part, samples: int) -> Tensor:
        mine = part_of(g, part)
        each = mine.reshape(samples, -1, *mine.shape[1:]).sum(1)
        return torch.cat([term.gradients(one.reshape(*where.shape, -1), None, 1) for one in each])

    return gradients


_Found = tuple[Any, int, Callable[[Tensor, Part, int], Tensor]]


def _channels(x: Tensor, hat: Callable[[Tensor], Tensor], weight: Any, bias: Any) -> list[_Found]:
    """Gain and bias of channels, which lie along dimension 1."""

    def total(values: Tensor, samples: int) -> Tensor:
        rows = values if values.ndim == 2 else values.flatten(2).sum(2)
        return rows.reshape(samples, -1, rows.shape[1]).sum(1)

    return [
        (weight, len(x), lambda g, part, n: total(part_of(g, part) * hat(part_of(x, part)), n)),
        (bias, len(x), lambda g, part, n: total(part_of(g, part), n)),
    ]


def _features(x: Tensor, shape: Sequence[int], hat: Callable[[Tensor], Tensor], weight: Any, bias: Any) -> list[_Found]:
    """Gain and bias of the last dimensions."""
    leading = len(x) if x.ndim > len(shape) else 1

    def total(values: Tensor, samples: int) -> Tensor:
        return values.reshape(samples, -1, *shape).sum(1)

    return [
        (weight, leading, lambda g, part, n: total(part_of(g, part) * hat(part_of(x, part)), n)),
        (bias, leading, lambda g, part, n: total(part_of(g, part), n)),
    ]


def _batch_norm(
    outputs: Tensor,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> list[_Found] | None:
    if training:
        return None
    x = input.detach()
    return _channels(x, lambda x: functional.batch_norm(x, running_mean, running_var, eps=eps), weight, bias)


def _group_norm(
    outputs: Tensor,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> list[_Found]:
    return _channels(input.detach(), lambda x: functional.group_norm(x, num_groups, eps=eps), weight, bias)


def _layer_norm(
    outputs: Tensor,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> list[_Found]:
    shape = list(normalized_shape)
    return _features(input.detach(), shape, lambda x: functional.layer_norm(x, shape, eps=eps), weight, bias)


def _rms_norm(
    outputs: Tensor,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> list[_Found]:
    shape = list(normalized_shape)
    return _features(input.detach(), shape, lambda x: functional.rms_norm(x, shape, eps=eps), weight, None)


def _embedding(
    outputs: Tensor,
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> list[_Found] | None:
    if max_norm is not None or scale_grad_by_freq or input.ndim == 0:
        return None
    words, width = weight.shape
    skipped = None if padding_idx is None else padding_idx % words

    def gradients(g: Tensor, part: Part, samples: int) -> Tensor:
        tokens = part_of(input, part).reshape(samples, -1)
        rows = part_of(g, part).reshape(-1, width)
        if skipped is not None:
            rows = rows * (tokens.reshape(-1, 1) != skipped)
        where = tokens + words * torch.arange(samples, device=tokens.device).unsqueeze(1)
        total = rows.new_zeros(samples * words, width).index_add_(0, where.flatten(), rows)
        return total.reshape(samples, words, width)

    return [(weight, len(input), gradients)]


def _spread(outputs: Tensor, parameter: Any, other: Tensor | None) -> list[_Found] | None:
    """A parameter that is added (`other` is None), or multiplied with `other`, by the rules of broadcasting."""
    if not isinstance(parameter, Tensor) or outputs.ndim == 0 or parameter.ndim > outputs.ndim:
        return None
    shape = (1,) * (outputs.ndim - parameter.ndim) + tuple(parameter.shape)
    if shape[0] != 1:
        return None
    summed = [d for d in range(1, len(shape)) if shape[d] == 1]
    leading = len(outputs)

    def gradients(g: Tensor, part: Part, samples: int) -> Tensor:
        values = part_of(g, part)
        if other is not None:
            is_leading = other.ndim == outputs.ndim and len(other) == leading
            values = values * (part_of(other, part) if is_leading else other)
        values = values.sum(summed, keepdim=True) if summed else values
        return values.reshape(samples, -1, *shape[1:]).sum(1).reshape(samples, *parameter.shape)

    return [(parameter, leading, gradients)]


def _add(outputs: Tensor, a: Any, b: Any = None, **named: Any) -> list[_Found] | None:
    if named or b is None:
        return None
    return [*(_spread(outputs, a, None) or ()), *(_spread(outputs, b, None) or ())]


def _multiply(outputs: Tensor, a: Any, b: Any = None, **named: Any) -> list[_Found] | None:
    if named or not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return None
    return [*(_spread(outputs, a, b.detach()) or ()), *(_spread(outputs, b, a.detach()) or ())]


def _expand(outputs: Tensor, parameter: Any, *sizes: Any, **named: Any) -> list[_Found] | None:
    return _spread(outputs, parameter, None)


_READERS: dict[Any, Callable[..., list[_Found] | None]] = {
    functional.batch_norm: _batch_norm,
    functional.group_norm: _group_norm,
    functional.layer_norm: _layer_norm,
    functional.rms_norm: _rms_norm,
    functional.embedding: _embedding,
    **dict.fromkeys((torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__), _add),
    **dict.fromkeys((torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__), _multiply),
    Tensor.expand: _expand,
}
