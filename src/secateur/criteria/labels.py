"""Targets drawn from what a model itself predicts."""

from typing import Any

import torch
from torch import Tensor

from secateur.measures.counts import IGNORED_TARGET
from secateur.measures.outputs import logits


def sampled_targets(outputs: Any, targets: Any, generator: torch.Generator) -> Tensor:
    """One class for each prediction, drawn from the softmax of the scores.

    With them, second moments of gradients are those of the true Fisher information, which with a data set's
    own targets (the empirical Fisher) they are not. Draws are made sample by sample, so that the size of a batch
    changes nothing.

    Source: Martens and Grosse 2015, arXiv:1503.05671; Kunstner et al. 2019, arXiv:1905.12558.

    Args:
        outputs: of the model; scores are (samples, ..., classes).
        targets: where they are -100, they stay; None where there are none.
        generator: on the CPU.
    """
    scores = logits(outputs).detach()
    below = scores.double().softmax(-1).cumsum(-1)
    draws = [torch.rand(scores.shape[1:-1], generator=generator, dtype=torch.float64) for _ in range(len(scores))]
    uniform = torch.stack(draws).to(scores.device).unsqueeze(-1)
    drawn = torch.searchsorted(below, uniform * below[..., -1:]).squeeze(-1).clamp(max=scores.shape[-1] - 1)
    if isinstance(targets, Tensor) and targets.shape == drawn.shape and not targets.is_floating_point():
        drawn = torch.where(targets == IGNORED_TARGET, targets, drawn)
    return drawn
