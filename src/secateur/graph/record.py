"""From one eager run to a program: for models whose control flow `torch.export` cannot capture.

Every operator that the forward pass calls is noted as it runs, at the same level as `torch.export`
notes it (before autograd, so `linear`, `lstm` and `scaled_dot_product_attention` stay whole). Branches,
loops over experts and `.item()` simply happen: the program is the path that the example inputs took.

What a tensor is to the recorder is a place in memory: a storage, and the offset, sizes and strides in
it. Two tensor objects at one place hold one value. No tensor is kept alive; a weak reference keeps
only the *address* of a storage from being given to another one.

Nothing may be silently wrong, so what cannot be followed is fixed, never guessed:

- An operator that writes (`relu_`, `copy_`, `out=`) gives the value at its place from then on. Any *other*
  view of that memory is no longer what its operator made it: its next use goes through `view_after_write`,
  which has no rule and so fixes the view and all that was written.
- A tensor that no operator was seen to make becomes a placeholder, and so fixed. If it lies in known memory
  (`tensor.data`), it is the value there, or an `as_strided` of it, which has no rule either.
- Values that Python reads (`.tolist()`, `.numpy()`, `torch.equal`) may steer it: `read_by_python` has no rule.
- Inside `torch.func` transforms (`vmap`, `grad`) shapes are not those of memory: all that goes in is read by
  Python, all that comes out is made by it.
"""

import contextlib
import copy
import operator
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.fx.traceback
from torch import Tensor, fx, nn
from torch._dispatch.python import enable_python_dispatcher, no_python_dispatcher
from torch._ops import OpOverload
from torch._subclasses.schema_check_mode import SchemaCheckMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from secateur.errors import TraceError
from secateur.graph.attention import unfused
from secateur.graph.trace import canonical_names, in_eval_mode, kept_buffers, named_state

Place = tuple[Any, ...]

# Operators that give no tensor but look at shapes and types only.
LOOKS_AT_NO_VALUE = frozenset({"aten::result_type", "aten::is_same_size", "aten::is_pinned"})


@dataclass(frozen=True, eq=False)
class Recording:
    """The operators of a forward pass.

    Attributes:
        graph: placeholders (state, then the caller's tensors), operators in the order in which they ran, output.
        user_inputs: placeholders that are the caller's, in order.
        names: placeholder -> canonical name of the parameter or buffer.
        held: what else the graph refers to, where that is kept.
        out_spec: how the leaves of the output are put together, where that is known.
    """

    graph: fx.Graph
    user_inputs: tuple[str, ...]
    names: Mapping[str, str]
    held: Mapping[str, Any] = field(default_factory=dict)
    out_spec: pytree.TreeSpec | None = None


def record(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None) -> Recording:
    """Run `model` once in eval mode, without gradients, and note what it does.

    Model and inputs stay as they are: the run gets copies of the inputs, and buffers and attributes that
    the forward pass changes are put back.

    Args:
        model: any module that runs on the inputs.
        args: example inputs.
        kwargs: example inputs by keyword.

    Raises:
        TraceError: the forward pass uses tensors without strided memory, or gives none.

    >>> class Routed(nn.Module):
    ...     def forward(self, x: Tensor) -> Tensor:
    ...         return x.relu() if x.sum() > 0 else x.tanh()
    >>> [str(node.target) for node in record(Routed(), (torch.ones(2),)).graph.nodes]
    ['input_0', 'aten.sum.default', 'aten.gt.Scalar', 'aten.relu.default', 'output']
    """
    inputs = _copied((args, dict(kwargs or {})))
    recorder = _Recorder()
    state, names = named_state(model), canonical_names(model)
    placeholders = {
        recorder.add_state(f"{'p' if isinstance(state[name], nn.Parameter) else 'b'}_{name}", state[name]): name
        for name in dict.fromkeys(names.values())
    }
    leaves = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)]
    user_inputs = tuple(recorder.add_input(f"input_{number}", leaf) for number, leaf in enumerate(leaves))
    with _as_it_was(model), in_eval_mode(model), _noting_modules(model, recorder), torch.no_grad():
        with unfused(), enable_python_dispatcher(), _Mode(recorder):
            result = model(*inputs[0], **inputs[1])
        given = list(_tensors_within(result, set()))
        if not given:
            raise TraceError(f"{type(model).__name__} gives a {type(result).__name__} that holds no tensor")
        recorder.graph.output(tuple(recorder.node_of(tensor) for tensor in given))
    return Recording(recorder.graph, user_inputs, placeholders)


def view_after_write(view: Tensor, *written: Tensor) -> Tensor:
    """What `view` holds after its memory was written through other views: an operator of recorded programs.

    >>> view_after_write(torch.ones(1), torch.zeros(1))
    tensor([1.])
    """
    return view


@torch.fx.node.has_side_effect
def read_by_python(tensor: Tensor) -> Tensor:
    """Mark that Python saw the values of `tensor`: an operator of recorded programs.

    >>> read_by_python(torch.ones(1))
    tensor([1.])
    """
    return tensor


@dataclass
class _Value:
    """The node that gives what is at a place, and how many writes to the memory it accounts for."""

    node: fx.Node
    writes: int


