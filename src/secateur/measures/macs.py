"""Multiply-adds, parameters and bytes, counted on the real module."""

import contextlib
import math
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from secateur.graph.attention import unfused
from secateur.graph.copies import copy_of
from secateur.graph.trace import in_eval_mode


def count_macs(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None) -> int:
    """Multiply-adds of one call in eval mode (one multiply-add = 1).

    Counted by torch's own counter on the meta device, where it misses no operator; a model that
    cannot run there is counted on its own device with the fused kernels that the counter does not
    see switched off.

    >>> count_macs(nn.Linear(3, 2), (torch.zeros(5, 3),))
    30
    """
    with unfused():
        try:
            return _count(_frozen(model).to("meta"), *_on_meta(args, dict(kwargs or {})))
        except Exception:
            with _plain_kernels():
                return _count(_frozen(model), args, dict(kwargs or {}))


def count_params(model: nn.Module) -> int:
    """Parameter elements; tied ones count once.

    >>> count_params(nn.Linear(3, 2))
    8
    """
    return sum(p.numel() for p in model.parameters())


def count_bytes(model: nn.Module) -> int:
    """Bytes of parameters and buffers.

    >>> count_bytes(nn.Linear(3, 2))
    32
    """
    return sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])


def _count(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    with in_eval_mode(model), torch.no_grad(), _counter() as counter:
        model(*args, **kwargs)
    return int(counter.get_total_flops()) // 2


def _frozen(model: nn.Module) -> nn.Module:
    """A copy without gradients: torch's counter hooks what needs them, and fails on parameters handed on."""
    return copy_of(model).requires_grad_(False)


def _counter() -> FlopCounterMode:
    """Torch's counter, taught the contractions that it misses: `nn.Bilinear`, matrix times vector, dot products."""
    aten = torch.ops.aten
    more = {
        aten._trilinear: _trilinear_flops,
        aten.mv: _elements_flops,
        aten.dot: _elements_flops,
        aten.vdot: _elements_flops,
    }
    return FlopCounterMode(display=False, custom_mapping=more)


def _elements_flops(first: tuple[int, ...], *_: Any, **__: Any) -> int:
    return 2 * math.prod(first)


def _trilinear_flops(
    a: tuple[int, ...],
    b: tuple[int, ...],
    c: tuple[int, ...],
    expand_a: tuple[int, ...],
    expand_b: tuple[int, ...],
    expand_c: tuple[int, ...],
    *_: Any,
    **__: Any,
) -> int:
    shapes = [_expanded(shape, dims) for shape, dims in ((a, expand_a), (b, expand_b), (c, expand_c))]
    sizes: list[int] = [max(places) for places in zip(*shapes, strict=True)]
    return 2 * math.prod(sizes)


def _expanded(shape: tuple[int, ...], dims: tuple[int, ...]) -> list[int]:
    sizes = list(shape)
    for dim in sorted(dims):
        sizes.insert(dim, 1)
    return sizes


@contextlib.contextmanager
def _plain_kernels() -> Iterator[None]:
    """Kernels made of operators that the counter knows."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*TF32 acceleration.*")
        with torch.backends.mkldnn.flags(enabled=False), sdpa_kernel(SDPBackend.MATH):
            yield


def _on_meta(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    def move(leaf: Any) -> Any:
        return leaf.to("meta") if isinstance(leaf, Tensor) else leaf

    moved: tuple[tuple[Any, ...], dict[str, Any]] = pytree.tree_map(move, (args, kwargs))
    return moved
