"""Which integers each call of a traced program was given, and where they come from.

The integers that modules hold and those that tensors' shapes give are replaced, for the one run that is traced, by
integers that remember their source (`sources.py`).
"""

import contextlib
import functools
import operator
import weakref
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.fx.traceback
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from secateur.graph.sources import COMPARED, COMPUTED, INPUT, READ, STATE, Extent, Sized, Source, source_of

KEY = "secateur_call"


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
        token = COMPARED.set(None)
        try:
            with torch.fx.traceback.annotate({KEY: call}):
                result = func(*args, **kwargs)
        finally:
            COMPARED.reset(token)
        for place, leaf in enumerate(pytree.tree_leaves(result)):
            if isinstance(leaf, Tensor):
                self._made[id(leaf)] = (weakref.ref(leaf), call, place)
        return result

    def __enter__(self) -> "SizeRecorder":
        """Begin to note."""
        self._tokens = COMPUTED.set(self.computed), COMPARED.set(self.compared)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> None:
        """End it."""
        COMPUTED.reset(self._tokens[0])
        COMPARED.reset(self._tokens[1])
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
