"""Worker processes that outlive nothing and whose death is noticed.

Needs neither torch nor Detectron2; what the workers do may. See :class:`WorkerPool`.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import queue
import signal
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from detnas_d2.evaluation.candidate import CANDIDATE_FAILURES, CandidateFailed

_ALIVE_EVERY = 0.5  # seconds between looks at whether the other process still lives
_STARTS = 3  # attempts of a worker that dies before it is ready

Build = Callable[[], Callable[[Any], Any]]
"""Made once per worker, which then calls what it gives. Picklable, from a module."""


class _Ping:
    """Asks a worker whether it is there."""


class WorkerError(Exception):
    """The workers cannot work at all, whatever the candidate; ends a search."""


class WorkerPool:
    """Calls ``build()(value)`` in ``workers`` spawned processes, one value at a time each.

    Spawned, not forked: forking a process with threads is unsafe. One thread per worker hands it
    values and waits for results. Workers end with the process that started them, even if that was
    killed, and leave Ctrl-C to it. Like every spawned process they import the main script, which
    must guard what it does by ``if __name__ == "__main__"``.

    The future of :meth:`submit` raises

    * a RuntimeError if its call raised one of CANDIDATE_FAILURES or the worker died (it is
      started anew, the other values are not affected);
    * a WorkerError if ``build`` failed, the call raised anything else, or the worker died
      several times while starting.
    """

    def __init__(self, build: Build, workers: int) -> None:
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._workers = [_Worker(build, self._jobs) for _ in range(workers)]

    def submit(self, key: str, value: Any) -> Future:
        """Queues a call; returns at once. ``key`` names it in error messages."""
        job = _Job(key, value)
        self._jobs.put(job)
        return job.future

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers."""
        return [worker.process.pid for worker in self._workers]

    def close(self, *, wait: bool = True) -> None:
        """Ends the workers; ``wait``: after what was submitted, else what has not begun is
        cancelled and what has fails.
        """
        if not wait:
            with contextlib.suppress(queue.Empty):
                while True:
                    self._jobs.get_nowait().future.cancel()
        for _ in self._workers:
            self._jobs.put(None)
        for worker in self._workers:
            worker.end(wait=wait)
        self._workers = []


@dataclass(frozen=True)
class _Job:
    key: str
    value: Any
    future: Future = field(default_factory=Future)


class _Worker:
    """A process and the thread that serves it."""

    def __init__(self, build: Build, jobs: queue.SimpleQueue) -> None:
        self._build = build
        self._jobs = jobs
        self._closing = False
        # Here and not in the thread: a data loader that forks meanwhile would inherit the pipe.
        self._start()
        self._thread = threading.Thread(target=self._serve, daemon=True, name="workers")
        self._thread.start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self.process = context.Process(
            target=_work, args=(theirs, os.getpid(), self._build), daemon=True
        )
        self.process.start()
        theirs.close()
        self._ready = False

    def _serve(self) -> None:
        while (job := self._jobs.get()) is not None:
            if not job.future.set_running_or_notify_cancel():
                continue
            try:
                job.future.set_result(self._call(job))
            except Exception as error:
                job.future.set_exception(error)
        self._connection.close()  # the worker sees that and ends

    def _call(self, job: _Job) -> Any:
        if self._ready and not self._answers():
            self._restart()  # it died while idle, which is not this candidate's fault
        self._wait_until_ready()
        try:
            self._connection.send(job.value)
            kind, value = self._receive()
        except (EOFError, OSError) as error:
            raise RuntimeError(
                f"the worker process died (exit code {self._restart()}) at {job.key}"
            ) from error
        if kind == "done":
            return value
        raise (RuntimeError if kind == "failed" else WorkerError)(f"{value}, at {job.key}")

    def _wait_until_ready(self) -> None:
        for attempt in itertools.count(1):
            if self._ready:
                return
            try:
                kind, value = self._receive()
            except (EOFError, OSError) as error:
                code = self._restart()
                if attempt == _STARTS or self._closing:
                    raise WorkerError(
                        f"a worker process died {attempt} times while starting, with exit code "
                        f"{code}"
                    ) from error
                continue
            if kind != "ready":
                self._restart()
                raise WorkerError(f"a worker process could not start: {value}")
            self._ready = True

    def _answers(self) -> bool:
        # A killed process counts as alive until its last thread is gone.
        try:
            self._connection.send(_Ping())
            self._receive()
        except (EOFError, OSError):
            return False
        return True

    def _receive(self) -> tuple[str, Any]:
        # A forked process may hold the other end of the pipe: its end alone does not tell.
        while not self._connection.poll(_ALIVE_EVERY):
            if not self.process.is_alive() and not self._connection.poll():
                raise EOFError
        return self._connection.recv()

    def _restart(self) -> int | None:
        """The exit code of the old process."""
        self._connection.close()
        self.process.join(timeout=1)  # its end of the pipe closes before it is gone
        self.process.kill()
        self.process.join()
        code = self.process.exitcode
        if not self._closing:
            self._start()
        return code

    def end(self, *, wait: bool) -> None:
        self._closing = True
        if not wait:
            self.process.kill()
        self._thread.join()
        self.process.join(timeout=5)
        self.process.kill()
        self.process.join()


def _work(connection: Connection, parent: int, build: Build) -> None:
    """The worker process."""
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        call = build()
    except Exception:
        connection.send(("broken", traceback.format_exc()))
        return
    connection.send(("ready", None))
    while True:
        try:
            value = connection.recv()
        except EOFError:
            os._exit(0)  # nothing to save; taking torch down takes seconds
        if isinstance(value, _Ping):
            connection.send(("ready", None))
            continue
        try:
            answer: tuple[str, Any] = ("done", call(value))
        except CANDIDATE_FAILURES as error:
            answer = ("failed", str(CandidateFailed.because(error)))
        except Exception:
            answer = ("error", traceback.format_exc())
        connection.send(answer)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_ALIVE_EVERY)
    os._exit(1)
