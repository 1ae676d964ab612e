"""The cut program: a graph that computes the cut network where the model's own forward pass cannot.

Its integers are ours to write: those that count a typed dimension get their new size, and those that the
forward pass took from the shape of a tensor are taken from it again, so that other batch sizes work.
"""

import copy
import inspect
import math
import operator
from collections.abc import Callable, Mapping, Sequence, Set as AbstractSet
from dataclasses import dataclass, field
from functools import partial, reduce
from typing import Any, TypeGuard

import torch
from torch import Tensor, fx, nn
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo
from torch.utils import _pytree as pytree

from secateur.errors import ArgumentError, SurgeryError
from secateur.graph.branches import Branch
from secateur.graph.groups import Structure, structure_for
from secateur.graph.settle import count, extent_dim
from secateur.graph.sources import (
    OPERATIONS,
    STATE,
    Arithmetic,
    Attribute,
    Extent,
    Literal,
    Sized,
    Source,
    source_leaves,
)
from secateur.graph.stacks import uneven_stack
from secateur.graph.trace import Program, input_nodes
from secateur.graph.typing import Constant, RowDims, arguments, operator_name
from secateur.surgery.attributes import kept_units
from secateur.surgery.plan import Plan, check_plan, kept_widths

Places = AbstractSet[tuple[int, int]]
"""Dimensions of the inputs: (leaf of the arguments, dimension of it)."""

HELD = "_held"
INPUTS = "secateur_inputs"
ASSERTIONS = frozenset({"aten._assert_tensor_metadata"})
STACK_ARGUMENTS = ("input", "params", "has_biases", "num_layers", "dropout", "train", "bidirectional", "batch_first")
CHECKED = (int, float, str, type(None))


@dataclass(frozen=True, eq=False)
class GraphInputs:
    """What a cut graph is called with.

    Attributes:
        layout: of its arguments and keyword arguments.
        leaves: of the arguments; tensors without values.
        free: dimensions that may have any size.
    """

    layout: pytree.TreeSpec
    leaves: tuple[Any, ...]
    free: Places


def graph_inputs(model: nn.Module) -> GraphInputs | None:
    """What `model` is called with, if it is a cut graph."""
    return model.meta.get(INPUTS) if isinstance(model, fx.GraphModule) else None


@torch.fx.node.has_side_effect
def check_shape(tensor: Tensor, name: str, sizes: Sequence[int | None]) -> None:
    """Refuse an input of a shape that a graph is not made for; None stands for any size.

    Raises:
        ArgumentError: names the input, its shape and what it should be.

    >>> check_shape(torch.zeros(7, 3), "x", (None, 3))
    """
    is_fitting = tensor.dim() == len(sizes) and all(
        wanted is None or size == wanted for size, wanted in zip(tensor.shape, sizes, strict=True)
    )
    if not is_fitting:
        wanted = ", ".join("any" if size is None else str(size) for size in sizes)
        raise ArgumentError(
            f"input {name!r} has shape {tuple(tensor.shape)}; this graph was made for ({wanted}): "
            "trace the model with inputs of that shape and cut it again"
        )


@torch.fx.node.has_side_effect
def check_value(value: Any, name: str, expected: Any) -> None:
    """Refuse another value of an input that is no tensor: the graph was made for the one it was traced with.

    Raises:
        ArgumentError: names the input, its value and what it should be.

    >>> check_value(True, "use_cache", True)
    """
    if value != expected:
        raise ArgumentError(
            f"input {name!r} is {value!r}; this graph was made for {expected!r}: trace the model with that value "
            "and cut it again"
        )


