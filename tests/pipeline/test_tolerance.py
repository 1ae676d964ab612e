"""Percent given for a share is caught; what a loss may lose is not bounded."""

import numpy as np
import pytest

import secateur as sc
from secateur.measures.metrics import METRICS
from secateur.pipeline.tolerance import check_tolerance


def metric(*, higher: bool, bounds: tuple[float, float] | None = None) -> sc.Metric:
    return sc.Metric("m", lambda outputs, targets: outputs, higher_is_better=higher, bounds=bounds)


@pytest.mark.parametrize(
    ("found", "values", "refused"),
    [
        (METRICS["accuracy"], [1.0, 0.0], True),
        (metric(higher=True, bounds=(0, 100)), [1.0, 0.0], False),
        (metric(higher=True, bounds=(0, 2)), [1.0, 0.0], True),
        (metric(higher=True), [1.0, 0.3], True),
        (metric(higher=True), [0.5, 1.3], False),
        (metric(higher=True), [-0.5, 0.3], False),
        (metric(higher=False), [1.0, 0.0], True),
        (metric(higher=False), [1.0, 0.3], False),
        (metric(higher=False), [0.0, 0.0], True),
        (METRICS["perplexity"], [[8.0, 4.0], [4.0, 4.0]], False),
        (METRICS["f1"], [[1.0, 1.0, 0.0, 1.0, 1.0, 0.0]], True),
    ],
)
def test_a_tolerance_of_two_is_refused_where_no_more_than_that_can_be_lost(found, values, refused: bool) -> None:
    check_tolerance(0.5, found, np.array(values))
    if refused:
        with pytest.raises(sc.ArgumentError, match=f"largest possible damage to {found.name}"):
            check_tolerance(2.0, found, np.array(values))
    else:
        check_tolerance(2.0, found, np.array(values))
