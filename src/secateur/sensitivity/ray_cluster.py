"""Measure points on the machines of a Ray cluster."""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from importlib import import_module
from queue import Queue
from threading import Thread
from typing import Any

import torch

from secateur.errors import MissingExtraError, WorkerError
from secateur.sensitivity.dispatch import Crew, Dispatcher, Terms
from secateur.sensitivity.executor import Measure, check_cache, new_cache
from secateur.sensitivity.measure import reason_of
from secateur.sensitivity.parcel import Memory, Parcel, unpack
from secateur.sensitivity.probe import Probe
from secateur.sensitivity.processes import check_counts, check_times
from secateur.sensitivity.worker import Done, Failed, Message, Ready, Task, packed_parts, probe_of, work

UNREAD_MESSAGES = 4


@dataclass(frozen=True)
class RayExecutor:
    """Measures in actors of a Ray cluster; weights and data are put into its object store once.

    If Ray is connected already, that cluster is used, and secateur must be installed on its machines. Else the one at
    `address` is joined, or one is begun on this machine, without a dashboard, which listens on this machine only and
    asks for a token; it ends with the scan. A worker that is lost or hangs is replaced, where the cluster has room for
    it, and what it was measuring is measured again. The curves are those of a serial scan with as many threads, bit for
    bit.

    Source: Moritz et al. 2018, arXiv:1712.05889.

    Attributes:
        workers: actors.
        address: of a cluster to join, such as "auto" or "host:6379"; None = begin one, unless Ray is connected.
        threads: of torch, in each actor.
        cpus: that each actor takes of the cluster.
        gpus: likewise.
        retries: of a point whose measurement raises, ends its worker or hangs, before it is given up and reported.
        patience_s: how long to wait for a first worker when none is at work.
        silence_limit_s: see `ProcessExecutor`.
        cache_bytes: see `ProcessExecutor`; all workers may be on one machine.

    >>> RayExecutor(workers=4).cpus
    1.0
    """

    workers: int = 2
    address: str | None = None
    threads: int = 1
    cpus: float = 1.0
    gpus: float = 0.0
    retries: int = 2
    patience_s: float = 300.0
    silence_limit_s: float | None = None
    cache_bytes: int | None = None

    def __post_init__(self) -> None:
        check_counts(self.workers, self.threads, self.retries)
        check_cache(self.cache_bytes)
        check_times(self.silence_limit_s, self.patience_s)

    @contextmanager
    def start(self, prober: Probe, *, again: bool = False) -> Iterator[Measure]:
        """Start the actors when there is something to measure; they end with the context.

        What is then called raises these.

        Raises:
            MissingExtraError: Ray is not installed.
            ArgumentError: the probe has no program, or holds something that cannot be sent.
            WorkerError: there is no cluster, or it has no room for a single worker, or all are lost.
        """
        with ExitStack() as stack:

            def muster() -> Crew:
                ray = stack.enter_context(_connected(self.address, self.workers))
                return stack.enter_context(closing(_Actors(ray, self, prober)))

            yield Dispatcher(prober, muster, Terms(self.workers, self.retries, self.silence_limit_s, self.patience_s))