def program_module(
    program: Program,
    found: Structure,
    kept: Mapping[int, int],
    state: nn.Module,
    *,
    gone: Sequence[Branch] = (),
    free: Places = frozenset(),
    pin: bool = True,
) -> fx.GraphModule:
    """The graph that computes `program` with fewer units.

    It is called as the model is, with the arguments that were traced, and gives what the model gives. It was
    traced in eval mode and stays there: dropout and batch norm do not follow `train()`. Numbers that the
    forward pass worked out from sizes that are cut, such as a scale, are those of the uncut network.

    Args:
        program: of the model; not a recording, whose control flow is that of one run.
        found: its structure.
        kept: axis id -> units that stay, for axes that are cut.
        state: holds the cut tensors under the names of the model's state.
        gone: branches that go: their calls are left out, and what is theirs alone is left out of the state.
        free: dimensions of inputs that may have any size. Other sizes are refused: a number that was worked out
            from one of them may be written in the graph.
        pin: attention keeps the default scale of the uncut network.

    Raises:
        SurgeryError: the program is a recording, a name of the state is one that a graph needs itself, or the
            stream has another shape or type than its sum with a branch that goes.
    """
    if program.recorded or program.out_spec is None:
        raise SurgeryError(
            f"{program.model_type} could not be exported but only recorded: its control flow depends on the values "
            "of tensors, and a graph would follow the example inputs for ever; pass the module's name in ignore=[...]"
        )
    writer = _Writer(program, found, kept, pin, _Gone.of(program, gone))
    names = _argument_names(program)
    writer.write_inputs(free, names)
    for node in program.nodes:
        writer.write(node)
    layout = pytree.tree_structure((program.args, dict(program.kwargs)))
    writer.graph.set_codegen(_PyTreeCodeGen(_PyTreeInfo(names, _layout(layout), _layout(program.out_spec))))
    module = fx.GraphModule(nn.Module(), fx.Graph(), type(program.model).__name__)
    owned = frozenset[str]().union(*(branch.parameters for branch in gone))
    _hold(module, state, program, frozenset(name for name, own in program.aliases.items() if own in owned))
    _hold_others(module, writer.held)
    module.graph = writer.graph
    leaves = tuple(_outline(leaf) for leaf in pytree.tree_leaves((program.args, dict(program.kwargs))))
    module.meta[INPUTS] = GraphInputs(_layout(layout), leaves, frozenset(free))
    module.train(state.training)
    return module


class _Layout(pytree.TreeSpec):
    """How leaves are put together. It never changes, so it is its own copy: torch warns of copying one."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Layout":
        return self


def _layout(spec: pytree.TreeSpec) -> _Layout:
    return _Layout(spec.type, spec.context, spec.children())  # type: ignore[arg-type]


def cut_program(program: Program, plan: Plan, state: nn.Module, *, free: Places = frozenset()) -> fx.GraphModule:
    """The graph of `program` cut by `plan`; nothing is verified. See `program_module`.

    Raises:
        PlanError: the plan is for another model.
        SurgeryError: the program gives no graph.
    """
    found = structure_for(program, plan.sizes, "graph")
    check_plan(plan, found.units)
    kept = kept_units(found, kept_widths(found.groups, plan))
    return program_module(program, found, kept, state, gone=gone_branches(found, plan), free=free)


def _outline(leaf: Any) -> Any:
    return torch.empty(leaf.shape, dtype=leaf.dtype, device="meta") if isinstance(leaf, Tensor) else leaf


def size_classes(program: Program) -> list[frozenset[tuple[int, int]]]:
    """Dimensions of the inputs that go together: leading ones of equal size (a batch), then others."""
    leading: dict[int, set[tuple[int, int]]] = {}
    others: dict[int, set[tuple[int, int]]] = {}
    for leaf, value in enumerate(pytree.tree_leaves((program.args, dict(program.kwargs)))):
        for dim, size in enumerate(value.shape if isinstance(value, Tensor) else ()):
            if dim == 0:
                leading.setdefault(size, set()).add((leaf, dim))
            elif size > 1:
                others.setdefault(size, set()).add((leaf, dim))
    return [frozenset(places) for places in (*leading.values(), *others.values())]


def doubled(program: Program, places: Places) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The example inputs with each of `places` twice as long."""
    leaves, spec = pytree.tree_flatten((program.args, dict(program.kwargs)))
    for leaf, dim in sorted(places):
        leaves[leaf] = torch.cat([leaves[leaf], leaves[leaf].flip(dim)], dim)
    args, kwargs = pytree.tree_unflatten(leaves, spec)
    return args, kwargs


def gone_branches(found: Structure, plan: Plan) -> tuple[Branch, ...]:
    """The branches that `plan` takes out."""
    return tuple(b for b in found.branches if b.group.name in plan.keep and len(plan.keep[b.group.name]) == 0)


