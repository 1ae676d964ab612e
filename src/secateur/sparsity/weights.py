"""The weights of a model that multiply inputs, found by running one sample."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from secateur.capture.calls import Call, Place
from secateur.capture.forms import Dense, Form
from secateur.capture.lockstep import Event, Norm, in_lockstep
from secateur.capture.parking import Parking
from secateur.capture.recurrent import Layer
from secateur.capture.watch import Places
from secateur.data import Batch
from secateur.graph.trace import named_state


@dataclass(frozen=True, eq=False)
class Weight:
    """A weight, or rows of one, that the model multiplies inputs with.

    Attributes:
        name: of the parameter, with the rows where it is not all of them: `"attention.in_proj_weight[0:64]"`.
        place: where it lies.
        bias: where its bias lies; None without one.
        form: how it is a matrix; of its first use.
        shape: of these rows.
        uses: how often it is used for one sample; a recurrent layer that runs once counts as one.
        is_normed: a batch norm follows directly, which takes off any constant.
    """

    name: str
    place: Place
    bias: Place | None
    form: Form
    shape: tuple[int, ...]
    uses: int
    is_normed: bool

    def matrix(self, state: dict[str, Tensor]) -> Tensor:
        """Its values in a model's state: float64 (groups, rows, columns)."""
        return self.form.matrix(self.rows(state)).double()

    def rows(self, state: dict[str, Tensor]) -> Tensor:
        """Its values in a model's state, as they lie there."""
        return state[self.place.name].detach()[self.place.start : self.place.stop]

    @property
    def size(self) -> int:
        """Number of weights."""
        return int(torch.Size(self.shape).numel())


def name_of(place: Place, length: int) -> str:
    """The parameter's name, with the rows where they are not all of them.

    >>> name_of(Place("w", 0, 4), 4), name_of(Place("w", 0, 2), 4)
    ('w', 'w[0:2]')
    """
    whole = place.start == 0 and place.stop == length
    return place.name if whole else f"{place.name}[{place.start}:{place.stop}]"


@dataclass(frozen=True, eq=False)
class _Use:
    place: Place
    bias: Place | None
    form: Form
    values: Tensor


def uses(event: Event, places: Places) -> Iterator[_Use]:
    """The weights that an event is about to use."""
    if isinstance(event, Call):
        yield _Use(event.weight, event.bias, event.form, event.values)
    if isinstance(event, Layer):
        weights = event.weights
        for values, bias in ((weights.ih, weights.bias_ih), (weights.hh, weights.bias_hh), (weights.hr, None)):
            place = places.find(values)
            if place is not None and values is not None:
                yield _Use(place, places.find(bias), Dense(), values)


def find_weights(model: nn.Module, sample: Batch, held: Parking | None = None) -> list[Weight]:
    """All weights of the model that can be made sparse, in the order of their first use.

    Args:
        model: run in the mode that it is in.
        sample: one sample is enough.
        held: keeps what is not at work on disk.

    >>> [w.name for w in find_weights(nn.Linear(2, 3), Batch((torch.ones(1, 2),), {}, None))]
    ['weight']
    """
    places, state = Places(model), named_state(model)
    found: dict[str, _Use] = {}
    counts: Counter[str] = Counter()
    normed: set[str] = set()
    latest: tuple[str, Tensor] | None = None
    for (event,) in in_lockstep(model, [sample], held=held):
        if isinstance(event, Norm) and latest is not None and _same(latest[1], event.inputs):
            normed.add(latest[0])
        latest = None
        for use in uses(event, places):
            name = name_of(use.place, len(state[use.place.name]))
            found.setdefault(name, use)
            counts[name] += 1
            if isinstance(event, Call):
                latest = name, event.run()
    return [
        Weight(name, use.place, use.bias, use.form, tuple(use.values.shape), counts[name], name in normed)
        for name, use in found.items()
        if not _overlaps(name, found)
    ]


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)


def _overlaps(name: str, found: dict[str, _Use]) -> bool:
    """Whether an earlier use is of some of the same rows, but not all."""
    mine = found[name].place
    for other, use in found.items():
        if other == name:
            return False
        if use.place.name == mine.name and use.place.start < mine.stop and mine.start < use.place.stop:
            return True
    return False
