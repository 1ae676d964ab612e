"""The cut and the dense model on their way through the calibration data, side by side."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from secateur.capture.calls import Call, Place
from secateur.capture.lockstep import End, Event, Norm, in_lockstep
from secateur.capture.recurrent import Layer
from secateur.capture.watch import Places
from secateur.data import Batch
from secateur.graph.trace import Program, named_state
from secateur.surgery.tensors import Marked

Reach = Literal["cut", "all"]
_Event = TypeVar("_Event")


@dataclass(frozen=True, eq=False)
class Models:
    """Both models, the data, and how to repair.

    Attributes:
        small: the cut model.
        dense: what it was cut from.
        program: of the dense model.
        marks: what was removed, by the names of its parameters and buffers.
        batches: calibration data.
        reach: "all" linear maps, or those that were "cut".
        ridges: candidates.
        rows_per_column: so many positions are drawn for each column of a fit.
        state: tensors of the cut model, by name.
        small_places: where they lie.
        dense_places: where those of the dense model lie.
    """

    small: nn.Module
    dense: nn.Module
    program: Program
    marks: Mapping[str, Sequence[Marked]]
    batches: Sequence[Batch]
    reach: Reach
    ridges: Sequence[float]
    rows_per_column: int
    state: Mapping[str, Tensor]
    small_places: Places
    dense_places: Places


def models_of(
    small: nn.Module,
    dense: nn.Module,
    program: Program,
    marks: Mapping[str, Sequence[Marked]],
    batches: Sequence[Batch],
    reach: Reach,
    ridges: Sequence[float],
    rows_per_column: int,
) -> Models:
    """With where their tensors lie."""
    given = (small, dense, program, marks, batches, reach, ridges, rows_per_column)
    return Models(*given, named_state(small), Places(small), Places(dense))


@dataclass(frozen=True, eq=False)
class Step:
    """What both models are about to do.

    Attributes:
        where: name of the weight, or of its rows; of a recurrent layer, its first weight; of a batch norm, its mean.
        before: the dense model's, one event for each batch; empty where it does nothing of the kind.
        now: the cut model's.
    """

    where: str
    before: Sequence[Event]
    now: Sequence[Event]


def side_by_side(models: Models) -> Iterator[Step]:
    """All steps of the cut model; what only the dense one does is passed over.

    The last step is the end, or the first one that the dense model does not make.
    """
    steps = in_lockstep(models.dense, models.batches, is_fixed=True)
    for now in in_lockstep(models.small, models.batches):
        wanted = _key(now[0], models.small_places)
        where = where_of(now[0], models)
        before = next(steps)
        while _key(before[0], models.dense_places) != wanted:
            if isinstance(before[0], End):
                yield Step(where, (), now)
                return
            before = next(steps)
        yield Step(where, before, now)


def uses_of(models: Models) -> Counter[tuple[type[Event], str]]:
    """How often the cut model does what, where; found by a run of one sample."""
    one = models.batches[0].take(torch.tensor([0]))
    return Counter((type(events[0]), where_of(events[0], models)) for events in in_lockstep(models.small, [one]))


def calls_of(uses: Mapping[tuple[type[Event], str], int]) -> Counter[str]:
    """How often each parameter, or some rows of it, is seen to be used as a linear map.

    >>> calls_of({(Call, "in[0:2]"): 1, (Call, "in[2:4]"): 1, (Norm, "mean"): 1})
    Counter({'in': 2})
    """
    found: Counter[str] = Counter()
    for (kind, where), count in uses.items():
        if kind is Call:
            found[where.partition("[")[0]] += count
    return found


def where_of(event: Event, models: Models) -> str:
    """The name of what the cut model is about to use."""
    if isinstance(event, Call):
        return rows_of(event.weight, models)
    return _key(event, models.small_places)[1]


def rows_of(place: Place, models: Models) -> str:
    """The name of a parameter of the cut model, with the rows where they are not all.

    >>> from types import SimpleNamespace
    >>> models = SimpleNamespace(state={"in": torch.zeros(6, 1)})
    >>> rows_of(Place("in", 4, 6), models), rows_of(Place("in", 0, 6), models)
    ('in[4:6]', 'in')
    """
    is_whole = place.stop - place.start == len(models.state[place.name])
    return place.name if is_whole else f"{place.name}[{place.start}:{place.stop}]"


def only(events: Sequence[Event], kind: type[_Event]) -> list[_Event]:
    """The events of one kind."""
    return [event for event in events if isinstance(event, kind)]


def _key(event: Event, places: Places) -> tuple[str, str]:
    """What an event of one model and one of the other have in common."""
    if isinstance(event, Call):
        return "call", event.weight.name
    tensor = event.weights.ih if isinstance(event, Layer) else event.mean if isinstance(event, Norm) else None
    place = places.find(tensor)
    return type(event).__name__, place.name if place else ""
