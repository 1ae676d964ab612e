"""What a model gives on each validation sample, filled in as it is measured, and what is lost by it."""

from collections.abc import Mapping

import numpy as np

from secateur.sensitivity.stages import Samples
from secateur.types import Evaluation, Floats

OTHER = "metric "


def by_name(values: Evaluation) -> dict[str, Floats]:
    """The arrays by the names under which a store keeps them."""
    return {"metric": values.metric, "loss": values.loss} | {OTHER + n: v for n, v in values.others.items()}


def like(baseline: Evaluation, known: Mapping[str, Floats] | None = None) -> Evaluation:
    """Values in the shape of the baseline's: those known, or NaN where they are not known or of another shape.

    >>> like(Evaluation(np.zeros(2), np.zeros(2))).loss.tolist()
    [nan, nan]
    """
    shapes = {name: array.shape for name, array in by_name(baseline).items()}
    if known is None or {name: array.shape for name, array in known.items()} != shapes:
        known = {name: np.full(shape, np.nan) for name, shape in shapes.items()}
    return Evaluation(known["metric"], known["loss"], {name: known[OTHER + name] for name in baseline.others})


def fill(values: Evaluation, part: Evaluation, samples: Samples) -> None:
    """Put in what a model gave for some samples; NaN, which would mean that nothing was measured, is infinite."""
    new = by_name(part)
    for name, array in by_name(values).items():
        array[samples] = np.where(np.isfinite(new[name]), new[name], np.inf)


def overwrite(values: Evaluation, arrays: Mapping[str, Floats]) -> None:
    """Take all values from arrays by name, in place."""
    for name, array in by_name(values).items():
        array[:] = arrays[name]


def unseen(values: Evaluation) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """Which samples are not measured yet."""
    return np.isnan(values.loss)
