"""From a module to its program: every operator, every shape, and where each came from."""

import contextlib
import inspect
import io
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.fx.traceback
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.fx import _pytree as fx_pytree
from torch.fx.graph import _PyTreeCodeGen
from torch.utils import _pytree as pytree

from secateur.errors import NumericalError, TraceError
from secateur.graph.attention import released, unfused
from secateur.graph.held_sizes import tagged_attributes
from secateur.graph.sizes import SizeRecorder, Sizes, read_sizes, seen_through

if TYPE_CHECKING:
    from secateur.graph.record import Recording


@dataclass(frozen=True, eq=False)
class Program:
    """A traced model.

    Attributes:
        model: the traced module itself, not a copy.
        graph: the ATen operators of the model in eval mode, in the order in which they run.
        user_inputs: placeholders of the graph that are the caller's, in order.
        args: the example inputs it was traced with.
        kwargs: likewise, by keyword.
        names: placeholder of the program -> canonical name of the parameter or buffer. Tied
            parameters share one name.
        shapes: canonical name -> shape of that parameter or buffer.
        aliases: every name in the model's state -> canonical name.
        sizes: where the integers in the calls of operators come from.
        trained: canonical names of parameters (the others are buffers).
        model_type: qualified name of the model's class.
        recorded: `torch.export` could not capture the model, so its eager run was recorded: control flow
            is fixed as it went with the example inputs.
        held: what else the graph refers to, by the target of the node: tensors that are no part of the
            model's state, and graphs within the graph. Empty for a recording.
        out_spec: how the leaves of the output are put together; None for a recording.
        derived: what was worked out from the rest, kept for the next who asks.
    """

    model: nn.Module
    graph: fx.Graph
    user_inputs: tuple[str, ...]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    names: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]
    aliases: Mapping[str, str]
    sizes: Sizes
    trained: frozenset[str]
    model_type: str
    recorded: bool = False
    held: Mapping[str, Any] = field(default_factory=dict)
    out_spec: pytree.TreeSpec | None = None
    derived: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)

    @property
    def nodes(self) -> list[fx.Node]:
        """The operators, in the order in which they run."""
        return list(self.graph.nodes)


def trace(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None) -> Program:
    """Export `model` in eval mode and remember which tensor of its state each input of the program is.

    Where `torch.export.export(strict=False)` refuses (control flow that depends on the values of tensors),
    the run on the example inputs is recorded instead, and `Program.recorded` is true.

    The model is left as it was: its train/eval flags and buffers are put back, its parameters are not copied.

    Args:
        model: any module that runs on the example inputs.
        args: example inputs, as a tuple; batch dimension first.
        kwargs: example inputs by keyword.

    Raises:
        TraceError: the example inputs do not fit, or the model can be neither exported nor recorded.
        NumericalError: a weight is NaN or infinite.

    >>> program = trace(nn.Linear(3, 2), (torch.zeros(1, 3),))
    >>> program.shapes["weight"]
    (2, 3)
    """
    if not isinstance(args, tuple):
        raise TraceError(f"args is a {type(args).__name__}; needed a tuple of example inputs, such as (x,)")
    kwargs = dict(kwargs or {})
    check_finite_weights(model)
    recorder = SizeRecorder()
    with in_eval_mode(model):
        # A model on the meta device has no values to run on; whether the inputs fit, the capture will say.
        if not any(tensor.is_meta for tensor in named_state(model).values()):
            _check_inputs_fit(model, args, kwargs)
        called = _called(model)
        hook = called.register_forward_pre_hook(recorder.note_inputs, prepend=True, with_kwargs=True)
        try:
            with (
                released(model),
                tagged_attributes(model),
                seen_through(),
                torch.fx.traceback.preserve_node_meta(),
                recorder,
            ):
                whole_args, whole_kwargs = pytree.tree_map(_apart, (args, kwargs))
                captured, recorded = _capture(called, whole_args, whole_kwargs, recorder)
        finally:
            hook.remove()
    # What only a shape was read off must not bind types.
    kept = _dead_but_run(captured)
    captured.graph.eliminate_dead_code(lambda node: node in kept or _is_needed(node))
    aliases = canonical_names(model)
    state = named_state(model)
    nodes = [node for node in captured.graph.nodes if node.op == "placeholder"]
    placeholders = {captured.names[t]: node for node in nodes if (t := str(node.target)) in captured.names}
    given = input_nodes(captured.graph, captured.user_inputs, args, kwargs)
    return Program(
        model=model,
        graph=captured.graph,
        user_inputs=captured.user_inputs,
        args=args,
        kwargs=kwargs,
        names=captured.names,
        shapes={name: tuple(state[name].shape) for name in dict.fromkeys(aliases.values())},
        aliases=aliases,
        sizes=read_sizes(captured.graph, recorder, given, [placeholders.get(aliases[name]) for name in state]),
        trained=frozenset(aliases[name] for name, _ in model.named_parameters()),
        model_type=f"{type(model).__module__}.{type(model).__qualname__}",
        recorded=recorded,
        held=captured.held,
        out_spec=captured.out_spec,
    )


