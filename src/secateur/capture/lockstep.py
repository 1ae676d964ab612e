"""Run a model on several batches at once, call by call, so that a weight can be changed before it is used.

Every batch has a thread of its own, of which one runs at a time: it stops before each use of a weight until
all others have reached that use too. Memory: the activations that are alive at that point, for all batches.
"""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from secateur.capture.calls import Call, Run
from secateur.capture.parking import Parking, watched
from secateur.capture.recurrent import Layer
from secateur.capture.watch import Places, Watcher, headwise
from secateur.data import Batch, to_device


@dataclass(frozen=True, eq=False)
class Norm:
    """A batch norm about to be applied.

    Attributes:
        inputs: (samples, channels, ...).
        mean: the running mean that it will read; None if it has none.
        variance: likewise.
        apply: normalises any inputs with the values that the statistics have then.
    """

    inputs: Tensor
    mean: Tensor | None
    variance: Tensor | None
    apply: Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class End:
    """The model has returned."""

    outputs: Any


Event = Call | Layer | Norm | End


def in_lockstep(
    model: nn.Module, batches: Sequence[Batch], *, is_fixed: bool = False, held: Parking | None = None
) -> Iterator[list[Event]]:
    """Run `model` on all batches; give what is about to happen, for all batches at once, before it happens.

    Whoever iterates may change parameters and buffers in place meanwhile: the call then uses the new values.
    The last list holds an `End` for every batch. The model runs in the mode (eval or train) that it is in.

    Args:
        model: runs without gradients.
        batches: their samples may be of different sizes, as long as they lead to the same calls.
        is_fixed: nobody changes its weights meanwhile: what a call gives is then computed once, however often it is
            asked for.
        held: keeps what is not at work on disk; whoever iterates has entered it too.

    Raises:
        Whatever the model raises.

    >>> model = nn.Linear(2, 1, bias=False)
    >>> batches = [Batch((torch.ones(1, 2),), {}, None), Batch((torch.zeros(3, 2),), {}, None)]
    >>> for events in in_lockstep(model, batches):
    ...     if isinstance(events[0], Call):
    ...         _ = nn.init.constant_(model.weight, 2.0)
    >>> [event.outputs.tolist() for event in events]
    [[[4.0]], [[0.0], [0.0], [0.0]]]
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    places = Places(model)
    with headwise(model), contextlib.ExitStack() as stack:
        walks = [_Walk(model, to_device(batch, device), places, held, is_fixed=is_fixed) for batch in batches]
        for walk in walks:
            stack.callback(walk.cancel)
        while True:
            events = [walk.advance() for walk in walks]
            yield events
            if all(isinstance(event, End) for event in events):
                return


class _Cancelled(BaseException):
    """Nobody waits for the rest of this run."""


class _Walk:
    """One batch on its way through the model."""

    def __init__(self, model: nn.Module, batch: Batch, places: Places, held: Parking | None, *, is_fixed: bool) -> None:
        self.is_fixed = is_fixed
        self.go, self.arrived = threading.Semaphore(0), threading.Semaphore(0)
        self.event: Event | None = None
        self.error: BaseException | None = None
        self.cancelled = False
        self.thread = threading.Thread(target=self._run, args=(model, batch, places, held), daemon=True)

    def advance(self) -> Event:
        """Run to the next event."""
        if isinstance(self.event, End):
            return self.event
        if not self.thread.ident:
            self.thread.start()
        self.go.release()
        self.arrived.acquire()
        if self.error is not None:
            raise self.error
        assert self.event is not None
        return self.event

    def cancel(self) -> None:
        """End the thread, wherever it is."""
        self.cancelled = True
        self.go.release()
        if self.thread.ident:
            self.thread.join()

    def _run(self, model: nn.Module, batch: Batch, places: Places, held: Parking | None) -> None:
        self.go.acquire()
        if self.cancelled:
            return
        try:
            with torch.no_grad(), watched(held), Watcher(places, self._call, self._normalise, self._recur) as mode:
                self.mode = mode
                outputs = model(*batch.args, **batch.kwargs)
            self.event = End(outputs)
        except _Cancelled:
            return
        except BaseException as error:
            self.error = error
        self.arrived.release()

    def _pause(self, event: Event) -> None:
        self.event = event
        self.arrived.release()
        self.go.acquire()
        self.event = None
        if self.cancelled:
            raise _Cancelled

    def _call(self, call: Call) -> Tensor:
        if self.is_fixed:
            call = replace(call, run=_once(call))
        self._pause(call)
        return call.run()

    def _recur(self, layer: Layer) -> tuple[Tensor, tuple[Tensor, ...]]:
        self._pause(layer)
        return layer.run(nn.functional.linear)

    def _normalise(self, inputs: Tensor, mean: Tensor | None, variance: Tensor | None, *rest: Any, **named: Any) -> Any:
        normalise: Callable[..., Any] = nn.functional.batch_norm
        norm = Norm(inputs, mean, variance, lambda given: normalise(given, mean, variance, *rest, **named))
        self._pause(norm)
        return norm.apply(inputs)


def _once(call: Call) -> Run:
    """Does what the operator does; with its own inputs, the first time."""
    own = functools.cache(call.run)

    def run(inputs: Tensor = call.inputs) -> Tensor:
        return own() if inputs is call.inputs else call.run(inputs)

    return run
