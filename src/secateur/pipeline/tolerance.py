"""Which tolerances mean something, given what the dense model reaches."""

import math

import numpy as np

from secateur.errors import ArgumentError
from secateur.measures.metrics import Metric
from secateur.types import Floats


def check_tolerance(tolerance: float, metric: Metric, values: Floats) -> None:
    """Refuse a tolerance that no model could exceed: percent given for a share, as a rule.

    Args:
        tolerance: positive.
        metric: what it is about.
        values: of the dense model's samples. Without bounds, a metric of which all are 0 or 1, or that is better
            where it is higher and lies in between, is taken to be a share.

    Raises:
        ArgumentError: such a tolerance.

    >>> loss = Metric("loss", lambda outputs, targets: outputs, higher_is_better=False)
    >>> check_tolerance(2.0, loss, np.array([0.1, 0.7]))
    """
    if metric.aggregate is None and metric.bounds is not None:
        largest = metric.bounds[1] - metric.bounds[0]
    else:
        rows = values if metric.aggregate is None else np.array([metric.value(values)])
        in_between = bool((rows >= 0).all() and (rows <= 1).all()) and metric.higher_is_better
        largest = 1.0 if in_between or np.isin(rows, (0, 1)).all() else math.inf
    if tolerance >= largest:
        raise ArgumentError(
            f"tolerance={tolerance} is no less than the largest possible damage to {metric.name}, {largest:g}; it is "
            "in units of the metric: 0.01 is one point of accuracy"
        )
