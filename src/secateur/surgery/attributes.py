"""Integers in modules that must follow the tensors: `out_channels`, `groups`, `num_heads`, ...

The program knows from which attribute each integer of its calls was taken (`graph.sizes`): new values are
solved for. Attributes that no operator reads, but people do, follow by a small table for torch's own
modules. Where a program does not know its sources, attributes that hold the same number are proposals.
The caller verifies in every case.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from secateur.errors import SurgeryError
from secateur.graph.attention import HeadwiseAttention
from secateur.graph.groups import Structure
from secateur.graph.settle import count, equations
from secateur.graph.sources import Attribute, source_leaves
from secateur.graph.stacks import LayerwiseRecurrent, layer_widths
from secateur.types import Rewrite

Value = int | tuple[int, ...]

REMEDY = (
    "let the forward pass read the size from an attribute or from the tensor's shape, pass the module's name in "
    'ignore=[...], or pass fallback="graph" for a graph in place of the module'
)


@dataclass(frozen=True)
class Demand:
    """The call of an operator in `modules` (innermost first) names `before` where it needs `after`."""

    modules: tuple[str, ...]
    operator: str
    before: int
    after: int


def demands(structure: Structure, widths: Mapping[str, int], *, with_source: bool = True) -> list[Demand]:
    """Shape constants of the program that a cut to `widths` (units kept in a row) changes.

    Without `with_source`: those alone of which it is not known where the forward pass takes them from.
    """
    kept = kept_units(structure, widths)
    found = []
    for constant in structure.typing.constants:
        after = count(structure.typing.unifier.resolve(constant.dim), kept)
        if after != constant.dim.size and (with_source or constant.source is None):
            found.append(Demand(module_stack(constant.node), str(constant.node.target), constant.dim.size, after))
    return list(dict.fromkeys(found))


def kept_units(structure: Structure, widths: Mapping[str, int]) -> dict[int, int]:
    """Axis id -> units that stay, for groups that keep `widths[name]` units in a row."""
    return {axis: widths[name] for axis, name in structure.axis_groups.items() if name in widths}


def solved(structure: Structure, widths: Mapping[str, int]) -> list[Rewrite]:
    """The attributes from which the forward pass takes sizes, with the values that a cut needs.

    Raises:
        SurgeryError: two places need different values of one attribute.
    """
    kept = kept_units(structure, widths)
    values, wrong = equations(structure.typing).attributes(kept)
    if wrong is not None:
        after = count(structure.typing.unifier.resolve(wrong.dim), kept)
        path = next(iter(module_stack(wrong.node)), "")
        held = [leaf for leaf in source_leaves(wrong.source) if isinstance(leaf, Attribute)] if wrong.source else []
        names = ", ".join(dict.fromkeys(f"{leaf.module}.{leaf.name}".removeprefix(".") for leaf in held))
        why = f"no value of the attributes {names} gives that in every place" if names else "no attribute gives it"
        raise SurgeryError(
            f"module {path!r}, operator {wrong.node.target}: it needs the size {after}, uncut {wrong.dim.size}, and "
            f"{why}; {REMEDY}"
        )
    return [
        Rewrite(a.module, a.name if a.index is None else f"{a.name}[{a.index}]", a.value, value)
        for a, value in values.items()
        if value != a.value
    ]


def module_stack(node: fx.Node) -> tuple[str, ...]:
    """Paths of the modules whose forward was running, innermost first; the root is the empty path.

    >>> graph = fx.Graph()
    >>> node = graph.placeholder("x")
    >>> node.meta["nn_module_stack"] = {"a": ("", None), "b": ("block.attention", None)}
    >>> module_stack(node)
    ('block.attention', '')
    """
    stack = node.meta.get("nn_module_stack") or {}
    return tuple(reversed([path for path, _ in stack.values()]))


def known_sizes(module: nn.Module, groups: int | None) -> dict[str, Value]:
    """What the size attributes of one of torch's modules must be, read off its tensors."""
    for kind, sizes in _SIZES.items():
        if isinstance(module, kind):
            return sizes(module, groups)
    return {}


def rewrite_known(model: nn.Module, found: list[Demand]) -> list[Rewrite]:
    """Rewrite torch's own modules in place."""
    groups = {
        d.modules[0]: d.after for d in found if d.modules and ("conv" in d.operator or "group_norm" in d.operator)
    }
    rewrites = []
    for path, module in model.named_modules():
        for name, after in known_sizes(module, groups.get(path)).items():
            before = getattr(module, name)
            if before != after:
                setattr(module, name, after)
                rewrites.append(Rewrite(path, name, before, after))
    return rewrites


def proposals(model: nn.Module, found: list[Demand]) -> list[Rewrite]:
    """Attributes that hold a number which some operator of their module needs changed."""
    wanted: dict[str, list[tuple[int, int]]] = {}
    for demand in found:
        for path in demand.modules:
            if not known_sizes(model.get_submodule(path), None):
                wanted.setdefault(path, []).append((demand.before, demand.after))
    return list(
        dict.fromkeys(
            rewrite
            for path, changes in wanted.items()
            for rewrite in _candidates(path, model.get_submodule(path), dict(changes))
        )
    )


