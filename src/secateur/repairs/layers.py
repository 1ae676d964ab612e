"""Recurrent layers of the cut model."""

from secateur.capture.recurrent import Layer
from secateur.repairs.changes import NO_BETTER, REORDERED, REPEATED_LAYER, Change, Mended, left
from secateur.repairs.recurrent import ROLES, Pair, kept_of, repaired_layer
from secateur.repairs.walk import Models, Step, only


def mended_layer(step: Step, models: Models, *, is_repeated: bool) -> Mended:
    """Fit one layer in one direction, if its outputs on held-out samples come closer to the dense ones.

    Raises:
        NumericalError: inputs or states that are not finite.
    """
    pairs = [Pair(old, new) for old, new in zip(only(step.before, Layer), only(step.now, Layer), strict=True)]
    if not step.where or not (models.reach == "all" or _is_cut(pairs[0])):
        return Mended()
    if is_repeated:
        return left(step.where, REPEATED_LAYER)

    def name(tensor: object) -> str:
        place = models.dense_places.find(tensor)
        return place.name if place else ""

    kept = kept_of(pairs[0], name, models.marks)
    if kept is None:
        return left(step.where, REORDERED)
    outcome = repaired_layer(pairs, kept, step.where)
    if not outcome.after < outcome.before:
        return left(step.where, NO_BETTER)
    for role, values in outcome.values.items():
        getattr(pairs[0].small.weights, role).copy_(values)
    return Mended((Change(step.where, "recurrent", outcome.before, outcome.after),))


def _is_cut(pair: Pair) -> bool:
    """Whether one of the weights lost columns."""
    both = [(getattr(pair.small.weights, role), getattr(pair.dense.weights, role)) for role in ROLES]
    return any(small.shape[1] < dense.shape[1] for small, dense in both if small is not None)
