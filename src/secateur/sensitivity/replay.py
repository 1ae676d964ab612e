"""Run a program once on a batch, and from the middle for each change of its weights.

What comes before the first operator that reads a changed tensor is what it was. So the program is walked once
for all changes; where one of them begins to matter, the walk stops, the rest is run with the changed tensors on
what is alive there, and the walk goes on. No activation is computed twice in a walk, and none is held longer than
that walk and one run need it, but for those that the caller keeps for later walks over the same batch (`Kept`). The
model is neither copied nor changed, and all that varies is local to a call, so threads may share a `Replay`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence, Set as AbstractSet
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from secateur.data import Batch
from secateur.errors import SurgeryError
from secateur.graph.groups import structure
from secateur.graph.trace import Program, in_eval_mode, named_state
from secateur.surgery.program import HELD, check_shape, program_module
from secateur.surgery.verify import difference

Environment = dict[fx.Node, Any]


@dataclass(frozen=True, eq=False)
class Change:
    """Tensors of a model that take other values.

    Attributes:
        names: of the tensors, canonical.
        tensors: makes the values when they are needed, so that those of many changes need not exist at once.
    """

    names: AbstractSet[str]
    tensors: Callable[[], Mapping[str, Tensor]]


class Kept(Protocol):
    """Activations that walks over one batch found alive at some positions of the program."""

    @property
    def cuts(self) -> AbstractSet[int]:
        """The positions at which they may be kept."""

    def latest(self, position: int) -> tuple[int, Environment] | None:
        """The last position up to this one at which they are kept, and what is."""

    def offer(self, position: int, alive: Environment) -> bool:
        """Told of what is alive at a position that was walked to; whether it is kept."""


class Nothing:
    """Keeps nothing."""

    cuts: AbstractSet[int] = frozenset()

    def latest(self, position: int) -> None:
        """Nothing."""

    def offer(self, position: int, alive: Environment) -> bool:
        """No."""
        return False


@dataclass(frozen=True, eq=False)
class Replay:
    """A program that can be run from the middle.

    Attributes:
        model: whose program it is; its tensors are read at each call.
        graph: takes any batch size, as far as the forward pass does; see `refusal`.
        layout: of the arguments and keyword arguments it takes.
        results: how the leaves of its output are put together.
        held: what the graph refers to besides the model's state.
    """

    model: nn.Module
    graph: fx.Graph
    layout: pytree.TreeSpec
    results: pytree.TreeSpec
    held: nn.Module

    @staticmethod
    def of(program: Program) -> "Replay":
        """The replay of a program.

        Raises:
            SurgeryError: the program is a recording, which follows the example inputs for ever.
        """
        module = program_module(program, structure(program), {}, program.model)
        assert program.out_spec is not None
        layout = pytree.tree_structure((program.args, dict(program.kwargs)))
        return Replay(program.model, module.graph, layout, program.out_spec, module)

    def outputs(self, batch: Batch, changes: Sequence[Change], kept: Kept | None = None) -> Iterator[tuple[int, Any]]:
        """What the model gives with each of `changes`, as (position in `changes`, outputs), in order of the program.

        Where a change makes the program raise, the exception takes the place of the outputs, and the others go on.

        Args:
            batch: on the device of the model.
            changes: each by itself; one that changes nothing gives what the model gives.
            kept: by earlier walks over this batch.

        Raises:
            SurgeryError: the arguments are laid out in another way than those the program was traced with.
        """
        first = [self.first(change.names) for change in changes]
        order = sorted(range(len(changes)), key=first.__getitem__)
        walk = self.walk(batch, [first[number] for number in order], kept or Nothing())
        for number, walked in zip(order, walk, strict=True):
            # Not around the yield: the caller's code would run without gradients too.
            with torch.no_grad():
                try:
                    found = self._rest(walked, first[number], changes[number])
                except Exception as error:
                    found = error
            yield number, found

    def walk(self, batch: Batch, positions: Sequence[int], kept: Kept) -> Iterator[Environment]:
        """What is alive before the call at each of `positions`, which ascend; not to be written to."""
        with torch.no_grad():
            begun = self._start(batch)
            walked, fixed, at = dict(begun), _storages(begun), 0
        for position in positions:
            with torch.no_grad():
                known = kept.latest(position)
                if known is not None and known[0] > at:
                    at, alive = known
                    walked, fixed = {**begun, **alive}, _storages(begun) | _storages(alive)
                for stop in sorted({cut for cut in kept.cuts if at < cut < position} | {position} - {at}):
                    self._run(walked, fixed, at, stop)
                    at = stop
                    alive = {node: value for node, value in walked.items() if begun.get(node, walked) is not value}
                    if kept.offer(at, alive):
                        fixed |= _storages(alive)
            yield walked

    def refusal(self, batch: Batch) -> str:
        """Why the program does not serve batches like this one; empty if it gives what the model does."""
        try:
            found = next(self.outputs(batch, [Change(frozenset(), dict)]))[1]
            if isinstance(found, Exception):
                raise found
        except Exception as error:
            return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        with in_eval_mode(self.model), torch.no_grad():
            expected = self.model(*batch.args, **batch.kwargs)
        return difference(_tensors(found), _tensors(expected)) or ""

    def first(self, names: AbstractSet[str]) -> int:
        """Position of the first call that reads one of these tensors; past the last call if none does."""
        return min((self._first_use[name] for name in names if name in self._first_use), default=len(self._calls))

    @cached_property
    def _calls(self) -> tuple[fx.Node, ...]:
        return tuple(n for n in self.graph.nodes if n.op == "call_function" and n.target is not check_shape)

    @cached_property
    def _state_nodes(self) -> dict[fx.Node, str]:
        nodes = self.graph.find_nodes(op="get_attr")
        return {node: str(node.target) for node in nodes if not str(node.target).startswith(f"{HELD}.")}

    @cached_property
    def _first_use(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for position, node in enumerate(self._calls):
            for operand in node.all_input_nodes:
                if operand in self._state_nodes:
                    found.setdefault(self._state_nodes[operand], position)
        return found

    @cached_property
    def _dead_after(self) -> tuple[tuple[fx.Node, ...], ...]:
        """The values that nothing reads after each call."""
        last: dict[fx.Node, int] = {}
        for position, node in enumerate(self._calls):
            last[node] = position
            last.update(dict.fromkeys(node.all_input_nodes, position))
        results = set(self.graph.output_node().all_input_nodes)
        dead: list[list[fx.Node]] = [[] for _ in self._calls]
        for node, position in last.items():
            if node not in results:
                dead[position].append(node)
        return tuple(map(tuple, dead))

    @cached_property
    def _written(self) -> dict[fx.Node, tuple[fx.Node, ...]]:
        """The operands that a call writes to."""
        return {node: found for node in self._calls if (found := tuple(_written_operands(node)))}

    def _start(self, batch: Batch) -> Environment:
        leaves, layout = pytree.tree_flatten((batch.args, dict(batch.kwargs)))
        if layout != self.layout:
            raise SurgeryError(
                f"batches give {_in_words(layout)}, the example inputs gave {_in_words(self.layout)}; trace the model "
                "with arguments given in the way the batches give them"
            )
        state = named_state(self.model)
        found: Environment = dict(zip(self.graph.find_nodes(op="placeholder"), leaves, strict=True))
        for node in self.graph.find_nodes(op="get_attr"):
            name = self._state_nodes.get(node)
            found[node] = _attribute(self.held, str(node.target)) if name is None else state[name].detach()
        return found

    def _rest(self, walked: Environment, at: int, change: Change) -> Any:
        values = dict(walked)
        fresh = change.tensors()
        values.update({node: fresh[name] for node, name in self._state_nodes.items() if name in fresh})
        fixed = _storages(walked) if self._written else set()
        self._run(values, fixed, at, len(self._calls))
        leaves: Any = fx.node.map_arg(self.graph.output_node().args[0], values.__getitem__)
        return pytree.tree_unflatten(list(leaves), self.results)

    def _run(self, values: Environment, fixed: AbstractSet[int], start: int, stop: int) -> None:
        """Make the calls from `start` to `stop`, and forget what nothing reads any more.

        What lies in the storages `fixed` belongs to others, and is copied before it is written to.
        """
        for position in range(start, stop):
            node = self._calls[position]
            for operand in self._written.get(node, ()):
                _own(values, operand, fixed)
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
            values[node] = node.target(*args, **kwargs)  # type: ignore[operator]
            for dead in self._dead_after[position]:
                del values[dead]


def _in_words(layout: pytree.TreeSpec) -> str:
    """Arguments as they are written in a call.

    >>> _in_words(pytree.tree_structure(((1, {"a": 2}), {"mask": 3})))
    "(_, {'a': _}, mask=_)"
    """
    args, kwargs = pytree.tree_unflatten([_BLANK] * layout.num_leaves, layout)
    return f"({', '.join([*map(repr, args), *(f'{name}={value!r}' for name, value in kwargs.items())])})"


class _Blank:
    def __repr__(self) -> str:
        return "_"


_BLANK = _Blank()


def _written_operands(node: fx.Node) -> Iterator[fx.Node]:
    schema = getattr(node.target, "_schema", None)
    for number, argument in enumerate(schema.arguments if schema is not None else ()):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = node.args[number] if number < len(node.args) else node.kwargs.get(argument.name)
            yield from (leaf for leaf in pytree.tree_leaves(given) if isinstance(leaf, fx.Node))


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _storages(values: Environment) -> set[int]:
    return {_storage(leaf) for value in values.values() for leaf in _tensors(value)}


def _own(values: Environment, operand: fx.Node, fixed: AbstractSet[int]) -> None:
    """Move all views of what `operand` lies in to a copy, if it lies in a storage that is `fixed`."""
    for shared in {_storage(tensor) for tensor in _tensors(values[operand])} & fixed:
        copies: dict[int, torch.UntypedStorage] = {}

        def moved(leaf: Any, shared: int = shared, copies: dict[int, torch.UntypedStorage] = copies) -> Any:
            if not isinstance(leaf, Tensor) or _storage(leaf) != shared:
                return leaf
            if shared not in copies:
                copies[shared] = leaf.untyped_storage().clone()  # type: ignore[no-untyped-call]
            view = torch.empty(0, dtype=leaf.dtype, device=leaf.device)
            return view.set_(copies[shared], leaf.storage_offset(), leaf.shape, leaf.stride())

        for node, value in values.items():
            values[node] = pytree.tree_map(moved, value)


def _attribute(module: nn.Module, name: str) -> Any:
    owner, _, leaf = name.rpartition(".")
    return getattr(module.get_submodule(owner), leaf)
