"""What a model costs: counted, and timed if asked."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from secateur.measures.latency import time_models
from secateur.measures.macs import count_bytes, count_macs, count_params
from secateur.types import Cost


def measure(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    *,
    latency: bool = True,
) -> Cost:
    """Multiply-adds, parameters, bytes and (if asked) latency of one call in eval mode.

    Args:
        model: left as it is.
        args: inputs of the call.
        kwargs: inputs by keyword.
        latency: time the call too: median and interquartile range, with torch's current threads.

    >>> import torch
    >>> measure(nn.Linear(3, 2), (torch.zeros(1, 3),), latency=False)
    Cost(macs=6, params=8, memory_bytes=32, latency_s=None, latency_iqr_s=None)
    """
    counted = (count_macs(model, args, kwargs), count_params(model), count_bytes(model))
    if not latency:
        return Cost(*counted)
    timed = time_models([model], args, kwargs)[0]
    return Cost(*counted, timed.median_s, timed.iqr_s)
