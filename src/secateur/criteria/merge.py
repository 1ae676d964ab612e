"""Statistics of two parts of the calibration data, as if it had been one."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import torch

from secateur.criteria.statistics import Consumer, Statistics
from secateur.errors import ArgumentError

T = TypeVar("T")


def merge(a: Statistics, b: Statistics) -> Statistics:
    """Statistics of the data of both: of two workers, say, each of which read a half.

    Sums are added, so the parts may be of any sizes; the Hessian's diagonal, that of the mean loss, is averaged
    over the samples of both. Both must be of the same weights and have been asked for the same.

    Args:
        a: of one part.
        b: of the other; collected with the same `needs` and `seed`.

    Raises:
        ArgumentError: the weights differ, or one holds statistics that the other lacks.

    >>> from torch import nn
    >>> from secateur.criteria.collect import collect
    >>> model, x = nn.Linear(1, 1), torch.tensor([[1.0], [2.0]])
    >>> halves = [collect(model, [], [part], needs={"grams"}) for part in x.split(1)]
    >>> merge(*halves).consumers[0].gram.total.tolist()
    [[[5.0, 3.0], [3.0, 2.0]]]
    """
    if a.weights.keys() != b.weights.keys():
        raise ArgumentError("merge was given statistics of different models: the names of their parameters differ")
    for name, weight in a.weights.items():
        if not torch.equal(weight.cpu(), b.weights[name].cpu()):
            raise ArgumentError(
                f"merge was given statistics of different weights: parameter {name!r} differs; "
                "collect both from one state"
            )
    samples = a.samples + b.samples
    return Statistics(
        a.weights,
        samples,
        _both("gates", a.gates, b.gates, lambda x, y: x + y),
        _both("gradients", a.gradients, b.gradients, lambda x, y: x + y),
        _consumers(a, b),
        _both(
            "hessian_diagonal",
            a.hessian_diagonal,
            b.hessian_diagonal,
            lambda x, y: (x * a.samples + y.to(x.device) * b.samples) / max(samples, 1),
        ),
        a.notes + tuple(note for note in b.notes if note not in a.notes),
    )


def _both(what: str, a: Mapping[str, T], b: Mapping[str, T], add: Callable[[T, T], T]) -> dict[str, T]:
    if a.keys() != b.keys():
        odd = sorted(a.keys() ^ b.keys())[0]
        raise ArgumentError(f"only one of the statistics has {what} of {odd!r}; collect both with the same needs")
    return {name: add(value, b[name]) for name, value in a.items()}


def _consumers(a: Statistics, b: Statistics) -> tuple[Consumer, ...]:
    """Those of either: a part of the data may have made uses that the other did not."""
    others = {(c.place, c.form): c for c in b.consumers}
    merged = [_consumer(c, others.pop((c.place, c.form), None)) for c in a.consumers]
    return (*merged, *others.values())


def _consumer(a: Consumer, b: Consumer | None) -> Consumer:
    if b is None:
        return a
    return replace(
        a,
        calls=max(a.calls, b.calls),
        moments=_sum(a, "moments", a.moments, b.moments),
        gram=_sum(a, "a Gram", a.gram, b.gram),
        output_gradients=_sum(a, "output gradients", a.output_gradients, b.output_gradients),
    )


def _sum(consumer: Consumer, what: str, a: Any, b: Any) -> Any:
    if (a is None) != (b is None):
        raise ArgumentError(
            f"only one of the statistics has {what} of {consumer.place.name!r}; collect both with the same needs"
        )
    return None if a is None else a + b
