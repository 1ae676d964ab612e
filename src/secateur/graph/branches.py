"""Residual branches that can go as a whole: the sum that they are added to stays well-typed without them."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import fx

from secateur.graph.trace import Program
from secateur.graph.typing import MOVES_ONLY, operator_name
from secateur.types import Group, Slice

# Operators that give zero where their first operand is zero.
KEEP_ZERO = MOVES_ONLY | {f"aten.{name}" for name in ("mul", "div", "dropout", "neg", "relu", "gelu", "silu", "tanh")}
# Operators that give zero where all their parameters are.
MAKERS = {f"aten.{name}" for name in ("linear", "conv1d", "conv2d", "conv3d", "convolution", "batch_norm", "addmm")}


@dataclass(frozen=True, eq=False)
class Branch:
    """What is computed from a stream only to be added to it.

    Attributes:
        group: one unit, the branch; masking it zeroes the parameters that make what is added.
        silent: modules that make what is added; without the branch they give zeros.
        passed: the other modules of the branch, the outermost ones; without it they hand on what they get.
        nodes: names of the program's nodes in these modules.
        parameters: canonical names of the parameters and buffers in these modules and nowhere else.
        region: names of all nodes that serve nothing but the branch.
        added_to: name of the sum -> name of the stream, which is all that is left of it.
    """

    group: Group
    silent: tuple[str, ...]
    passed: tuple[str, ...]
    nodes: frozenset[str]
    parameters: frozenset[str]
    region: frozenset[str]
    added_to: tuple[str, str]

    @property
    def modules(self) -> tuple[str, ...]:
        """All modules that go with the branch."""
        return self.silent + self.passed


def find_branches(program: Program) -> tuple[Branch, ...]:
    """Every residual branch of a program whose modules serve nothing else, in the order of the program."""
    owned, readers = _nodes_of_modules(program), _readers(program)
    found = []
    for node in program.nodes:
        operands = [arg for arg in node.args[:2] if isinstance(arg, fx.Node)] if _is_sum(node) else []
        for branch, stream in zip(operands, reversed(operands), strict=True) if len(operands) == 2 else ():
            region = _region(branch, node)
            if stream in _inputs(region) and (made := _branch(program, branch, region, owned, readers)) is not None:
                found.append(replace(made, added_to=(node.name, stream.name)))
    return tuple(found)


def _is_sum(node: fx.Node) -> bool:
    return operator_name(node) == "aten.add" and not node.kwargs


def _region(last: fx.Node, only_user: fx.Node) -> set[fx.Node]:
    """The calls that serve nothing but `last`, which serves nothing but `only_user`; they write to nothing else."""
    if set(last.users) != {only_user} or last.op != "call_function":
        return set()
    region, waiting = {last}, list(last.all_input_nodes)
    while waiting:
        node = waiting.pop()
        if node.op == "call_function" and node not in region and all(user in region for user in node.users):
            region.add(node)
            waiting += node.all_input_nodes
    written = [node.all_input_nodes[0] for node in region if node.is_impure() and node.all_input_nodes]
    writes_outside = not region.issuperset(written)
    return set() if writes_outside else region


def _inputs(region: set[fx.Node]) -> set[fx.Node]:
    return {operand for node in region for operand in node.all_input_nodes} - region


def _branch(
    program: Program,
    last: fx.Node,
    region: set[fx.Node],
    owned: Mapping[str, set[fx.Node]],
    readers: Mapping[str, set[fx.Node]],
) -> Branch | None:
    makers = _makers(last, region)
    modules = _outermost([path for path, nodes in owned.items() if path and nodes <= region])
    silent = [path for maker in makers for path in modules if maker in owned[path]]
    if not makers or len(silent) != len(makers):
        return None
    parameters = {program.names.get(str(p.target)): p for maker in makers for p in maker.all_input_nodes[1:]}
    names = [name for name in parameters if name is not None]
    if len(names) != len(parameters) or not all(readers[name] <= region for name in names):
        return None
    slices = [
        Slice(name, 0, torch.arange(program.shapes[name][0]).unsqueeze(0), masked=True, trained=True)
        for name in names
        if name in program.trained
    ]
    if not slices:
        # A norm without gain and bias: nothing can be zeroed to show what the branch gives.
        return None
    silent = list(dict.fromkeys(silent))
    return Branch(
        Group(f"{silent[0]}:branch", 1, tuple(slices), granularity="branch", minimum=0),
        tuple(silent),
        tuple(path for path in modules if path not in silent),
        frozenset(node.name for path in modules for node in owned[path]),
        _owned_state(program, modules),
        frozenset(node.name for node in region),
        ("", ""),
    )


def _makers(node: fx.Node, region: set[fx.Node]) -> list[fx.Node]:
    """The operators whose parameters, all zero, make `node` zero; empty if there are none such."""
    if node not in region:
        return []
    name = operator_name(node)
    if name in MAKERS and len(node.all_input_nodes) > 1:
        return [node]
    if name in KEEP_ZERO:
        return next((found for operand in node.all_input_nodes if (found := _makers(operand, region))), [])
    if name == "aten.add" and len(node.all_input_nodes) == 2:
        parts = [_makers(operand, region) for operand in node.all_input_nodes]
        return [maker for part in parts for maker in part] if all(parts) else []
    return []


def _readers(program: Program) -> dict[str, set[fx.Node]]:
    """Canonical name of a parameter or buffer -> the nodes that read it, under any of its names."""
    found: dict[str, set[fx.Node]] = defaultdict(set)
    for node in program.nodes:
        if node.op == "placeholder" and str(node.target) in program.names:
            found[program.names[str(node.target)]].update(node.users)
    return found


def _owned_state(program: Program, modules: Sequence[str]) -> frozenset[str]:
    prefixes = tuple(f"{path}." for path in modules)
    elsewhere = {canonical for name, canonical in program.aliases.items() if not name.startswith(prefixes)}
    return frozenset(program.aliases.values()) - elsewhere


def _nodes_of_modules(program: Program) -> dict[str, set[fx.Node]]:
    """Path of a module -> every call that was made while it ran."""
    found: dict[str, set[fx.Node]] = defaultdict(set)
    for node in program.nodes:
        if node.op == "call_function":
            for path, _ in (node.meta.get("nn_module_stack") or {}).values():
                found[path].add(node)
    return found


def _outermost(paths: Iterable[str]) -> list[str]:
    known = set(paths)
    return [path for path in sorted(known) if not any(path.startswith(f"{other}.") for other in known)]
