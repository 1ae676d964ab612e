"""Where the integers in the calls of operators come from.

A forward pass that reads `self.heads` and hands it to `view` will follow a cut once that attribute is
rewritten; one that says `view(-1, 12)` never will. To tell them apart, the integers that modules hold
and those that tensors' shapes give are replaced, for the one run that is traced, by integers that
remember their source and pass it on through arithmetic.
"""

import contextlib
import functools
import operator
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.fx.traceback
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

KEY = "secateur_call"
DEPTH = 2  # a configuration inside a configuration is as deep as attributes are looked for


@dataclass(frozen=True)
class Literal:
    """A number that the forward pass writes down itself."""

    value: int


@dataclass(frozen=True)
class Attribute:
    """`holder.name` of the module at `module`, or its element `index`.

    The name may lead through plain objects: `config.hidden_size`.
    """

    module: str
    name: str
    value: int
    index: int | None = None


@dataclass(frozen=True)
class Extent:
    """Dimension `dim` of the shape of a tensor; `call` and `place` say which, None if that is not known.

    The calls `INPUT` and `STATE` stand for what the model is given and for what it holds.
    """

    value: int
    dim: int
    call: int | None = None
    place: int = 0


@dataclass(frozen=True)
class Arithmetic:
    """Two sources and what is done with them."""

    symbol: str
    left: "Source"
    right: "Source"
    value: int


Source = Literal | Attribute | Extent | Arithmetic

INPUT, STATE = -1, -2

READ = Literal(-1 << 63)
"""Stands for a number that is the value of a tensor, as the largest batch of a packed sequence is."""

OPERATIONS: Mapping[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "//": operator.floordiv,
    "%": operator.mod,
}


def evaluate(source: Source, known: Callable[[Attribute | Extent], int | None]) -> int | None:
    """The value of `source` under `known`; None where it depends on something unknown.

    >>> half = Arithmetic("//", Extent(8, 1), Literal(2), 4)
    >>> evaluate(half, lambda leaf: 6)
    3
    """
    match source:
        case Literal(value):
            return value
        case Arithmetic(symbol, left, right):
            a, b = evaluate(left, known), evaluate(right, known)
            if a is None or b is None or (symbol in {"//", "%"} and b == 0):
                return None
            return OPERATIONS[symbol](a, b)
        case _:
            return known(source)


def source_leaves(source: Source) -> Iterator[Literal | Attribute | Extent]:
    """The sources that arithmetic was done with."""
    if isinstance(source, Arithmetic):
        yield from source_leaves(source.left)
        yield from source_leaves(source.right)
    else:
        yield source