@dataclass(frozen=True, eq=False)
class _Gone:
    """Nodes that are not written.

    Attributes:
        nodes: those that serve nothing but branches that go.
        streams: a sum with such a branch -> the stream, which takes its place.
    """

    nodes: AbstractSet[fx.Node]
    streams: Mapping[fx.Node, fx.Node]

    @staticmethod
    def of(program: Program, branches: Sequence[Branch]) -> "_Gone":
        by_name = {node.name: node for node in program.nodes}
        nodes = {by_name[name] for branch in branches for name in branch.region}
        streams = {by_name[total]: by_name[stream] for total, stream in (branch.added_to for branch in branches)}
        for branch, (total, stream) in zip(branches, streams.items(), strict=True):
            a, b = total.meta["val"], stream.meta["val"]
            if (a.shape, a.dtype) != (b.shape, b.dtype):
                raise SurgeryError(
                    f"branch {branch.group.name!r} turns what it is added to from {tuple(b.shape)}, {b.dtype} into "
                    f"{tuple(a.shape)}, {a.dtype}; a graph without it would give the former: keep the branch"
                )
        # Weights and constants that no other node reads; the caller's inputs stay, read or not.
        held = {n for n in program.nodes if n.op in {"placeholder", "get_attr"}}
        own = {n for n in held if n.users and nodes.issuperset(n.users) and n.target not in program.user_inputs}
        return _Gone(nodes | own, streams)


