"""A run on all calibration batches in which every weight's inputs are known before the weight is used."""

import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from secateur.capture.calls import Call
from secateur.capture.lockstep import Event, Norm, in_lockstep
from secateur.capture.parking import Parking
from secateur.capture.recurrent import Layer
from secateur.capture.watch import Places, watching
from secateur.data import Batch, to_device
from secateur.graph.trace import named_state
from secateur.sparsity.seen import Seen, seen_calls
from secateur.sparsity.seen_recurrent import role_of, seen_layer
from secateur.sparsity.weights import Weight, name_of, uses

OnNorms = Callable[[Sequence[Norm], Sequence[Norm] | None], None]


def weights_with_inputs(
    model: nn.Module,
    batches: Sequence[Batch],
    weights: Sequence[Weight],
    *,
    dense: nn.Module | None = None,
    on_norms: OnNorms | None = None,
    held: Parking | None = None,
) -> Iterator[tuple[Weight, Seen]]:
    """Each weight once, before its first use, with its inputs as what runs before it makes them.

    Whoever iterates may change the weight in place. Inputs of weights that are used several times are gathered
    over all their uses in a run of their own, before anything is changed.

    Args:
        model: run in the mode that it is in.
        batches: calibration data.
        weights: those that are wanted.
        dense: runs beside it; its outputs are what a weight's outputs should be. None: those that the weight makes
            of the inputs that it is given. Weights that are used several times go by the latter.
        on_norms: told of a batch norm, on all batches, before it runs, and of the same in the dense model.
        held: keeps what is not at work on disk.
    """
    state, places = named_state(model), Places(model)
    waiting = {weight.name: weight for weight in weights}
    together = _seen_together(model, batches, [w for w in weights if w.uses > 1])
    # The same calls in the same order: only values differ.
    beside = itertools.repeat(None) if dense is None else in_lockstep(dense, batches, is_fixed=held is None, held=held)
    for events, targets in zip(in_lockstep(model, batches, held=held), beside, strict=False):
        if on_norms is not None and isinstance(events[0], Norm):
            on_norms(_norms(events), None if targets is None else _norms(targets))
        for use in uses(events[0], places):
            weight = waiting.pop(name_of(use.place, len(state[use.place.name])), None)
            if weight is not None:
                seen = together.get(weight.name)
                yield weight, seen if seen is not None else _seen(events, targets, weight, places)


def _seen(events: Sequence[Event], targets: Sequence[Event] | None, weight: Weight, places: Places) -> Seen:
    if isinstance(events[0], Call):
        return seen_calls(_calls(events), None if targets is None else _calls(targets))

    layers = _layers(events)
    role = role_of(layers[0], lambda values: places.find(values) == weight.place)
    return seen_layer(layers, role, None if targets is None else _layers(targets))


def _layers(events: Sequence[Event]) -> list[Layer]:
    return [e for e in events if isinstance(e, Layer)]


def _norms(events: Sequence[Event]) -> list[Norm]:
    return [e for e in events if isinstance(e, Norm)]


def _calls(events: Sequence[Event]) -> list[Call]:
    return [e for e in events if isinstance(e, Call)]


def _seen_together(model: nn.Module, batches: Sequence[Batch], weights: Sequence[Weight]) -> dict[str, Seen]:
    """Inputs of weights that are used several times, over all uses."""
    found: dict[str, Seen] = {}
    wanted = {weight.place: weight.name for weight in weights}
    first = 0

    def visit(call: Call) -> Tensor:
        name = wanted.get(call.weight)
        if name is not None:
            seen = seen_calls([call], first=first)
            found[name] = found[name] + seen if name in found else seen
        return call.run()

    if weights:
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        with watching(model, visit):
            for batch in batches:
                moved = to_device(batch, device)
                model(*moved.args, **moved.kwargs)
                first += batch.size
    return found