def named_state(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer by qualified name; tied ones under each of their names."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def canonical_names(model: nn.Module) -> dict[str, str]:
    """Every name in the model's state -> the first name of the same tensor."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in named_state(model).items()}


@contextlib.contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[nn.Module]:
    """Put `model` in eval mode and restore each submodule's own flag afterwards."""
    flags = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield model
    finally:
        for module, training in flags.items():
            module.training = training


@contextlib.contextmanager
def kept_buffers(model: nn.Module) -> Iterator[None]:
    """Put the values of buffers back that are written in place meanwhile.

    >>> counter = nn.BatchNorm1d(1)
    >>> with kept_buffers(counter):
    ...     _ = counter.num_batches_tracked.add_(1)
    >>> int(counter.num_batches_tracked)
    0
    """
    saved = [(b, b._version, b.detach().clone()) for b in model.buffers() if not b.is_inference()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, version, values in saved:
                if buffer._version != version:
                    buffer.copy_(values)


def check_finite_weights(model: nn.Module) -> None:
    """Refuse a model with a weight that is not finite (buffers may be: attention masks hold -inf).

    Raises:
        NumericalError: names the first such parameter.
    """
    for name, parameter in model.named_parameters():
        if not _is_finite(parameter):
            bad = int((~parameter.detach().isfinite()).sum())
            raise NumericalError(
                f"parameter {name!r} holds {bad} values that are NaN or infinite; load sound weights before pruning"
            )


def _called(model: nn.Module) -> nn.Module:
    """What is called to trace `model`; export does not call a graph but walks it, past all hooks."""
    if not isinstance(model, fx.GraphModule):
        return model
    called = nn.Module()
    called.__dict__ = dict(vars(model))
    called.forward = _walk(model) if isinstance(model.graph._codegen, _PyTreeCodeGen) else model.forward
    return called


def _walk(model: fx.GraphModule) -> Callable[..., Any]:
    """What runs a graph node by node, so that each call is known to be of the module that it was made in."""
    signature, codegen = inspect.signature(model.forward), model.graph._codegen
    assert isinstance(codegen, _PyTreeCodeGen)
    layout = codegen.pytree_info.in_spec

    def forward(*args: Any, **kwargs: Any) -> Any:
        given = list(signature.bind(*args, **kwargs).arguments.values())
        by_position, by_keyword = layout.children()
        first = by_position.num_children
        named = dict(zip(by_keyword.context, given[first:], strict=True))
        leaves = fx_pytree.tree_flatten_spec((tuple(given[:first]), named), layout)
        found = fx.Interpreter(model).run(*leaves, enable_io_processing=False)
        return codegen.process_outputs(found)

    return forward


def _apart(leaf: Any) -> Any:
    """A tensor that is a view, as one that is none: export reads the sizes of what it is a view of too."""
    if not isinstance(leaf, Tensor) or leaf._base is None or leaf.requires_grad or leaf.layout != torch.strided:
        return leaf
    whole = torch.empty(0, dtype=leaf.dtype, device=leaf.device)
    return whole.set_(leaf.untyped_storage(), leaf.storage_offset(), leaf.shape, leaf.stride())


def input_nodes(
    graph: fx.Graph, user_inputs: Sequence[str], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> list[fx.Node | None]:
    """The placeholder of each leaf of the arguments; None for a leaf that has none."""
    placeholders = {str(node.target): node for node in graph.find_nodes(op="placeholder")}
    nodes = [placeholders[name] for name in user_inputs]
    leaves = pytree.tree_leaves((args, kwargs))
    if len(nodes) == len(leaves):
        return list(nodes)
    tensors = iter(nodes)  # a recording has placeholders for tensors only
    return [next(tensors) if isinstance(leaf, Tensor) else None for leaf in leaves]


def _check_inputs_fit(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    try:
        with torch.no_grad(), kept_buffers(model), unfused():
            model(*args, **kwargs)
    except Exception as error:
        shapes = [tuple(leaf.shape) for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        raise TraceError(
            f"{type(model).__name__} does not run on the example inputs (tensor shapes {shapes}): "
            f"{_first_line(error)}; pass args=(...) as you would call the model"
        ) from error


def _is_finite(parameter: Tensor) -> bool:
    """Whether every value is finite; the extremes show NaN and infinity without a copy of the tensor."""
    values = parameter.detach()
    if values.is_meta or not values.numel() or not (values.is_floating_point() or values.is_complex()):
        return True
    if values.is_complex():
        values = torch.view_as_real(values.resolve_conj())
    return all(bool(extreme.isfinite()) for extreme in values.aminmax())


def _dead_but_run(captured: "Recording") -> set[fx.Node]:
    """Calls that use a parameter or buffer though nothing comes of them, and what they lead to.

    The forward pass makes them all the same, so they must still run after a cut: the last residual branch of a
    network that returns its skips.
    """
    live: set[fx.Node] = set()
    for node in reversed(captured.graph.nodes):
        if _is_needed(node) or any(user in live for user in node.users):
            live.add(node)
    found: set[fx.Node] = set()
    for node in captured.graph.nodes:
        if node in live or node.op == "placeholder":
            continue
        operands = node.all_input_nodes
        if any(n in found or (n.op == "placeholder" and str(n.target) in captured.names) for n in operands):
            found.add(node)
    return found


def _is_needed(node: fx.Node) -> bool:
    """Whether a call does more than make a tensor: it writes to one, or Python reads its result."""
    if node.target is torch.ops.aten._assert_tensor_metadata.default:
        return False
    # In a recording, `.tolist()` and `.numpy()` leave no other trace than this operator.
    is_read = node.target is torch.ops.aten.resolve_neg.default
    return is_read or node.is_impure() or not isinstance(node.meta.get("val"), Tensor | tuple | list)


def _capture(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], recorder: SizeRecorder
) -> tuple["Recording", bool]:
    """The program by export, or where that fails by recording; and whether it was recorded."""
    # The recorder stands on this module's functions.
    from secateur.graph.record import Recording, record

    try:
        exported = _export(model, args, kwargs)
    except Exception as refusal:
        recorder.forget()
        try:
            return record(model, args, kwargs), True
        except Exception as failure:
            raise TraceError(
                f"torch.export cannot capture {type(model).__name__}: {_first_line(refusal)}; nor can its run on the "
                f"example inputs be recorded: {_first_line(failure)}; rewrite control flow that depends on the values "
                "of tensors with torch.where, or trace the part of the model that is free of it"
            ) from failure
    _inline_regions(exported.graph_module)
    signature, aliases = exported.graph_signature, canonical_names(model)
    inputs = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    names = {placeholder: aliases[name] for placeholder, name in inputs.items() if name in aliases}
    values = {**exported.state_dict, **exported.constants}
    lifted = {**inputs, **signature.inputs_to_lifted_tensor_constants}
    held = {placeholder: values[name] for placeholder, name in lifted.items() if placeholder not in names}
    for node in exported.graph.find_nodes(op="get_attr"):
        held[str(node.target)] = getattr(exported.graph_module, str(node.target))
    # An input that is no tensor is named by its value there, and is a placeholder all the same.
    given = [str(n.target) for n in exported.graph.find_nodes(op="placeholder") if str(n.target) not in lifted]
    return Recording(exported.graph, tuple(given), names, held, exported.call_spec.out_spec), False


def _export(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ExportedProgram:
    # Without gradients from the start: else a region under no_grad becomes a graph within the graph.
    with warnings.catch_warnings(), _quiet_on_failure(), torch.no_grad():
        # nn.LSTM keeps its weights in a plain list too, which export remarks on and restores.
        warnings.filterwarnings("ignore", message=".*were assigned during export.*")
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        exported = torch.export.export(model, args, kwargs, strict=False)
    unknown = next((n for n in exported.graph.nodes if _has_unknown_size(n)), None)
    if unknown is not None:
        raise TraceError(f"{unknown.target} gives a tensor whose shape depends on the values of tensors")
    return exported


def _has_unknown_size(node: fx.Node) -> bool:
    values = pytree.tree_leaves(node.meta.get("val"))
    return any(isinstance(n, torch.SymInt) for v in values if isinstance(v, Tensor) for n in v.shape)


def _inline_regions(module: fx.GraphModule) -> None:
    """Put regions in which autocast is switched off, each a graph in the graph, where they are called."""
    for node in list(module.graph.nodes):
        if getattr(node.target, "__name__", "") != "wrap_with_autocast":
            continue
        _, _, is_on, _, region, *operands = node.args
        body = getattr(module, region.target)
        _inline_regions(body)
        if not is_on and all(inner.op != "get_attr" for inner in body.graph.nodes):
            _inline(module.graph, node, body.graph, operands)
            if not region.users:
                module.graph.erase_node(region)


def _inline(graph: fx.Graph, call: fx.Node, body: fx.Graph, operands: Sequence[Any]) -> None:
    """Replace `call` of a graph that gives a tuple by the nodes of that graph."""
    inner = list(body.nodes)
    values: dict[fx.Node, Any] = dict(zip((n for n in inner if n.op == "placeholder"), operands, strict=True))
    with graph.inserting_before(call):
        for node in inner:
            if node.op == "call_function":
                values[node] = graph.node_copy(node, values.__getitem__)
    results = inner[-1].args[0]
    for user in list(call.users):
        user.replace_all_uses_with(values[results[user.args[1]]])
        graph.erase_node(user)
    graph.erase_node(call)


@contextlib.contextmanager
def _quiet_on_failure() -> Iterator[None]:
    """Hold back what is written to stderr, and drop it on failure: export prints its partial graph there."""
    with contextlib.redirect_stderr(io.StringIO()) as held:
        yield
    sys.stderr.write(held.getvalue())


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
