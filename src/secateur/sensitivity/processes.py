"""Measure points in several processes on this machine, each with a model of its own, all with the same weights."""

import multiprocessing
import signal
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

import torch

from secateur.errors import ArgumentError, WorkerError
from secateur.sensitivity.dispatch import Crew, Dispatcher, Terms
from secateur.sensitivity.executor import Measure, check_cache, new_cache
from secateur.sensitivity.measure import reason_of
from secateur.sensitivity.parcel import Mail, posted
from secateur.sensitivity.probe import Probe
from secateur.sensitivity.silence import BEAT_S, LEAST_LIMIT_S
from secateur.sensitivity.worker import Done, Failed, Message, Ready, Task, packed_parts, probe_of, work

SECONDS_TO_END = 5.0


@dataclass(frozen=True)
class ProcessExecutor:
    """Measures in processes, which trace the model for themselves and share the memory of its weights and the data.

    A script that uses it needs `if __name__ == "__main__":`, as each process imports it. A process that is lost is
    replaced, and so is one that hangs; what it was measuring is measured again. The curves are those of a serial scan
    with as many threads, bit for bit.

    Attributes:
        workers: processes.
        threads: of torch, in each.
        retries: of a point whose measurement raises, ends its process or hangs, before it is given up and reported.
        silence_limit_s: how long a worker at work may say nothing before it is ended and replaced; it tells twice a
            second that it goes on, but not while the model runs one batch for one point, or that point is retrained.
            None: 20 times the longest silence so far, at least five minutes; an hour until a worker was heard.
        patience_s: how long to wait for a first worker when none is at work.
        cache_bytes: of activations that each process keeps from task to task, see `ActivationCache`; 0 = none, and
            None: its part of a quarter of the free memory.

    >>> ProcessExecutor(4).threads
    1
    """

    workers: int = 2
    threads: int = 1
    retries: int = 2
    silence_limit_s: float | None = None
    patience_s: float = 300.0
    cache_bytes: int | None = None

    def __post_init__(self) -> None:
        check_counts(self.workers, self.threads, self.retries)
        check_cache(self.cache_bytes)
        check_times(self.silence_limit_s, self.patience_s)

    @contextmanager
    def start(self, prober: Probe, *, again: bool = False) -> Iterator[Measure]:
        """Start the processes when there is something to measure; they end with the context.

        What is then called raises these.

        Raises:
            ArgumentError: the probe has no program, or holds something that cannot be sent.
            StoreError: the memory that is shared cannot be written.
            WorkerError: the processes cannot make ready, or all are lost.
        """
        with ExitStack() as stack:

            def muster() -> Crew:
                mail = stack.enter_context(posted(packed_parts(prober)))
                return stack.enter_context(closing(_Processes(mail, self.workers, self.threads, self.cache_bytes)))

            yield Dispatcher(prober, muster, Terms(self.workers, self.retries, self.silence_limit_s, self.patience_s))


def check_counts(workers: int, threads: int, retries: int) -> None:
    """Raise an error where one of these is out of range."""
    for name, value, least in (("workers", workers, 1), ("threads", threads, 1), ("retries", retries, 0)):
        if value < least:
            raise ArgumentError(f"{name}={value} must be at least {least}")


def check_times(silence_limit_s: float | None, patience_s: float) -> None:
    """Raise an error where one of these is out of range."""
    if silence_limit_s is not None and not silence_limit_s >= LEAST_LIMIT_S:
        raise ArgumentError(
            f"silence_limit_s={silence_limit_s} must be at least {LEAST_LIMIT_S:g}, as workers tell every {BEAT_S:g} s "
            "that they go on; or None"
        )
    if not patience_s > 0:
        raise ArgumentError(f"patience_s={patience_s} must be above 0")


class _Processes:
    """A crew of processes, one pipe each."""

    def __init__(self, mail: Mail, count: int, threads: int, cache_bytes: int | None) -> None:
        self._sent = mail, threads, cache_bytes, count
        self._context = multiprocessing.get_context("spawn")
        self._processes: dict[int, BaseProcess] = {}
        self._pipes: dict[int, Connection] = {}
        self._was_ready: set[int] = set()
        for worker in range(count):
            self._start(worker)

    def give(self, worker: int, task: Task) -> None:
        # Of a process that is gone we hear next.
        with suppress(OSError):
            self._pipes[worker].send(task)

    def hear(self, within_s: float) -> tuple[int, Message] | None:
        heard = wait(list(self._pipes.values()), within_s)
        if not heard:
            return None
        pipe = heard[0]
        worker = next(number for number, own in self._pipes.items() if own is pipe)
        try:
            message: Message | _Unfit = self._pipes[worker].recv()
        except (EOFError, OSError):
            return worker, self._lost(worker)
        if isinstance(message, _Unfit):
            raise WorkerError(f"a worker process could not make ready: {message.reason}")
        if isinstance(message, Ready):
            self._was_ready.add(worker)
        return worker, message

    def end(self, worker: int) -> None:
        self._pipes.pop(worker).close()
        process = self._processes.pop(worker)
        process.kill()
        # One that waits for a broken disk cannot be ended; it is left behind.
        process.join(SECONDS_TO_END)
        self._start(worker)

    def absence(self) -> str:
        return f"{len(self._processes)} processes still import, or trace the model"

    def close(self) -> None:
        for pipe in self._pipes.values():
            pipe.close()
        for process in self._processes.values():
            # It may be in the middle of a task that nobody waits for any more.
            process.terminate()
        for process in self._processes.values():
            process.join(SECONDS_TO_END)
            if process.is_alive():
                process.kill()
                process.join(SECONDS_TO_END)

    def _start(self, worker: int) -> None:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(theirs, *self._sent), daemon=True)
        process.start()
        theirs.close()
        self._processes[worker], self._pipes[worker] = process, ours

    def _lost(self, worker: int) -> Failed:
        process = self._processes.pop(worker)
        self._pipes.pop(worker).close()
        process.join()
        reason = f"a worker process ended with {_ending(process.exitcode)}"
        if worker in self._was_ready:
            self._was_ready.discard(worker)
            self._start(worker)
        elif not self._processes:
            raise WorkerError(
                f"no worker process is left, the last one ended with {_ending(process.exitcode)} while it made ready: "
                "too little memory for so many, or a script without `if __name__ == '__main__':`; points in the store "
                "are kept"
            )
        return Failed(reason, lost=True)


@dataclass(frozen=True)
class _Unfit:
    """A worker could not make ready."""

    reason: str


def _ending(code: int | None) -> str:
    """What an exit code says.

    >>> _ending(-9), _ending(1)
    ('signal SIGKILL (out of memory?)', 'exit code 1')
    """
    if code is None or code >= 0:
        return f"exit code {code}"
    known = {member.value: member.name for member in signal.Signals}
    return f"signal {known.get(-code, -code)}" + (" (out of memory?)" if -code == signal.SIGKILL else "")


def _serve(pipe: Connection, mail: Mail, threads: int, cache_bytes: int | None, sharing: int) -> None:
    """The life of a worker process."""
    # Ctrl-C reaches all processes; the one that started the others ends them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    try:
        prober = probe_of(mail.open())
        cache = new_cache(prober, cache_bytes, sharing)
    except Exception as error:
        pipe.send(_Unfit(reason_of(error)))
        return
    pipe.send(Ready())
    with suppress(EOFError, BrokenPipeError):
        while True:
            task = pipe.recv()
            try:
                pipe.send(Done(work(prober, cache, task, pipe.send)))
            except BrokenPipeError:
                raise
            except Exception as error:
                pipe.send(Failed(reason_of(error)))