@dataclass
class _Memory:
    """A storage that the recorder has seen.

    Attributes:
        reference: keeps the address from being given to another storage.
        first: a node whose value lies in this memory.
        writes: nodes that wrote to it, in order.
        values: what is at each place.
    """

    reference: StorageWeakRef
    first: fx.Node
    writes: list[fx.Node] = field(default_factory=list)
    values: dict[Place | int, _Value] = field(default_factory=dict)


@dataclass
class _Recorder:
    """The graph as far as the run has come, and where in memory each value of it is."""

    graph: fx.Graph = field(default_factory=fx.Graph)
    memories: dict[int, _Memory] = field(default_factory=dict)
    modules: dict[str, tuple[str, str]] = field(default_factory=dict)
    state: dict[int, Tensor] = field(default_factory=dict)
    last_placeholder: fx.Node | None = None

    def add_state(self, name: str, tensor: Tensor) -> str:
        """Give a parameter or buffer a placeholder; the result is its target."""
        node = self._placeholder(name, tensor)
        # Parameters can share memory without being tied (flattened weights): state goes by identity.
        self.put(tensor, node)
        self.state[id(tensor)] = tensor
        self.put(tensor, node)
        return str(node.target)

    def add_input(self, name: str, tensor: Tensor) -> str:
        """Give a tensor of the caller a placeholder; the result is its target."""
        node = self._placeholder(name, tensor)
        self.put(tensor, node)
        return str(node.target)

    def node_of(self, tensor: Tensor) -> fx.Node:
        """The node that gives what `tensor` holds now."""
        memory = self.memories.get(_address(tensor))
        if memory is None:
            node = self._placeholder("constant", tensor)
            self.put(tensor, node)
            return node
        value = memory.values.get(self._key(tensor)) or _Value(self._hidden_view(memory.first, tensor), 0)
        if value.writes == len(memory.writes):
            return value.node
        node = self.call(view_after_write, (value.node, *memory.writes[value.writes :]), {}, tensor)
        self.put(tensor, node)
        return node

    def put(self, tensor: Tensor, node: fx.Node) -> None:
        """Note that `node` gave `tensor`."""
        reference = StorageWeakRef(_storage(tensor))  # type: ignore[no-untyped-call]
        memory = self.memories.setdefault(reference.cdata, _Memory(reference, node))
        memory.values[self._key(tensor)] = _Value(node, len(memory.writes))

    def write(self, tensor: Tensor, node: fx.Node) -> None:
        """Note that `node` wrote `tensor`, through this view of its memory."""
        self.put(tensor, node)
        self.memories[_address(tensor)].writes.append(node)
        self.put(tensor, node)

    def call(self, target: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], value: Any) -> fx.Node:
        """Append the call of an operator that gave `value`."""
        name = getattr(target, "overloadpacket", target).__name__
        node = self.graph.create_node("call_function", target, args, kwargs, name)
        node.meta["val"] = pytree.tree_map_only(Tensor, _outline, value)
        node.meta["nn_module_stack"] = dict(self.modules)
        if custom := torch.fx.traceback.current_meta.get("custom"):
            node.meta["custom"] = dict(custom)
        return node

    def run(self, op: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operator and append its call."""
        leaves = pytree.tree_leaves((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if torch._C._functorch.maybe_current_level() is not None:
            self._read([_unwrapped(tensor) for tensor in tensors])
            return op(*args, **kwargs)
        if any(isinstance(leaf, torch.UntypedStorage | torch.TypedStorage) for leaf in leaves):
            # The tensor is moved to that memory, where it is found when it is next used.
            return op(*args, **kwargs)
        operands, named = pytree.tree_map_only(Tensor, self.node_of, (args, kwargs))
        written = _written(op, args, kwargs)
        result = op(*args, **kwargs)
        given = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
        if not given and not written:
            if op._schema.name not in LOOKS_AT_NO_VALUE:
                self._read(tensors)
            return result
        self._bind(self.call(op, operands, named, result), result, written)
        for tensor in written:
            if not any(tensor is leaf for leaf in given):
                inputs = [leaf for leaf in pytree.tree_leaves((operands, named)) if isinstance(leaf, fx.Node)]
                self.write(tensor, self.call(view_after_write, (self.node_of(tensor), *inputs), {}, tensor))
        return result

    def _bind(self, node: fx.Node, result: Any, written: list[Tensor]) -> None:
        if isinstance(result, Tensor):
            is_write = any(result is tensor for tensor in written)
            (self.write if is_write else self.put)(result, node)
        elif isinstance(result, tuple | list):
            for number, part in enumerate(result):
                if isinstance(part, Tensor | tuple | list):
                    self._bind(self.call(operator.getitem, (node, number), {}, part), part, written)

    def _read(self, tensors: list[Tensor]) -> None:
        for tensor in tensors:
            if tensor.numel() > 1 and _address(tensor) in self.memories:
                self.call(read_by_python, (self.node_of(tensor),), {}, tensor)

    def _hidden_view(self, base: fx.Node, tensor: Tensor) -> fx.Node:
        if base.meta["val"].dtype != tensor.dtype:
            raise TraceError(
                f"a tensor of {tensor.dtype} lies in the memory of one of {base.meta['val'].dtype}, and no operator "
                "made it so; use tensor.view(dtype)"
            )
        place = (tensor.size(), tensor.stride(), tensor.storage_offset())
        return self.call(torch.ops.aten.as_strided.default, (base, *map(_plain, place)), {}, tensor)

    def _placeholder(self, name: str, tensor: Tensor) -> fx.Node:
        # Those met late go behind the others too: a graph takes its inputs first.
        with self.graph.inserting_after(self.last_placeholder):
            node = self.graph.placeholder(name.replace(".", "_"))
        node.target = node.name
        node.meta["val"] = _outline(tensor)
        self.last_placeholder = node
        return node

    def _key(self, tensor: Tensor) -> Place | int:
        return id(tensor) if id(tensor) in self.state else _place(tensor)


class _Mode(SchemaCheckMode):  # type: ignore[no-untyped-call]
    """Hands every operator to the recorder.

    Torch keeps places at the key before autograd for three of its own modes; this is the one that is meant for
    eager runs on real tensors, and nothing of it is used but its place.
    """

    def __init__(self, recorder: _Recorder) -> None:
        TorchDispatchMode.__init__(self, torch._C.DispatchKey.PreDispatch)  # type: ignore[no-untyped-call]
        self.recorder = recorder

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: tuple[type[Any], ...],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        # Without the Python dispatcher operators run as they always do, not as their Python decompositions.
        with no_python_dispatcher():
            return self.recorder.run(func, args, kwargs or {})


@contextlib.contextmanager
def _noting_modules(model: nn.Module, recorder: _Recorder) -> Iterator[None]:
    """Keep `recorder.modules` equal to the modules whose forward is running, outermost first."""
    calls: Counter[str] = Counter()

    def enter(path: str, module: nn.Module) -> None:
        key = f"L__self__{path}" + (f"@{calls[path]}" if calls[path] else "")
        calls[path] += 1
        recorder.modules[key] = (path, f"{type(module).__module__}.{type(module).__qualname__}")

    def leave(*_: Any) -> None:
        recorder.modules.popitem()

    def entering(path: str) -> Callable[..., None]:
        return lambda module, *_: enter(path, module)

    with contextlib.ExitStack() as stack:
        for path, module in model.named_modules():
            stack.callback(module.register_forward_pre_hook(entering(path), prepend=True).remove)
            stack.callback(module.register_forward_hook(leave, always_call=True).remove)
        yield


@contextlib.contextmanager
def _as_it_was(model: nn.Module) -> Iterator[None]:
    """Put attributes back that the forward pass assigns, and buffers that it writes."""
    tables = ("_parameters", "_buffers", "_modules")
    saved = [(vars(m), dict(vars(m)), {t: dict(vars(m).get(t, ())) for t in tables}) for m in model.modules()]
    with kept_buffers(model):
        try:
            yield
        finally:
            for own, attributes, contents in saved:
                own.clear()
                own.update(attributes)
                for table, content in contents.items():
                    own[table].clear()
                    own[table].update(content)


def _copied(inputs: tuple[tuple[Any, ...], dict[str, Any]]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    # Tensors that have a gradient's history cannot be deep-copied as they are.
    tensors = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)]
    return copy.deepcopy(inputs, {id(tensor): tensor.detach().clone() for tensor in tensors})


def _tensors_within(value: Any, seen: set[int]) -> Iterator[Tensor]:
    """Every tensor in `value`, in containers and in the attributes of objects."""
    for leaf in pytree.tree_leaves(value):
        if isinstance(leaf, Tensor):
            yield leaf
        elif hasattr(leaf, "__dict__") and not isinstance(leaf, type | nn.Module) and id(leaf) not in seen:
            seen.add(id(leaf))
            yield from _tensors_within(list(vars(leaf).values()), seen)


def _written(op: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors among the arguments that the operator writes."""
    named = {a.name: value for a, value in zip(op._schema.arguments, args, strict=False)} | kwargs
    arguments = [a.name for a in op._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    leaves = pytree.tree_leaves([named.get(name) for name in arguments])
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def _unwrapped(tensor: Tensor) -> Tensor:
    functorch = torch._C._functorch
    return _unwrapped(functorch.get_unwrapped(tensor)) if functorch.is_functorch_wrapped_tensor(tensor) else tensor


def _storage(tensor: Tensor) -> torch.UntypedStorage:
    try:
        return tensor.untyped_storage()
    except NotImplementedError as error:
        raise TraceError(
            f"the forward pass uses a {tensor.layout} tensor; only strided ones can be followed"
        ) from error


def _address(tensor: Tensor) -> int:
    return int(_storage(tensor)._cdata)


def _place(tensor: Tensor) -> Place:
    bits = (tensor.is_conj(), tensor.is_neg())
    return (tensor.storage_offset(), tuple(tensor.size()), tensor.stride(), tensor.dtype, *bits)


def _outline(tensor: Tensor) -> Tensor:
    """Shape, strides and type of `tensor`, without its values."""
    return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="meta")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
