"""The tensor of scores in whatever a model returns."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from secateur.errors import MetricError


def logits(outputs: Any) -> Tensor:
    """The scores: a tensor itself, `.logits`, `["logits"]`, `["out"]`, or the first element of a tuple.

    Raises:
        MetricError: the outputs are none of these.
    """
    if isinstance(outputs, Tensor):
        return outputs
    for key in ("logits", "out"):
        if isinstance(outputs, Mapping) and key in outputs:
            return logits(outputs[key])
    if hasattr(outputs, "logits"):
        return logits(outputs.logits)
    if isinstance(outputs, tuple | list) and outputs and isinstance(outputs[0], Tensor):
        return outputs[0]
    raise MetricError(
        f"the model returned a {type(outputs).__name__}, in which no scores were found; "
        "pass a metric and a loss that take it: (outputs, targets) -> one value a sample"
    )


def class_scores(outputs: Any, targets: Tensor) -> Tensor:
    """The scores with the classes last: (samples, classes, ...) is turned, (samples, ..., classes) stays.

    Where both could be meant, three dimensions are (samples, steps, classes), four or more are those of an image.
    A single class, which is there or not, gets no dimension.

    >>> import torch
    >>> class_scores(torch.zeros(2, 3, 4, 5), torch.zeros(2, 4, 5)).shape
    torch.Size([2, 4, 5, 3])
    """
    scores = logits(outputs)
    if scores.ndim != targets.ndim + 1:
        return scores
    is_last = scores.shape[:-1] == targets.shape
    is_second = scores.ndim > 2 and scores.shape[:1] + scores.shape[2:] == targets.shape
    turned = scores.movedim(1, -1) if is_second and (scores.ndim > 3 or not is_last) else scores
    return turned.squeeze(-1)
