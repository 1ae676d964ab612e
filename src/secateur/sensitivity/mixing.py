"""Whether samples can be drawn: a model gives for some of a batch what it gives for them among the others."""

import numpy as np
import torch

from secateur.errors import DataError
from secateur.sensitivity.probe import Probe

ROUNDING, SPREAD, FEW = 1e-3, 0.1, 0.1
"""What sums in another order may change in a loss, as a part of it and of the spread of all; in how many, more."""


MOST = 64
"""Samples that are tried."""


def check_drawing(prober: Probe) -> None:
    """Run every other sample of the first batch, or of its beginning, without the others, in reverse order.

    Raises:
        DataError: their losses are others, or the model fails.
    """
    batch = next(iter(prober.data))
    rows = torch.arange(min(batch.size, MOST) - 1, -1, -2)
    try:
        several = batch if batch.size <= MOST else batch.take(torch.arange(MOST))
        among = prober.evaluated(prober.model, [several]).loss[rows.numpy()]
        alone = prober.evaluated(prober.model, [batch.take(rows)]).loss
        is_far = ~np.isclose(alone, among, rtol=ROUNDING, atol=SPREAD * prober.baseline.loss.std())
        found = f"the losses of {is_far.sum()} of {len(rows)} samples are others" if is_far.mean() > FEW else ""
    except Exception as error:
        found = f"the model fails ({type(error).__name__}: {error})"
    if found:
        raise DataError(
            f"a race draws samples, but where some of the first batch of {prober.data.name} are run without the "
            f"others, {found}: a tensor as long as the batch holds something else than its samples, or samples depend "
            "on each other; pass such a tensor with a first dimension of 1, or racing=None"
        )
