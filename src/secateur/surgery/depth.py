"""Taking residual branches out of a module: what is left of them gives zeros, or hands on what it gets."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateur.errors import SurgeryError
from secateur.graph.branches import Branch
from secateur.graph.copies import copy_of
from secateur.graph.trace import Program, in_eval_mode


class Removed(nn.Module):
    """Stands where a module of a removed branch was; it has no parameters.

    Args:
        operand: which of the tensors that it is called with it follows, counted through all arguments.
        silent: it gives zeros shaped like that tensor; else the tensor itself.
        results: None if the module gave a tensor, else how many things it gave in a tuple, of which
            `result` was the tensor; the others are None now.
        result: see `results`.

    >>> Removed(0, silent=True)(torch.ones(2)).tolist()
    [0.0, 0.0]
    """

    def __init__(self, operand: int, *, silent: bool, results: int | None = None, result: int = 0) -> None:
        super().__init__()
        self.operand, self.silent, self.results, self.result = operand, silent, results, result

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Zeros, or the operand, in the form that the module gave."""
        value = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)][self.operand]
        value = torch.zeros_like(value) if self.silent else value
        if self.results is None:
            return value
        return tuple(value if number == self.result else None for number in range(self.results))

    def extra_repr(self) -> str:
        """For printing."""
        return "zeros" if self.silent else "handed on"


def remove_branches(small: nn.Module, branches: Sequence[Branch], model: nn.Module, program: Program) -> None:
    """Replace the modules of branches in `small`, a copy of `model`, in place.

    Which of its operands a stand-in follows is found by trying on another copy.

    Raises:
        SurgeryError: a module's results cannot be imitated without running it.
    """
    if not branches:
        return
    silent = [path for branch in branches for path in branch.silent]
    passed = [path for branch in branches for path in branch.passed]
    trial = copy_of(model)
    calls = _calls(trial, [*silent, *passed], program)
    for path in [*silent, *passed]:
        if path not in calls:
            raise SurgeryError(
                f'module {path!r} is not called by itself, as in a graph; pass fallback="graph" for a graph without it'
            )
    found = {path: _stand_in(path, *calls[path]) for path in passed}
    _put(trial, found)
    probes = {path: _Probe(calls[path][1]) for path in silent}
    _put(trial, probes)
    try:
        _run(trial, program)
    except Exception as error:
        raise SurgeryError(
            f"without the modules {[*silent, *passed]} the model does not run ({error}): keep the branch"
        ) from error
    found |= {path: _stand_in(path, probe.given, probe.result, silent=True) for path, probe in probes.items()}
    _put(small, found)


class _Probe(nn.Module):
    """Notes what it is given, and gives what was given before, all zeros."""

    def __init__(self, result: Any) -> None:
        super().__init__()
        self.result = result
        self.given: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.given = (args, kwargs)
        return pytree.tree_map_only(Tensor, torch.zeros_like, self.result)


def _calls(model: nn.Module, paths: Sequence[str], program: Program) -> dict[str, tuple[Any, Any]]:
    """What each module is called with, and what it gives."""
    calls: dict[str, tuple[Any, Any]] = {}

    def hook(path: str) -> Any:
        return lambda _, args, kwargs, result: calls.__setitem__(path, ((args, kwargs), result))

    handles = [model.get_submodule(p).register_forward_hook(hook(p), with_kwargs=True) for p in paths]
    try:
        _run(model, program)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _run(model: nn.Module, program: Program) -> None:
    with in_eval_mode(model), torch.no_grad():
        model(*program.args, **program.kwargs)


def _put(model: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    for path, module in modules.items():
        owner, _, name = path.rpartition(".")
        setattr(model.get_submodule(owner), name, module)


def _stand_in(path: str, given: Any, result: Any, *, silent: bool = False) -> Removed:
    results, number = (len(result), 0) if isinstance(result, tuple) else (None, 0)
    if results is not None:
        number = next((k for k, part in enumerate(result) if isinstance(part, Tensor)), 0)
    made = result if results is None else result[number]
    if not isinstance(made, Tensor):
        raise SurgeryError(
            f"module {path!r} gives a {type(result).__name__}; a branch can go where its modules give a tensor, or "
            "a tuple that holds one: keep the branch"
        )
    shapes = [leaf.shape for leaf in pytree.tree_leaves(given) if isinstance(leaf, Tensor)]
    operand = next((k for k, shape in enumerate(shapes) if shape == made.shape), None)
    if operand is None and (silent or not shapes):
        raise SurgeryError(
            f"module {path!r} gives a tensor of shape {tuple(made.shape)} and is given none of that shape; zeros in "
            "its place cannot be shaped: keep the branch"
        )
    return Removed(operand or 0, silent=silent, results=results, result=number)


def removed_modules(model: nn.Module) -> dict[str, Mapping[str, Any]]:
    """Path -> the arguments that make its stand-in, for modules that a cut took out; as JSON can hold them."""
    return {
        path: {"operand": m.operand, "silent": m.silent, "results": m.results, "result": m.result}
        for path, m in model.named_modules()
        if isinstance(m, Removed)
    }


def remove_modules(model: nn.Module, removed: Mapping[str, Mapping[str, Any]]) -> None:
    """Put the stand-ins that `removed_modules` listed into a model of the same class."""
    _put(model, {path: Removed(**arguments) for path, arguments in removed.items()})
