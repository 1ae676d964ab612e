"""Metrics of whole data sets as functions of sums over samples: perplexity, F1, mean intersection over union."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from secateur.measures.outputs import class_scores

IGNORED_TARGET = -100
PAIR = 2
"""Columns of a row that names target and prediction; those of counts are three for each class."""


def token_losses(outputs: Any, targets: Tensor) -> Tensor:
    """Summed negative log-likelihood of a sample's targets, and how many they are: (samples, 2)."""
    scores = class_scores(outputs, targets)
    losses = functional.cross_entropy(
        scores.flatten(0, -2).double(), targets.flatten(), reduction="none", ignore_index=IGNORED_TARGET
    )
    counted = (targets != IGNORED_TARGET).reshape(len(targets), -1).sum(1)
    return torch.stack([losses.reshape(len(targets), -1).sum(1), counted.double()], dim=1)


def perplexity(sums: Tensor) -> Tensor:
    """Of summed negative log-likelihoods and counts.

    >>> perplexity(torch.tensor([0.0, 4.0])).item()
    1.0
    """
    return torch.exp(sums[0] / sums[1].clamp(min=1))


def confusion(outputs: Any, targets: Tensor) -> Tensor:
    """What is right and wrong of a sample, by class.

    One class a sample: (samples, 2), which is less to keep: target x classes + prediction, -1 where the target is
    ignored; and the number of classes. Else (samples, 3 x classes): counts of what is rightly, wrongly and not found.
    Scores without a dimension of classes say what is there (> 0): one label, or one for each entry of dimension 1.

    >>> confusion(torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 0])).tolist()
    [[0.0, 2.0], [1.0, 2.0]]
    """
    scores = class_scores(outputs, targets)
    if scores.ndim == targets.ndim:
        return _labels(scores > 0, targets)
    classes, best = scores.shape[-1], scores.argmax(-1)
    if targets.ndim > 1:
        return _counts(targets.flatten(1), best.flatten(1), classes)
    pairs = (targets * classes + best).masked_fill(targets == IGNORED_TARGET, -1)
    return torch.stack([pairs, torch.full_like(pairs, classes)], dim=1).double()


def by_class(rows: Tensor) -> Tensor:
    """Rows of `confusion` as counts: (samples, 3 x classes).

    >>> by_class(torch.tensor([[0.0, 2.0], [1.0, 2.0]])).tolist()
    [[1.0, 0.0, 0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0, 1.0, 0.0]]
    """
    if rows.shape[1] != PAIR:
        return rows
    pairs, classes = rows[:, :1].long(), int(rows[:, 1].max())
    return _counts(pairs // classes, pairs % classes, classes)


def f1(sums: Tensor) -> Tensor:
    """Mean over the classes that occur (as target or prediction) of 2 right / (2 right + wrong + missed).

    >>> f1(torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0, 0.0])).item()
    0.6666666865348816
    """
    right, wrong, missed = sums.reshape(3, -1)
    return _mean_where_there(2 * right, 2 * right + wrong + missed)


def mean_iou(sums: Tensor) -> Tensor:
    """Mean over the classes that occur of the intersection over the union of targets and predictions.

    >>> mean_iou(torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0, 0.0])).item()
    0.5
    """
    right, wrong, missed = sums.reshape(3, -1)
    return _mean_where_there(right, right + wrong + missed)


def _mean_where_there(part: Tensor, whole: Tensor) -> Tensor:
    is_there = (whole > 0).to(part.dtype)
    return (is_there * part / whole.clamp(min=1)).sum() / is_there.sum().clamp(min=1)


def _labels(found: Tensor, targets: Tensor) -> Tensor:
    # (samples, labels, ...): two dimensions are labels; of three, both others are positions of a single one.
    labels = 1 if targets.ndim in {1, 3} else targets.shape[1]
    there, real = (part.reshape(len(targets), labels, -1) for part in (found, targets > 0))
    counted = (targets != IGNORED_TARGET).reshape(there.shape)
    parts = there & real & counted, there & ~real & counted, ~there & real & counted
    return torch.cat([part.sum(2) for part in parts], dim=1).double()


def _counts(targets: Tensor, found: Tensor, classes: int) -> Tensor:
    """(samples, positions) -> (samples, 3 x classes) of what is rightly, wrongly and not found."""
    counted = targets >= 0
    rows = torch.arange(len(targets), device=targets.device).unsqueeze(1) * classes

    def count(classes_at: Tensor, chosen: Tensor) -> Tensor:
        at = (rows + classes_at)[chosen & counted]
        return torch.bincount(at, minlength=len(targets) * classes).reshape(-1, classes)

    is_right = targets == found
    return torch.cat([count(found, is_right), count(found, ~is_right), count(targets, ~is_right)], dim=1).double()