@contextmanager
def _connected(address: str | None, workers: int) -> Iterator[Any]:
    # Read when Ray is imported, and by the processes that it starts.
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    if address is None:
        # This keeps a cluster of one machine on its loopback device; the name says when it is needed elsewhere.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    try:
        ray = import_module("ray")
    except ImportError as error:
        raise MissingExtraError("RayExecutor needs Ray: pip install 'secateur[ray]'") from error
    if ray.is_initialized():
        yield ray
        return
    local = {} if address is not None else {"num_cpus": workers, "include_dashboard": False}
    try:
        ray.init(address=address, log_to_driver=False, logging_level="WARNING", **local)
    except Exception as error:
        where = f"join the Ray cluster at {address}" if address else "begin a Ray cluster on this machine"
        raise WorkerError(
            f"cannot {where}: {reason_of(error)}; both sides need the same token, or RAY_AUTH_MODE=disabled"
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


class _Actors:
    """A crew of actors. Each has one call under way at a time, or is idle."""

    def __init__(self, ray: Any, executor: RayExecutor, prober: Probe) -> None:
        self._ray = ray
        parcel = packed_parts(prober, ray.cloudpickle.CloudPickler)
        self._sent = ray.put((parcel.body, parcel.memories)), executor
        self._kind = ray.remote(num_cpus=executor.cpus, num_gpus=executor.gpus)(_Host)
        self._actors: dict[int, Any] = {}
        self._making_ready: dict[Any, int] = {}
        self._at_work: dict[Any, int] = {}
        for worker in range(executor.workers):
            self._start(worker)

    def give(self, worker: int, task: Task) -> None:
        stream = (
            self._actors[worker]
            .measure.options(num_returns="streaming", _generator_backpressure_num_objects=UNREAD_MESSAGES)
            .remote(task)
        )
        self._at_work[stream] = worker

    def hear(self, within_s: float) -> tuple[int, Message] | None:
        waited_for = [*self._at_work, *self._making_ready]
        found, _ = self._ray.wait(waited_for, num_returns=1, timeout=within_s, fetch_local=False)
        return self._message(found[0]) if found else None

    def end(self, worker: int) -> None:
        source = next(stream for stream, own in self._at_work.items() if own == worker)
        del self._at_work[source]
        self._ray.kill(self._actors[worker])
        self._start(worker)

    def absence(self) -> str:
        return (
            f"the cluster has no room for one (free: {self._ray.available_resources()}), or does not reach this machine"
        )

    def close(self) -> None:
        for actor in self._actors.values():
            self._ray.kill(actor)

    def _message(self, source: Any) -> tuple[int, Message]:
        worker = self._at_work.get(source, self._making_ready.get(source, -1))
        try:
            message: Message = self._ray.get(next(source) if source in self._at_work else source)
        except self._ray.exceptions.RayTaskError as error:
            if source in self._at_work:
                del self._at_work[source]
                return worker, Failed(reason_of(error.cause))
            raise WorkerError(f"a Ray worker could not make ready: {reason_of(error.cause)}") from error
        except (self._ray.exceptions.RayError, StopIteration) as error:
            return worker, self._lost(worker, source, error)
        if isinstance(message, Ready):
            del self._making_ready[source]
        elif isinstance(message, Done | Failed):
            del self._at_work[source]
        return worker, message

    def _lost(self, worker: int, source: Any, error: BaseException) -> Failed:
        had_been_ready = self._at_work.pop(source, None) is not None
        self._making_ready.pop(source, None)
        del self._actors[worker]
        reason = f"a Ray worker was lost: {reason_of(error)}"
        if had_been_ready:
            self._start(worker)
        elif not self._actors:
            raise WorkerError(f"no Ray worker is left: {reason}; points in the store are kept")
        return Failed(reason, lost=True)

    def _start(self, worker: int) -> None:
        self._actors[worker] = self._kind.remote(*self._sent)
        self._making_ready[self._actors[worker].make_ready.remote()] = worker


class _Host:
    """The actor."""

    def __init__(self, sent: tuple[bytes, Sequence[Memory]], executor: RayExecutor) -> None:
        self._sent, self._executor = sent, executor

    def make_ready(self) -> Ready:
        torch.set_num_threads(self._executor.threads)
        parts = unpack(Parcel(self._sent[0], tuple(self._sent[1])))
        for module in parts["the model"].modules():
            # The object store cannot be written to; a forward pass may write to buffers.
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.clone())
        self._prober = probe_of(parts)
        self._cache = new_cache(self._prober, self._executor.cache_bytes, self._executor.workers)
        return Ready()

    def measure(self, task: Task) -> Iterator[Message]:
        """Messages as they come, the last of which is `Done` or `Failed`."""
        # Full while the other side is busy, so that what is not finished is sent less often.
        messages: Queue[Message] = Queue(1)

        def run() -> None:
            torch.set_num_threads(self._executor.threads)
            try:
                messages.put(Done(work(self._prober, self._cache, task, messages.put)))
            except Exception as error:
                messages.put(Failed(reason_of(error)))

        Thread(target=run, daemon=True).start()
        while True:
            message = messages.get()
            yield message
            if isinstance(message, Done | Failed):
                return
