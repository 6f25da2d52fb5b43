"""Worker processes that end with their parent and whose death costs one call."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import SpawnContext
from typing import Any

from detnas_d2.utils.errors import CANDIDATE_FAILURES, CandidateFailed

_ALIVE_EVERY = 0.5  # seconds between looks at whether the parent still lives
_STARTS = 3  # attempts of a worker that dies before it is ready

Build = Callable[[], Callable[[Any], Any]]
"""Called once per worker, which then calls what it returns. Picklable, from a module."""


class WorkerError(Exception):
    """The workers cannot work at all, whatever the candidate; ends a search."""


class WorkerPool:
    """Calls ``build()(value)`` in ``workers`` spawned processes, one value at a time each.

    Each worker is an executor of one process, so that a death is that of one call and not of a
    pool. Workers end with the process that started them, even if that was killed, and leave Ctrl-C
    to it. Like every spawned process they import the main script, which must guard what it does by
    ``if __name__ == "__main__"``.

    The future of :meth:`submit` raises

    * a RuntimeError if its call raised one of CANDIDATE_FAILURES or the worker died (another is
      started, the other values are not affected);
    * a WorkerError if ``build`` failed, the call raised anything else, or the worker died
      several times while starting.
    """

    def __init__(self, build: Build, workers: int) -> None:
        self._workers = [_Worker(build) for _ in range(workers)]
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)
        self._threads = ThreadPoolExecutor(max(1, workers), thread_name_prefix="workers")

    def submit(self, key: str, value: Any) -> Future[Any]:
        """Queues a call; returns at once. ``key`` names it in error messages."""
        return self._threads.submit(self._call, key, value)

    def _call(self, key: str, value: Any) -> Any:
        worker = self._idle.get()
        try:
            return worker.call(key, value)
        finally:
            self._idle.put(worker)

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers."""
        return [pid for worker in self._workers if (pid := worker.process.pid) is not None]

    def close(self, *, wait: bool = True) -> None:
        """Ends the workers; ``wait``: after what was submitted, else what has not begun is
        cancelled and what has fails.
        """
        self._threads.shutdown(wait=wait, cancel_futures=not wait)
        for worker in self._workers:
            worker.kill()
        self._threads.shutdown()  # only one thread at a time may shut an executor down
        for worker in self._workers:
            worker.kill()  # one that was started meanwhile
            worker.executor.shutdown()

    def end(self) -> None:
        """Lets the workers end by themselves, which gives back what they hold of the system."""
        self._threads.shutdown()
        for worker in self._workers:
            worker.executor.shutdown()


class _OneProcess(SpawnContext):
    """Spawns, because forking a process with threads is unsafe; remembers the process."""

    def Process(self, *args: Any, **options: Any) -> Any:  # type: ignore[override]  # a class there
        self.process = SpawnContext.Process(*args, **options)
        return self.process


class _Worker:
    """A process, replaced when it dies."""

    def __init__(self, build: Build) -> None:
        self._build = build
        self._closing = False
        self._start()

    def _start(self) -> None:
        context = _OneProcess()
        self.executor = ProcessPoolExecutor(
            1, mp_context=context, initializer=_end_with, initargs=(os.getpid(),)
        )
        # Starts the process now: a data loader that forks meanwhile would inherit its pipes.
        with _interrupts_held():  # also while it imports what it needs
            self.executor.submit(_prepare, self._build)
        self.process = context.process

    def _restart(self) -> int | None:
        """The exit code of the old process."""
        self.executor.shutdown()
        code = self.process.exitcode
        if not self._closing:
            self._start()
        return code

    def call(self, key: str, value: Any) -> Any:
        self._wait_until_ready()
        try:
            return self.executor.submit(_run, value).result()
        except BrokenProcessPool as error:
            raise RuntimeError(
                f"the worker process died (exit code {self._restart()}) at {key}"
            ) from error
        except (RuntimeError, WorkerError) as error:
            raise type(error)(f"{error}, at {key}") from None

    def _wait_until_ready(self) -> None:
        """Also replaces a process that died while idle, which is not the next call's fault."""
        for _ in range(_STARTS):
            try:
                self.executor.submit(_prepare, self._build).result()
                return
            except BrokenProcessPool:
                code = self._restart()
            except Exception as error:
                raise WorkerError(f"a worker process could not start: {error}") from error
        raise WorkerError(
            f"a worker process died {_STARTS} times while starting, with exit code {code}"
        )

    def kill(self) -> None:
        """Ends the process for good: it has nothing to save, and its exit would take seconds."""
        self._closing = True
        self.process.kill()


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Ctrl-C waits in the block, and for good in a process that starts there."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# In the worker process.
_work: Callable[[Any], Any] | None = None


def _end_with(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_ALIVE_EVERY)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _prepare(build: Build) -> None:
    global _work
    if _work is None:
        try:
            _work = build()
        except Exception:
            raise WorkerError(traceback.format_exc()) from None


def _run(value: Any) -> Any:
    assert _work is not None
    # As text: not every exception survives pickling.
    try:
        return _work(value)
    except CANDIDATE_FAILURES as error:
        raise RuntimeError(str(CandidateFailed.because(error))) from None
    except Exception:
        raise WorkerError(traceback.format_exc()) from None
