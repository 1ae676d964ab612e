"""Hand every use of a weight as a linear map to a visitor, while the model runs as it always does."""

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from secateur.capture.calls import Call, Place, Visit
from secateur.capture.forms import Bank, Convolution, Dense, Form, TransposedConvolution
from secateur.capture.recurrent import Kind, Layer, State, Weights, run_stack, step
from secateur.graph.attention import released, unfused
from secateur.graph.trace import named_state

Normalise = Callable[..., Tensor]
Recur = Callable[[Layer], tuple[Tensor, State]]


@contextlib.contextmanager
def watching(
    model: nn.Module, visit: Visit, *, normalise: Normalise | None = None, recur: Recur | None = None
) -> Iterator[None]:
    """Meanwhile, let `visit` make every product of an activation with a weight of `model`.

    Seen are linear layers, convolutions, recurrent networks (step by step), attention's projections, and
    the matrix products of tensors, however they are called, if the weight is a parameter, its transpose, or
    some of its rows. What is computed with a weight in any other way runs unseen.

    Args:
        model: nothing of it is changed.
        visit: gives what the operator gives; `call.run()` does it.
        normalise: in place of `torch.nn.functional.batch_norm`.
        recur: runs the layers of recurrent networks; None: step by step, `visit` making the products.

    >>> model, seen = nn.Linear(3, 2), []
    >>> def visit(call):
    ...     seen.append((call.weight, tuple(call.inputs.shape)))
    ...     return call.run()
    >>> with watching(model, visit):
    ...     y = model(torch.zeros(1, 3))
    >>> seen
    [(Place(name='weight', start=0, stop=2), (1, 3))]
    """
    with headwise(model), Watcher(Places(model), visit, normalise, recur):
        yield


@contextlib.contextmanager
def headwise(model: nn.Module) -> Iterator[None]:
    """Let all attention of `model` compute with operators that can be seen, meanwhile."""
    with released(model), unfused():
        yield


class Places:
    """Finds the parameter, and the rows of it, that a tensor is."""

    def __init__(self, model: nn.Module) -> None:
        # By the storage's own identity: where its memory lies may change (`capture/parking.py`).
        self.held: dict[int, list[tuple[str, Tensor]]] = defaultdict(list)
        for name, tensor in named_state(model).items():
            if not tensor.is_meta and tensor.numel():
                self.held[tensor.untyped_storage()._cdata].append((name, tensor))

    def find(self, tensor: Any) -> Place | None:
        """The place of a parameter, or of a slice of it along dimension 0."""
        if not isinstance(tensor, Tensor) or tensor.is_meta or not tensor.numel():
            return None
        for name, whole in self.held.get(tensor.untyped_storage()._cdata, ()):
            is_alike = tensor.ndim == whole.ndim and tensor.shape[1:] == whole.shape[1:]
            if is_alike and tensor.stride() == whole.stride() and tensor.dtype == whole.dtype:
                start, rest = divmod(int(tensor.storage_offset() - whole.storage_offset()), max(whole.stride(0), 1))
                if rest == 0 and start >= 0 and start + len(tensor) <= len(whole):
                    return Place(name, start, start + len(tensor))
        return None


