"""From a module to its program: every operator, every shape, and where each came from."""

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from secateur.errors import NumericalError, TraceError


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
        trained: canonical names of parameters (the others are buffers).
        model_type: qualified name of the model's class.
    """

    model: nn.Module
    graph: fx.Graph
    user_inputs: tuple[str, ...]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    names: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]
    aliases: Mapping[str, str]
    trained: frozenset[str]
    model_type: str

    @property
    def nodes(self) -> list[fx.Node]:
        """The operators, in the order in which they run."""
        return list(self.graph.nodes)


def trace(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None) -> Program:
    """Export `model` in eval mode and remember which tensor of its state each input of the program is.

    The model is left as it was: its train/eval flags are put back, its tensors are not copied.

    Args:
        model: any module that `torch.export.export(strict=False)` accepts.
        args: example inputs, as a tuple; batch dimension first.
        kwargs: example inputs by keyword.

    Raises:
        TraceError: the example inputs do not fit, or the model cannot be exported.
        NumericalError: a weight is NaN or infinite.

    >>> program = trace(nn.Linear(3, 2), (torch.zeros(1, 3),))
    >>> program.shapes["weight"]
    (2, 3)
    """
    if not isinstance(args, tuple):
        raise TraceError(f"args is a {type(args).__name__}; needed a tuple of example inputs, such as (x,)")
    kwargs = dict(kwargs or {})
    check_finite_weights(model)
    with in_eval_mode(model):
        _check_inputs_fit(model, args, kwargs)
        exported = _export(model, args, kwargs)
    aliases = canonical_names(model)
    signature = exported.graph_signature
    inputs = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    state = named_state(model)
    return Program(
        model=model,
        graph=exported.graph,
        user_inputs=tuple(str(name) for name in signature.user_inputs),
        args=args,
        kwargs=kwargs,
        names={placeholder: aliases[name] for placeholder, name in inputs.items() if name in aliases},
        shapes={name: tuple(state[name].shape) for name in dict.fromkeys(aliases.values())},
        aliases=aliases,
        trained=frozenset(aliases[name] for name, _ in model.named_parameters()),
        model_type=f"{type(model).__module__}.{type(model).__qualname__}",
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


def check_finite_weights(model: nn.Module) -> None:
    """Refuse a model with a weight that is not finite (buffers may be: attention masks hold -inf).

    Raises:
        NumericalError: names the first such parameter.
    """
    for name, parameter in model.named_parameters():
        bad = 0 if parameter.is_meta else int((~parameter.detach().isfinite()).sum())
        if bad:
            raise NumericalError(
                f"parameter {name!r} holds {bad} values that are NaN or infinite; load sound weights before pruning"
            )


def _check_inputs_fit(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    try:
        with torch.no_grad():
            model(*args, **kwargs)
    except Exception as error:
        shapes = [tuple(leaf.shape) for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        raise TraceError(
            f"{type(model).__name__} does not run on the example inputs (tensor shapes {shapes}): "
            f"{_first_line(error)}; pass args=(...) as you would call the model"
        ) from error


def _export(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ExportedProgram:
    with warnings.catch_warnings():
        # nn.LSTM keeps its weights in a plain list too, which export remarks on and restores.
        warnings.filterwarnings("ignore", message=".*were assigned during export.*")
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        try:
            return torch.export.export(model, args, kwargs, strict=False)
        except Exception as error:
            raise TraceError(
                f"torch.export cannot capture {type(model).__name__}: {_first_line(error)}; "
                "the usual cause is Python control flow that depends on the values of tensors: "
                "rewrite it with torch.where, or trace the part of the model that is free of it"
            ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
