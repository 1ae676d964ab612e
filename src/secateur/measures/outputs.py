"""The tensor of scores in whatever a model returns."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from secateur.errors import MetricError


def logits(outputs: Any) -> Tensor:
    """The scores: a tensor itself, `.logits`, `["logits"]`, or the first element of a tuple.

    Raises:
        MetricError: the outputs are none of these.
    """
    if isinstance(outputs, Tensor):
        return outputs
    if isinstance(outputs, Mapping) and "logits" in outputs:
        return logits(outputs["logits"])
    if hasattr(outputs, "logits"):
        return logits(outputs.logits)
    if isinstance(outputs, tuple | list) and outputs and isinstance(outputs[0], Tensor):
        return outputs[0]
    raise MetricError(
        f"the model returned a {type(outputs).__name__}, in which no scores were found; "
        "pass a metric and a loss that take it: (outputs, targets) -> one value a sample"
    )