def solve(
    source: Source, wanted: int, known: Callable[[Attribute | Extent], int | None]
) -> tuple[Attribute, int] | None:
    """The one unknown attribute in `source` and the value that makes `source` equal `wanted`.

    >>> heads, width = Attribute("", "heads", 4), Attribute("", "width", 24)
    >>> solve(Arithmetic("//", width, heads, 6), 6, {heads: 3}.get)
    (Attribute(module='', name='width', value=24, index=None), 18)
    """
    match source:
        case Attribute():
            return (source, wanted) if known(source) is None else None
        case Arithmetic(symbol, left, right):
            a, b = evaluate(left, known), evaluate(right, known)
            if b is not None and a is None:
                inverse = {"+": wanted - b, "-": wanted + b, "*": wanted // b if b else 0, "//": wanted * b}
                return solve(left, inverse[symbol], known) if symbol in inverse else None
            if a is not None and b is None:
                inverse = {"+": wanted - a, "-": a - wanted, "*": wanted // a if a else 0}
                return solve(right, inverse[symbol], known) if symbol in inverse else None
    return None


class Sized(int):
    """An integer that remembers its source; arithmetic with integers passes it on."""

    source: Source

    def __new__(cls, source: Source) -> "Sized":
        """The integer that `source` gives now."""
        made = super().__new__(cls, source.value)
        made.source = source
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> "Sized":
        return self

    def __reduce__(self) -> tuple[type[int], tuple[int]]:
        return int, (int(self),)


def source_of(value: int) -> Source:
    """Where an integer comes from; a plain one was written down."""
    return value.source if isinstance(value, Sized) else Literal(int(value))


_computed: ContextVar[list[Source] | None] = ContextVar("_computed", default=None)
_compared: ContextVar[list[tuple[Source, Source]] | None] = ContextVar("_compared", default=None)


def _leaving(name: str) -> Callable[..., Any]:
    """An operation whose result is a real number: it carries no source, so what goes in is noted."""
    plain = getattr(int, name)

    def method(self: Sized, *others: Any) -> Any:
        noted = _computed.get()
        if noted is not None:
            noted.append(self.source)
        return plain(int(self), *others)

    return method


for _name in ("float", "truediv", "rtruediv", "pow", "rpow"):
    setattr(Sized, f"__{_name}__", _leaving(f"__{_name}__"))


def _arithmetic(name: str, symbol: str, *, swapped: bool) -> Callable[[Sized, Any], Any]:
    plain = getattr(int, name)

    def method(self: Sized, other: Any) -> Any:
        result = plain(self, other)
        if type(result) is not int or isinstance(other, bool):
            return result
        left, right = (source_of(other), self.source) if swapped else (self.source, source_of(other))
        return Sized(Arithmetic(symbol, left, right, result))

    return method


for _symbol, _name in {"+": "add", "-": "sub", "*": "mul", "//": "floordiv", "%": "mod"}.items():
    setattr(Sized, f"__{_name}__", _arithmetic(f"__{_name}__", _symbol, swapped=False))
    setattr(Sized, f"__r{_name}__", _arithmetic(f"__r{_name}__", _symbol, swapped=True))


def _comparing(name: str) -> Callable[[Sized, Any], Any]:
    """A comparison: where it finds two sizes equal, the forward pass may count on that."""
    plain = getattr(int, name)

    def method(self: Sized, other: Any) -> Any:
        noted = _compared.get()
        if noted is not None and type(other) in (int, Sized) and int(self) == int(other):
            noted.append((self.source, source_of(other)))
        return plain(self, other)

    return method


for _name in ("eq", "ne"):
    setattr(Sized, f"__{_name}__", _comparing(f"__{_name}__"))
Sized.__hash__ = int.__hash__  # type: ignore[method-assign]


class SizeRecorder(TorchFunctionMode):
    """Hands out shapes that remember their tensors, and notes the integers of every call.

    While a program is traced under it, each node's meta data say which call made the node.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Source, ...]] = []
        self.computed: list[Source] = []
        self.compared: list[tuple[Source, Source]] = []
        self._made: dict[int, tuple[weakref.ref[Tensor], int, int]] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run `func`, tagging what it says of shapes and noting which integers it was given."""
        kwargs = dict(kwargs or {})
        if func in SHAPES:
            return self._tagged_shape(args[0], func(*args, **kwargs), args[1:] or tuple(kwargs.values()))
        if func in COUNTS:
            return self._tagged_count(args[0], func(*args, **kwargs))
        if func in UNTRACED:
            return func(*args, **kwargs)
        call = len(self.calls)
        self.calls.append(tuple(_sources((args, kwargs))))
        # What torch compares inside is its own affair.
        token = _compared.set(None)
        try:
            with torch.fx.traceback.annotate({KEY: call}):
                result = func(*args, **kwargs)
        finally:
            _compared.reset(token)
        for place, leaf in enumerate(pytree.tree_leaves(result)):
            if isinstance(leaf, Tensor):
                self._made[id(leaf)] = (weakref.ref(leaf), call, place)
        return result

    def __enter__(self) -> "SizeRecorder":
        """Begin to note."""
        self._tokens = _computed.set(self.computed), _compared.set(self.compared)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> None:
        """End it."""
        _computed.reset(self._tokens[0])
        _compared.reset(self._tokens[1])
        super().__exit__(*exception)  # type: ignore[no-untyped-call]

    def forget(self) -> None:
        """What was noted so far was of an attempt that failed: it says nothing of the program."""
        self.calls[:] = [()] * len(self.calls)
        self.computed.clear()
        self._made.clear()

    def note_inputs(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Know the tensors that the model is given and holds: a forward pre-hook of the whole model."""
        state = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
        given = pytree.tree_leaves((args, kwargs))
        for call, tensors in ((STATE, [tensor for _, tensor in state]), (INPUT, given)):
            for place, tensor in enumerate(tensors):
                if isinstance(tensor, Tensor):
                    self._made[id(tensor)] = (weakref.ref(tensor), call, place)

    def _tagged_count(self, tensor: Tensor, result: Any) -> Any:
        """The number of elements: the product of the extents."""
        if type(result) is not int or not tensor.ndim:
            return result
        return functools.reduce(operator.mul, self._tagged_shape(tensor, tensor.shape, ()))

    def _tagged_shape(self, tensor: Tensor, result: Any, dim: tuple[Any, ...]) -> Any:
        reference, call, place = self._made.get(id(tensor), (None, None, 0))
        if reference is None or reference() is not tensor:
            call = None
        if isinstance(result, torch.Size):
            return torch.Size([Sized(Extent(n, k, call, place)) if type(n) is int else n for k, n in enumerate(result)])
        return Sized(Extent(result, dim[0] % tensor.ndim, call, place)) if type(result) is int else result


SHAPES = frozenset(
    {torch.Tensor.shape.__get__, torch.Tensor.size, torch.ops.aten.sym_size.int}  # type: ignore[attr-defined]
)
COUNTS = frozenset({torch.Tensor.numel, torch.Tensor.nelement, torch.numel})
# Export asks these of every tensor, many times over; they make no node, and no size comes of them.
UNTRACED = frozenset(
    {
        *(getattr(torch.Tensor, name) for name in ("dim", "stride", "is_contiguous", "storage_offset")),
        *(getattr(torch.Tensor, name) for name in ("is_inference", "is_conj", "is_neg", "_is_view", "untyped_storage")),
        *(getattr(torch.Tensor, name).__get__ for name in ("layout", "device", "dtype", "requires_grad", "is_leaf")),
        *(
            getattr(torch.Tensor, name).__get__
            for name in ("is_sparse", "is_quantized", "is_nested", "is_mkldnn", "ndim")
        ),
        torch.Tensor.__len__,
    }
)


def _sources(value: Any) -> Iterator[Source]:
    """Sources of every integer in nested arguments, slices included, in order; a tensor can stand for one."""
    match value:
        case bool() | None:
            return
        case int():
            yield source_of(value)
        case Tensor() if value.ndim == 0:
            yield READ
        case slice():
            yield from _sources((value.start, value.stop, value.step))
        case tuple() | list():
            for item in value:
                yield from _sources(item)
        case dict():
            yield from _sources(tuple(value.values()))


@contextlib.contextmanager
def tagged_attributes(model: nn.Module) -> Iterator[None]:
    """Let every integer that a module holds remember where it is held; undone at the end.

    Integers, tuples and lists of them, and those in plain objects such as configurations.
    """
    seen: set[int] = set()
    try:
        for path, module in model.named_modules():
            _tag(path, "", vars(module), seen, DEPTH)
        yield
    finally:
        seen.clear()
        for module in model.modules():
            _untag(vars(module), seen, DEPTH)


def held_sizes(model: nn.Module) -> dict[tuple[str, str], int | tuple[int, ...]]:
    """Every integer, and every tuple or list of integers, that a module or its settings hold.

    The keys are (path of the module, path of the attribute in it).

    >>> held_sizes(nn.Dropout()), held_sizes(nn.Linear(3, 2))
    ({}, {('', 'in_features'): 3, ('', 'out_features'): 2})
    """
    seen: set[int] = set()
    return {
        (path, name): value
        for path, module in model.named_modules()
        for name, value in _held("", vars(module), seen, DEPTH)
    }


def _held(
    prefix: str, held: Mapping[str, Any], seen: set[int], depth: int
) -> Iterator[tuple[str, int | tuple[int, ...]]]:
    for name, value in held.items():
        if name.startswith("__"):
            continue
        if type(value) is int:
            yield prefix + name, value
        elif type(value) in (tuple, list) and value and all(type(v) is int for v in value):
            yield prefix + name, tuple(value)
        elif depth and _is_plain(value) and id(value) not in seen:
            seen.add(id(value))
            yield from _held(f"{prefix}{name}.", vars(value), seen, depth - 1)


def _tag(path: str, prefix: str, held: dict[str, Any], seen: set[int], depth: int) -> None:
    for name, value in list(held.items()):
        full = f"{prefix}{name}"
        if name.startswith("__"):
            continue
        if type(value) is int:
            held[name] = Sized(Attribute(path, full, value))
        elif type(value) in (tuple, list) and value and all(type(v) is int for v in value):
            held[name] = type(value)(Sized(Attribute(path, full, v, k)) for k, v in enumerate(value))
        elif depth and _is_plain(value) and id(value) not in seen:
            seen.add(id(value))
            _tag(path, f"{full}.", vars(value), seen, depth - 1)


def _untag(held: dict[str, Any], seen: set[int], depth: int) -> None:
    for name, value in list(held.items()):
        if isinstance(value, Sized):
            held[name] = int(value)
        elif type(value) in (tuple, list) and any(isinstance(v, Sized) for v in value):
            held[name] = type(value)(int(v) if isinstance(v, Sized) else v for v in value)
        elif isinstance(value, torch.Size):
            held[name] = torch.Size([int(n) for n in value])
        elif depth and _is_plain(value) and id(value) not in seen:
            seen.add(id(value))
            _untag(vars(value), seen, depth - 1)


def _is_plain(value: Any) -> bool:
    """An object of the user's that holds settings, not a module, a tensor, a function or a class."""
    is_other = isinstance(value, nn.Module | Tensor | type) or callable(value)
    return hasattr(value, "__dict__") and isinstance(vars(value), dict) and not is_other


@dataclass(frozen=True)
class Sizes:
    """The integers of every node of a program.

    Attributes:
        of_node: node -> sources of the integers in the call that made it, in order.
        makers: (call, place) -> node whose result it is.
        calls: sources of the integers in every call, whether or not it made a node.
        nodes: call -> the nodes it made.
        computed: integers that became real numbers, such as `x.shape[-1] ** -0.5`.
        compared: pairs that the forward pass compared and found equal, as in `assert x.shape[1] == self.width`.
    """

    of_node: Mapping[fx.Node, tuple[Source, ...]] = field(default_factory=dict)
    makers: Mapping[tuple[int, int], fx.Node] = field(default_factory=dict)
    calls: Sequence[tuple[Source, ...]] = ()
    nodes: Mapping[int, Sequence[fx.Node]] = field(default_factory=dict)
    computed: Sequence[Source] = ()
    compared: Sequence[tuple[Source, Source]] = ()

    def source(self, node: fx.Node, values: Sequence[int], index: int) -> Source | None:
        """The source of `values[index]` in the call of `node`; None if there is no such record.

        Args:
            node: a node of the program.
            values: integers that follow one another in the call, such as the sizes of a view.
            index: which of them.
        """
        sources = self.of_node.get(node, ())
        for wild in ((), (READ,)):
            for start in range(len(sources) - len(values) + 1):
                found = sources[start : start + len(values)]
                if all(s in wild or s.value == value for s, value in zip(found, values, strict=True)):
                    return None if found[index] in wild else found[index]
        return next((s for s in sources if s.value == values[index]), None)


@contextlib.contextmanager
def seen_through() -> Iterator[None]:
    """Let a function mode see the operators within torch's own Python functions, not these as a whole.

    `multi_head_attention_forward` asks whether someone watches, and if so hands itself over.
    """
    module = torch.nn.functional
    asking = {name: held for name, held in vars(module).items() if name.startswith("has_torch_function")}
    try:
        for name in asking:
            setattr(module, name, _nobody_watches)
        yield
    finally:
        for name, held in asking.items():
            setattr(module, name, held)


def _nobody_watches(*_: Any) -> bool:
    return False


def read_sizes(
    graph: fx.Graph, recorder: SizeRecorder, inputs: Sequence[fx.Node | None], state: Sequence[fx.Node | None]
) -> Sizes:
    """Match the nodes of a traced graph with the calls that were noted while it was traced.

    Args:
        graph: the traced graph.
        recorder: what was active meanwhile.
        inputs: the placeholder of each leaf of the model's arguments.
        state: the placeholder of each of its parameters, then of each of its buffers.
    """
    of_node: dict[fx.Node, tuple[Source, ...]] = {}
    makers = {
        (call, place): node
        for call, nodes in ((INPUT, inputs), (STATE, state))
        for place, node in enumerate(nodes)
        if node is not None
    }
    nodes: dict[int, list[fx.Node]] = defaultdict(list)
    for node in graph.nodes:
        call = (node.meta.get("custom") or {}).get(KEY)
        if call is None:
            continue
        of_node[node] = recorder.calls[call]
        nodes[call].append(node)
        is_item = node.target is operator.getitem
        makers[call, node.args[1] if is_item else 0] = node
        node.args, node.kwargs = pytree.tree_map(_plain, (node.args, node.kwargs))
    return Sizes(of_node, makers, recorder.calls, nodes, recorder.computed, list(dict.fromkeys(recorder.compared)))


def _plain(value: Any) -> Any:
    return int(value) if isinstance(value, Sized) else value
