"""Verification: whether two networks give the same outputs, in float64 where they run in it."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from secateur.graph.attention import unfused
from secateur.graph.copies import copy_of
from secateur.graph.trace import in_eval_mode

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
NARROWED_TOLERANCE = 2e-5
"""In float64, of a network that rounds to float32 inside."""


@dataclass(frozen=True, eq=False)
class Outputs:
    """What a network gives on the example inputs.

    Attributes:
        plain: the tensors, as it is.
        double: the tensors in float64; None if it cannot run so.
        narrowed: an operator inside the float64 run gave a narrower type.
    """

    plain: list[Tensor]
    double: list[Tensor] | None = None
    narrowed: bool = False


def all_outputs(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Outputs:
    """What `model` gives in eval mode, as it is and in float64. A copy is what is widened."""
    plain = outputs(model, args, kwargs)
    double, narrowed = outputs_double(copy_of(model), args, kwargs)
    return Outputs(plain, double, narrowed)


def outputs(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """Every tensor that the model gives in eval mode, without gradients."""
    return [leaf for leaf in output_leaves(model, args, kwargs) if isinstance(leaf, Tensor)]


def output_leaves(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
    """All that the model gives, whether tensors or not; what it draws at random is the same each time."""
    with in_eval_mode(model), torch.no_grad(), unfused(), torch.random.fork_rng():
        torch.manual_seed(0)
        return pytree.tree_leaves(model(*copy.deepcopy(args), **copy.deepcopy(dict(kwargs))))


def outputs_double(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[list[Tensor] | None, bool]:
    """Likewise in float64, and whether it was left on the way; None if the model cannot run in it.

    `model` is converted in place.
    """

    def widen(leaf: Any) -> Any:
        return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

    watch = Narrowing()
    try:
        with watch:
            return outputs(model.double(), *pytree.tree_map(widen, (args, dict(kwargs)))), watch.seen
    except Exception:
        return None, watch.seen


class Narrowing(TorchDispatchMode):
    """Sees whether some operator makes narrower real numbers out of float64.

    Models that compute a norm in float32 do so whatever they are given; there 1e-9 cannot be reached.

    >>> with Narrowing() as watch:
    ...     _ = torch.ones(2, dtype=torch.float64).to(torch.float32)
    >>> watch.seen
    True
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the operator and look at its types."""
        result = func(*args, **(kwargs or {}))
        if not self.seen and _is_double((args, kwargs)):
            given = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
            self.seen = any(t.is_floating_point() and t.dtype != torch.float64 for t in given)
        return result


def _is_double(value: Any) -> bool:
    return any(isinstance(leaf, Tensor) and leaf.dtype == torch.float64 for leaf in pytree.tree_leaves(value))


def disagreement(found: Outputs, expected: Outputs) -> str | None:
    """How what a network gives differs beyond rounding from what it should give; None if it does not."""
    if found.double is None or expected.double is None:
        return difference(found.plain, expected.plain)
    narrowed = found.narrowed or expected.narrowed
    return difference(found.double, expected.double, NARROWED_TOLERANCE if narrowed else None)


def difference(found: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float | None = None) -> str | None:
    """How two lists of outputs differ beyond rounding, relative to the largest value; None if not.

    Args:
        found: the outputs.
        expected: what they should be.
        tolerance: relative; what suits the type of the outputs, if not given.
    """
    if [t.shape for t in found] != [t.shape for t in expected]:
        return f"output shapes {[tuple(t.shape) for t in found]} instead of {[tuple(t.shape) for t in expected]}"
    for a, b in zip(found, expected, strict=True):
        if not (b.is_floating_point() or b.is_complex()):
            continue
        scale = float(b.abs().max()) if b.numel() else 0.0
        error = float((a - b).abs().max()) / max(scale, 1e-30) if b.numel() else 0.0
        allowed = TOLERANCE.get(b.dtype, 5e-2)
        if not error <= (allowed if tolerance is None else max(tolerance, allowed)):
            return f"outputs differ by {error:.1e} relative to the largest"
    return None