class Watcher(TorchFunctionMode):
    """The mode behind `watching`; one for each thread."""

    def __init__(
        self, places: Places, visit: Visit, normalise: Normalise | None = None, recur: Recur | None = None
    ) -> None:
        super().__init__()
        self.places = places
        self.visit = visit
        self.normalise = normalise
        self.recur = recur or self.step_by_step

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        if func is functional.batch_norm and self.normalise is not None:
            return self.normalise(*args, **named)
        if func is torch.ops.aten.batch_norm.default and self.normalise is not None and not named:
            inputs, weight, bias, mean, variance, *rest = args
            return self.normalise(inputs, mean, variance, weight, bias, *rest[:3])
        reader = _READERS.get(func)
        result = NotImplemented if reader is None else reader(self, *args, **named)
        return func(*args, **named) if result is NotImplemented else result

    def linear(self, inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """A dense product; made unseen where the weight is no parameter."""
        return self.seen(inputs, weight, bias, Dense(), lambda x: functional.linear(x, weight, bias))

    def step_by_step(self, layer: Layer) -> tuple[Tensor, State]:
        """Run a recurrent layer, its products made by the visitor."""
        return layer.run(self.linear)

    def seen(
        self, inputs: Tensor, weight: Tensor, bias: Tensor | None, form: Form, run: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Let the visitor make the product, if the weight has a place."""
        values, found = weight, self.places.find(weight)
        if found is None and isinstance(form, Dense) and isinstance(weight, Tensor) and weight.ndim == 2:
            # A transposed view of a parameter: what (rows, columns) was is (columns, rows).
            values, found = weight.T, self.places.find(weight.T)
            form = Dense(not form.transposed)
        if found is None or (isinstance(form, Dense) and values.ndim != 2):
            return run(inputs)

        def again(inputs: Tensor = inputs) -> Tensor:
            return run(inputs)

        offset = None if bias is None else bias.detach()
        return self.visit(Call(found, self.places.find(bias), inputs, values, offset, form, again))


def _linear(mode: Watcher, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return mode.linear(input, weight, bias)


def _matmul(mode: Watcher, a: Any, b: Any, **kwargs: Any) -> Any:
    other = kwargs.pop("other", b)
    if kwargs or not isinstance(a, Tensor) or not isinstance(other, Tensor):
        return NotImplemented
    if other.ndim == 2:
        return mode.seen(a, other, None, Dense(transposed=True), lambda x: torch.matmul(x, other))
    if other.ndim == 3 and a.ndim == 3:
        return mode.seen(a, other, None, Bank(), lambda x: torch.matmul(x, other))
    return NotImplemented


def _matmul_named(mode: Watcher, *args: Any, **kwargs: Any) -> Any:
    operands = [*args, *(kwargs[k] for k in ("input", "self", "other", "mat2", "tensor2") if k in kwargs)]
    is_plain = len(operands) == 2 and len(args) + len(kwargs) == 2
    return _matmul(mode, *operands) if is_plain else NotImplemented


def _addmm(mode: Watcher, bias: Tensor, a: Tensor, b: Tensor, **kwargs: Any) -> Any:
    if kwargs or bias.ndim != 1:
        return NotImplemented
    return mode.seen(a, b, bias, Dense(transposed=True), lambda x: torch.addmm(bias, x, b))


def _convolution(rank: int) -> Callable[..., Any]:
    def read(
        mode: Watcher,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: int | Sequence[int] = 1,
        padding: str | int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
    ) -> Any:
        kernel, space = tuple(weight.shape[2:]), _each(dilation, rank)
        if padding == "same":
            total = [d * (k - 1) for d, k in zip(space, kernel, strict=True)]
            before, after = tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)
        else:
            before = after = (0,) * rank if padding == "valid" else _each(padding, rank)
        form = Convolution(kernel, _each(stride, rank), before, after, space, groups)
        run = (torch.conv1d, torch.conv2d, torch.conv3d)[rank - 1]
        return mode.seen(input, weight, bias, form, lambda x: run(x, weight, bias, stride, padding, dilation, groups))

    return read


def _transposed_convolution(rank: int) -> Callable[..., Any]:
    def read(
        mode: Watcher,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        output_padding: int | Sequence[int] = 0,
        groups: int = 1,
        dilation: int | Sequence[int] = 1,
    ) -> Any:
        kernel, space = tuple(weight.shape[2:]), _each(dilation, rank)
        given = zip(kernel, space, _each(padding, rank), strict=True)
        before = tuple(d * (k - 1) - p for k, d, p in given)
        after = tuple(b + o for b, o in zip(before, _each(output_padding, rank), strict=True))
        form = TransposedConvolution(kernel, _each(stride, rank), before, after, space, groups)
        run = (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)[rank - 1]
        rest = (stride, padding, output_padding, groups, dilation)
        return mode.seen(input, weight, bias, form, lambda x: run(x, weight, bias, *rest))

    return read


def _each(value: Any, rank: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, Sequence) else (value,)
    return tuple(int(v) for v in (values * rank if len(values) == 1 else values))


def _stack(kind: Kind) -> Callable[..., Any]:
    def read(mode: Watcher, inputs: Tensor, *args: Any) -> Any:
        is_packed = isinstance(args[2], tuple | list)
        sizes = [int(n) for n in args[0]] if is_packed else None
        given, flat, has_bias, count, dropout, training, is_bidirectional = args[1:8] if is_packed else args[:7]
        is_batch_first = not is_packed and args[7]
        states = tuple(given) if kind == "lstm" else (given,)
        directions = 2 if is_bidirectional else 1
        each = len(flat) // (count * directions)
        layers = [_weights(flat[k : k + each], has_bias) for k in range(0, len(flat), each)]
        if all(mode.places.find(layer.ih) is None for layer in layers):
            return NotImplemented
        outputs, last = run_stack(
            kind,
            inputs.transpose(0, 1) if is_batch_first else inputs,
            sizes,
            states,
            layers,
            mode.recur,
            directions=directions,
            dropout=dropout if training else 0.0,
        )
        return (outputs.transpose(0, 1) if is_batch_first else outputs, *last)

    def read_any(mode: Watcher, *args: Any, **kwargs: Any) -> Any:
        return NotImplemented if kwargs else read(mode, *args)

    return read_any


def _weights(flat: Sequence[Tensor], has_bias: bool) -> Weights:
    rest = list(flat[2:])
    bias_ih, bias_hh = (rest.pop(0), rest.pop(0)) if has_bias else (None, None)
    return Weights(flat[0], flat[1], bias_ih, bias_hh, rest[0] if rest else None)


def _cell(kind: Kind) -> Callable[..., Any]:
    def read(
        mode: Watcher,
        inputs: Tensor,
        state: Any,
        ih: Tensor,
        hh: Tensor,
        bias_ih: Tensor | None = None,
        bias_hh: Tensor | None = None,
    ) -> Any:
        before = tuple(state) if kind == "lstm" else (state,)
        from_inputs = mode.linear(inputs, ih, bias_ih)
        after = step(kind, from_inputs, before, Weights(ih, hh, bias_ih, bias_hh), mode.linear)
        return after if kind == "lstm" else after[0]

    return read


_VF = torch._VF
_ATEN = torch.ops.aten

_READERS: dict[Any, Callable[..., Any]] = {
    functional.linear: _linear,
    torch.conv1d: _convolution(1),
    torch.conv2d: _convolution(2),
    torch.conv3d: _convolution(3),
    torch.conv_transpose1d: _transposed_convolution(1),
    torch.conv_transpose2d: _transposed_convolution(2),
    torch.conv_transpose3d: _transposed_convolution(3),
    torch.addmm: _addmm,
    Tensor.addmm: _addmm,
    **dict.fromkeys(
        (torch.matmul, torch.mm, torch.bmm, Tensor.matmul, Tensor.mm, Tensor.bmm, Tensor.__matmul__), _matmul_named
    ),
    _VF.lstm: _stack("lstm"),
    _VF.gru: _stack("gru"),
    _VF.rnn_tanh: _stack("rnn_tanh"),
    _VF.rnn_relu: _stack("rnn_relu"),
    _VF.lstm_cell: _cell("lstm"),
    _VF.gru_cell: _cell("gru"),
    _VF.rnn_tanh_cell: _cell("rnn_tanh"),
    _VF.rnn_relu_cell: _cell("rnn_relu"),
    # What the graphs of exported programs call.
    _ATEN.linear.default: _linear,
    _ATEN.conv1d.default: _convolution(1),
    _ATEN.conv2d.default: _convolution(2),
    _ATEN.conv3d.default: _convolution(3),
    _ATEN.conv1d.padding: _convolution(1),
    _ATEN.conv2d.padding: _convolution(2),
    _ATEN.conv3d.padding: _convolution(3),
    _ATEN.conv_transpose1d.default: _transposed_convolution(1),
    _ATEN.conv_transpose2d.input: _transposed_convolution(2),
    _ATEN.conv_transpose3d.input: _transposed_convolution(3),
    _ATEN.addmm.default: _addmm,
    **dict.fromkeys((_ATEN.matmul.default, _ATEN.mm.default, _ATEN.bmm.default), _matmul_named),
    **dict.fromkeys((_ATEN.lstm.input, _ATEN.lstm.data), _stack("lstm")),
    **dict.fromkeys((_ATEN.gru.input, _ATEN.gru.data), _stack("gru")),
    **dict.fromkeys((_ATEN.rnn_tanh.input, _ATEN.rnn_tanh.data), _stack("rnn_tanh")),
    **dict.fromkeys((_ATEN.rnn_relu.input, _ATEN.rnn_relu.data), _stack("rnn_relu")),
}