@dataclass(eq=False)
class _Writer:
    """The graph as far as it is written, and the new node of each old one."""

    program: Program
    found: Structure
    kept: Mapping[int, int]
    pin: bool
    gone: _Gone
    graph: fx.Graph = field(default_factory=fx.Graph)
    nodes: dict[fx.Node, fx.Node] = field(default_factory=dict)
    extents: dict[tuple[fx.Node, int], fx.Node] = field(default_factory=dict)
    held: dict[str, Any] = field(default_factory=dict)
    constants: dict[fx.Node, dict[tuple[str, int], Constant]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for constant in self.found.typing.constants:
            self.constants.setdefault(constant.node, {})[constant.argument, constant.index or 0] = constant

    def write_inputs(self, free: Places, names: Sequence[str]) -> None:
        """A placeholder for each leaf of the arguments, then what they must be like."""
        program = self.program
        given = (program.args, dict(program.kwargs))
        nodes = input_nodes(program.graph, program.user_inputs, *given)
        leaves = pytree.tree_flatten_with_path(given)[0]
        placeholders = []
        for number, node in enumerate(nodes):
            placeholders.append(self.graph.placeholder(f"input_{number}"))
            if node is not None:
                self.nodes[node] = placeholders[-1]
        for number, ((path, value), placeholder) in enumerate(zip(leaves, placeholders, strict=True)):
            name = _path_name(path, names, len(program.args))
            if isinstance(value, Tensor):
                sizes = tuple(None if (number, dim) in free else size for dim, size in enumerate(value.shape))
                self.graph.call_function(check_shape, (placeholder, name, sizes))
            elif isinstance(value, CHECKED):
                self.graph.call_function(check_value, (placeholder, name, value))

    def write(self, node: fx.Node) -> None:
        """Append what `node` becomes."""
        if node in self.gone.streams and node not in self.gone.nodes:
            self.nodes[node] = self._left_of(node)
        elif node not in self.gone.nodes:
            self._write(node)

    def _write(self, node: fx.Node) -> None:
        match node.op:
            case "placeholder" if node not in self.nodes and node.users:
                name = self.program.names.get(str(node.target))
                self.nodes[node] = self.graph.get_attr(name or self._holding(str(node.target)))
            case "get_attr":
                self.nodes[node] = self.graph.get_attr(self._holding(str(node.target)))
            case "call_function" if self._is_uneven(self.found.typing.values.get(node)):
                named = arguments(node)
                others = [named[name] for name in STACK_ARGUMENTS]
                mode = operator_name(node).removeprefix("aten.").upper()
                self._call(uneven_stack, node, (mode, *others))
            case "call_function" if operator_name(node) == "aten.select" and self._is_states(node.args[0]):
                self._call(operator.getitem, node, (node.args[0], arguments(node)["index"]))
            case "call_function" if operator_name(node) == "aten.slice" and self._is_states(node.args[0]):
                named = arguments(node)
                self._call(operator.getitem, node, (node.args[0], slice(named["start"], named["end"], named["step"])))
            case "call_function" if operator_name(node) == "aten.unbind" and self._is_states(node.args[0]):
                self.nodes[node] = self._mapped(node.args[0])
            case "call_function" if operator_name(node) not in ASSERTIONS:
                assert callable(node.target)
                args, kwargs = self._sized_arguments(node)
                args, kwargs = fx.node.map_arg((args, self._pinned(node, kwargs)), self._mapped)
                self.nodes[node] = self.graph.call_function(node.target, args, kwargs)
                if "nn_module_stack" in node.meta:
                    # So that the graph's own program says whose call it is, as the model's does.
                    self.nodes[node].meta["nn_module_stack"] = node.meta["nn_module_stack"]
            case "output":
                self.graph.output(pytree.tree_map(self._given, node.args[0]))

    def _call(self, target: Callable[..., Any], node: fx.Node, args: tuple[Any, ...]) -> None:
        self.nodes[node] = self.graph.call_function(target, fx.node.map_arg(args, self._mapped))

    def _is_uneven(self, value: Any) -> bool:
        """Whether a recurrent operator gave this, whose layers are cut to different widths."""
        return isinstance(value, list) and any(map(self._is_apart, value))

    def _is_states(self, node: Any) -> TypeGuard[fx.Node]:
        """Whether `node` gives final states that are cut to different widths."""
        return isinstance(node, fx.Node) and self._is_apart(self.found.typing.values.get(node))

    def _is_apart(self, types: Any) -> bool:
        resolve = self.found.typing.unifier.resolve
        return isinstance(types, RowDims) and len({count(resolve(row), self.kept) for row in types.rows}) > 1

    def _left_of(self, total: fx.Node) -> fx.Node:
        """The stream itself if the branch was added in place, else a copy: others may write to the sum."""
        stream = self.gone.streams[total]
        is_written = total.target is torch.ops.aten.add_.Tensor and total.args[0] is stream
        left = self._mapped(stream)
        return left if is_written else self.graph.call_function(torch.ops.aten.clone.default, (left,))

    def _given(self, leaf: Any) -> Any:
        """A leaf of the output; it may be a size."""
        if isinstance(leaf, fx.Node):
            return self._mapped(leaf)
        return self._following(leaf.source, int(leaf)) if isinstance(leaf, Sized) else leaf

    def _mapped(self, node: fx.Node) -> fx.Node:
        return node if node.graph is self.graph else self.nodes[node]

    def _holding(self, target: str) -> str:
        self.held.setdefault(target, self.program.held[target])
        return f"{HELD}.{target}"

    def _pinned(self, node: fx.Node, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Attention with the scale that it had, if that would follow the size of a head."""
        is_default = operator_name(node) == "aten.scaled_dot_product_attention" and kwargs.get("scale") is None
        if not (self.pin and is_default):
            return kwargs
        query = node.args[0] if node.args else node.kwargs["query"]
        assert isinstance(query, fx.Node)
        return {**kwargs, "scale": 1 / math.sqrt(query.meta["val"].shape[-1])}

    def _sized_arguments(self, node: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a call, its integers written anew."""
        schema = getattr(node.target, "_schema", None)
        if schema is None:
            return node.args, dict(node.kwargs)
        names = [argument.name for argument in schema.arguments]
        args = tuple(self._sized(node, names[k], value) for k, value in enumerate(node.args))
        return args, {name: self._sized(node, name, value) for name, value in node.kwargs.items()}

    def _sized(self, node: fx.Node, argument: str, value: Any) -> Any:
        if type(value) is int:
            return self._integer(node, argument, [value], 0)
        if isinstance(value, list | tuple) and value and all(type(v) is int for v in value):
            return type(value)(self._integer(node, argument, list(value), k) for k in range(len(value)))
        return value

    def _integer(self, node: fx.Node, argument: str, values: list[int], index: int) -> int | fx.Node:
        constant = self.constants.get(node, {}).get((argument, index))
        after = values[index] if constant is None else self._wanted(constant)
        source = self.program.sizes.source(node, values, index)
        return after if source is None else self._following(source, after)

    def _wanted(self, constant: Constant) -> int:
        return constant.sign * count(self.found.typing.unifier.resolve(constant.dim), self.kept)

    def _following(self, source: Source, after: int) -> int | fx.Node:
        """`after` as it is worked out from the shapes of tensors, where they keep their size in the cut."""
        following = [leaf for leaf in source_leaves(source) if self._maker(leaf)]
        rest, remainder = divmod(after, math.prod(leaf.value for leaf in following) or 1)
        if following and _is_product(source) and not remainder:
            factors = [self._expression(leaf) for leaf in following]
            return reduce(self._times, factors if rest == 1 else [*factors, rest])
        return self._expression(source) if following and after == source.value else after

    def _times(self, a: int | fx.Node, b: int | fx.Node) -> fx.Node:
        return self.graph.call_function(OPERATIONS["*"], (a, b))

    def _expression(self, source: Source) -> int | fx.Node:
        match source:
            case Arithmetic(symbol, left, right, value):
                a, b = self._expression(left), self._expression(right)
                is_known = isinstance(a, int) and isinstance(b, int)
                return value if is_known else self.graph.call_function(OPERATIONS[symbol], (a, b))
            case Extent(value, dim):
                maker = self._maker(source)
                return value if maker is None else self._extent(maker, dim)
            case Literal(value) | Attribute(value=value):
                return value

    def _maker(self, leaf: Source) -> fx.Node | None:
        """The new node of whose shape `leaf` is a size that the cut leaves as it is."""
        if not isinstance(leaf, Extent) or leaf.call is None or leaf.call == STATE:
            return None
        maker = self.nodes.get(self.program.sizes.makers.get((leaf.call, leaf.place)))  # type: ignore[arg-type]
        dim = extent_dim(self.found.typing, leaf)
        return maker if dim is not None and count(dim, self.kept) == leaf.value else None

    def _extent(self, maker: fx.Node, dim: int) -> fx.Node:
        if (maker, dim) not in self.extents:
            self.extents[maker, dim] = self.graph.call_function(torch.ops.aten.sym_size.int, (maker, dim))
        return self.extents[maker, dim]


def _is_product(source: Source) -> bool:
    if isinstance(source, Arithmetic):
        return source.symbol == "*" and _is_product(source.left) and _is_product(source.right)
    return True


def _argument_names(program: Program) -> list[str]:
    """Names of the arguments that were traced, as the model's own forward has them."""
    parameters = list(inspect.signature(program.model.forward).parameters.values())
    by_position = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    rest = next((p.name for p in parameters if p.kind == p.VAR_POSITIONAL), "argument")
    more = [f"{rest}_{k}" for k in range(len(program.args) - len(by_position))]
    return [*[*by_position, *more][: len(program.args)], *program.kwargs]


def _path_name(path: Any, names: Sequence[str], by_position: int) -> str:
    """`mask` or `batch['mask']`: where in the arguments a leaf is."""
    kind, first, *rest = path
    number = first.idx if kind.idx == 0 else by_position + list(names[by_position:]).index(first.key)
    return names[number] + pytree.keystr(tuple(rest))


def _hold(into: nn.Module, state: nn.Module, program: Program, without: AbstractSet[str]) -> None:
    """Give `into` the tensors of `state` under their names, but for those `without`."""
    try:
        _mirror(into, state, without)
    except KeyError as error:
        raise SurgeryError(
            f"a graph cannot hold the state of {program.model_type} under its own names: {error.args[0]}; "
            "rename that module, parameter or buffer"
        ) from error
    hidden = frozenset(state._non_persistent_buffers_set)
    # A deep copy of a graph forgets which buffers of its root are not part of the state.
    into._register_deepcopy_hook(partial(_keep_out_of_state, names=hidden))  # type: ignore[operator]


def _keep_out_of_state(module: nn.Module, names: AbstractSet[str]) -> None:
    module._non_persistent_buffers_set.update(names)


def _mirror(into: nn.Module, module: nn.Module, without: AbstractSet[str], prefix: str = "") -> None:
    for name, parameter in module._parameters.items():
        if prefix + name not in without:
            into.register_parameter(name, parameter)
    for name, buffer in module._buffers.items():
        if prefix + name not in without:
            into.register_buffer(name, buffer, persistent=name not in module._non_persistent_buffers_set)
    for name, child in module._modules.items():
        if child is not None:
            copy = nn.Module()
            into.add_module(name, copy)
            _mirror(copy, child, without, f"{prefix}{name}.")


def _hold_others(into: nn.Module, held: Mapping[str, Any]) -> None:
    """Give `into` what the program refers to besides the state, as plain attributes, which the model has them as."""
    if held:
        box = nn.Module()
        into.add_module(HELD, box)
        for name, value in held.items():
            setattr(box, name, value.detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value))