def trials(proposed: list[Rewrite]) -> Iterator[tuple[Rewrite, ...]]:
    """Sets of rewrites worth trying, the likeliest first: none, all, innermost, all but one, each one."""
    seen: set[frozenset[Rewrite]] = set()
    options = [(), tuple(proposed)]
    options += [tuple(p for p in proposed if p.attribute != a) for a in dict.fromkeys(p.attribute for p in proposed)]
    options += [tuple(p for p in proposed if p.attribute == a) for a in dict.fromkeys(p.attribute for p in proposed)]
    options += [tuple(p for p in proposed if p != one) for one in proposed]
    options += [(one,) for one in proposed]
    for option in options:
        consistent = {(p.module, p.attribute): p for p in option}
        key = frozenset(consistent.values())
        if key not in seen:
            seen.add(key)
            yield tuple(consistent.values())


def apply(model: nn.Module, rewrites: tuple[Rewrite, ...]) -> None:
    """Set each attribute to its new value."""
    for rewrite in rewrites:
        _set(model.get_submodule(rewrite.module), rewrite.attribute, rewrite.after)


def revert(model: nn.Module, rewrites: tuple[Rewrite, ...]) -> None:
    """Set each attribute back to its old value."""
    for rewrite in rewrites:
        _set(model.get_submodule(rewrite.module), rewrite.attribute, rewrite.before)


def _set(module: nn.Module, attribute: str, value: Value) -> None:
    *path, name = attribute.split(".")
    holder: Any = module
    for step in path:
        holder = getattr(holder, step)
    name, _, index = name.rstrip("]").partition("[")
    old = getattr(holder, name)
    if index:
        items = list(old)
        items[int(index)] = value
        value = tuple(items)
    # Plain assignment would go through setters that check or convert.
    vars(holder)[name] = type(old)(value) if isinstance(value, tuple | list) else value


def _candidates(path: str, module: nn.Module, changes: Mapping[int, int]) -> Iterator[Rewrite]:
    for name, value in vars(module).items():
        if type(value) is int and value in changes:
            yield Rewrite(path, name, value, changes[value])
        elif isinstance(value, tuple | list) and all(type(v) is int for v in value) and set(value) & set(changes):
            yield Rewrite(path, name, tuple(value), tuple(changes.get(v, v) for v in value))


def _linear(m: Any, groups: int | None) -> dict[str, Value]:
    return {"out_features": m.weight.shape[0], "in_features": m.weight.shape[1]}


def _conv(m: Any, groups: int | None) -> dict[str, Value]:
    count_groups = groups or m.groups
    into, out = m.weight.shape[1] * count_groups, m.weight.shape[0]
    return {"in_channels": into, "out_channels": out, "groups": count_groups}


def _conv_transpose(m: Any, groups: int | None) -> dict[str, Value]:
    count_groups = groups or m.groups
    into, out = m.weight.shape[0], m.weight.shape[1] * count_groups
    return {"in_channels": into, "out_channels": out, "groups": count_groups}


def _batch_norm(m: Any, groups: int | None) -> dict[str, Value]:
    tensor = m.running_mean if m.running_mean is not None else m.weight
    return {"num_features": len(tensor)} if tensor is not None else {}


def _group_norm(m: Any, groups: int | None) -> dict[str, Value]:
    if m.weight is None:
        return {}
    return {"num_channels": len(m.weight), "num_groups": groups or m.num_groups}


def _layer_norm(m: Any, groups: int | None) -> dict[str, Value]:
    return {"normalized_shape": tuple(m.weight.shape)} if m.weight is not None else {}


def _embedding(m: Any, groups: int | None) -> dict[str, Value]:
    return {"num_embeddings": m.weight.shape[0], "embedding_dim": m.weight.shape[1]}


def _recurrent(m: Any, groups: int | None) -> dict[str, Value]:
    last = layer_widths(m)[-1]
    return {
        "input_size": m.weight_ih_l0.shape[1],
        "hidden_size": last.hidden,
        "proj_size": last.output if m.proj_size else 0,
    }


def _recurrent_cell(m: Any, groups: int | None) -> dict[str, Value]:
    return {"input_size": m.weight_ih.shape[1], "hidden_size": m.weight_hh.shape[1]}


def _attention(m: Any, groups: int | None) -> dict[str, Value]:
    packed = m.in_proj_weight
    q, k, v = (packed,) * 3 if packed is not None else (m.q_proj_weight, m.k_proj_weight, m.v_proj_weight)
    return {"embed_dim": q.shape[1], "kdim": k.shape[1], "vdim": v.shape[1]}


def _prelu(m: Any, groups: int | None) -> dict[str, Value]:
    return {"num_parameters": m.weight.numel()}


_SIZES: dict[type[nn.Module], Callable[[Any, int | None], dict[str, Value]]] = {
    nn.Linear: _linear,
    _ConvTransposeNd: _conv_transpose,
    _ConvNd: _conv,
    _NormBase: _batch_norm,
    nn.GroupNorm: _group_norm,
    nn.LayerNorm: _layer_norm,
    nn.RMSNorm: _layer_norm,
    nn.Embedding: _embedding,
    nn.RNNBase: _recurrent,
    LayerwiseRecurrent: _recurrent,
    nn.RNNCellBase: _recurrent_cell,
    HeadwiseAttention: _attention,
    nn.PReLU: _prelu,
}
