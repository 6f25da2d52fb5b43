"""Stages that need nothing of each other, run at the same time, each in a process of its own."""

from __future__ import annotations

import argparse
import os
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from detnas_d2.command import is_expected, log_traceback, text_of
from detnas_d2.engine.keeping_time import Late
from detnas_d2.engine.outlook import all_text
from detnas_d2.engine.telling import PROGRESS_FILE
from detnas_d2.pipeline.experiment import Run
from detnas_d2.pipeline.shown import Screen
from detnas_d2.pipeline.stage_run import Told, run_stage
from detnas_d2.pipeline.state import read_json
from detnas_d2.utils.cpus import usable_cpus
from detnas_d2.utils.errors import InputError
from detnas_d2.utils.locks import FolderBusy
from detnas_d2.utils.screen import duration
from detnas_d2.utils.workers import WorkerPool

AUTO = "auto"
_LOOK = 1.0  # seconds between two looks at how far the stages are


def jobs_of(args: argparse.Namespace) -> int:
    """Stages that may run at a time, by ``--jobs``: a number, or "auto": as many as the machine's
    GPUs serve, or without a GPU its cores.

    Raises:
        InputError: naming the option and what was expected.
    """
    asked, gpus = str(getattr(args, "jobs", 1)), _gpus()
    if asked == AUTO and args.num_machines == 1:
        return max(1, (len(gpus) or len(usable_cpus())) // args.num_gpus)
    if asked == AUTO or asked == "1":
        return 1
    if not asked.isdecimal() or int(asked) < 1:
        raise InputError(f"--jobs {asked}: expected a number, 1 or more, or {AUTO}")
    if args.num_machines > 1:
        raise InputError(f"--jobs {asked}: expected 1 with --num-machines {args.num_machines}")
    if gpus and int(asked) * args.num_gpus > len(gpus):
        raise InputError(
            f"--jobs {asked}: each stage takes {args.num_gpus} of the {len(gpus)} GPUs of this "
            f"machine; expected {max(1, len(gpus) // args.num_gpus)} or less, or {AUTO}"
        )
    return int(asked)


def _gpus() -> list[str]:
    """Names of the GPUs that this process may use, as CUDA_VISIBLE_DEVICES has them."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return names[:count] if len(names) >= count else [str(number) for number in range(count)]


@dataclass(frozen=True)
class _Job:
    """A run and what its process has to know."""

    run: Run
    args: argparse.Namespace
    told: Told


@dataclass(frozen=True)
class _Ended:
    """How a stage ended: well, or late, if there is no text; else what came of it, and whether that
    is an error that a person can put right.
    """

    text: str = ""
    expected: bool = False
    busy: bool = False
    late: Late | None = None

    def error(self) -> Exception | None:
        if self.busy:
            return FolderBusy(self.text)
        if self.text:
            return InputError(self.text) if self.expected else RuntimeError(self.text)
        return None


@dataclass(frozen=True)
class _StageWorker:
    """Makes the function that a process calls for one stage after another.

    Attributes:
        gpus: those of its stages, "" without.
        threads: of each of its processes; 0: as PyTorch chooses.
        work: the function; None: runs stages.
    """

    gpus: str
    threads: int
    work: Callable[[Any], Any] | None = None

    def __call__(self) -> Callable[[Any], Any]:
        if self.gpus:  # before CUDA is used for the first time
            os.environ["CUDA_VISIBLE_DEVICES"] = self.gpus
        if self.threads:
            os.environ["OMP_NUM_THREADS"] = str(self.threads)  # of processes that it starts
            torch.set_num_threads(self.threads)
        return self.work or _run_job


def _run_job(job: _Job) -> _Ended:
    try:
        late = run_stage(job.run.pipeline, job.run.stage, job.args, job.told)
    except FolderBusy as error:
        return _Ended(str(error), busy=True)
    except Exception as error:
        log_traceback(error)
        expected = is_expected(error)
        return _Ended(text_of(error) if expected else traceback.format_exc(), expected)
    return _Ended(late=late)


class Place:
    """Room for one stage at a time; its process starts with the first one."""

    def __init__(self, build: _StageWorker) -> None:
        self._build = build
        self._pool: WorkerPool | None = None

    def submit(self, title: str, job: Any) -> Future[Any]:
        """Has the place's function called; ``title`` names the call in errors."""
        if self._pool is None:
            self._pool = WorkerPool(self._build, 1)
        return self._pool.submit(title, job)

    def end(self, *, at_once: bool) -> None:
        """Ends the process; ``at_once``: whatever it does."""
        if self._pool is None:
            return
        if at_once:
            self._pool.close(wait=False)
        else:
            self._pool.end()


def run_side_by_side(
    runs: Sequence[Run],
    args: argparse.Namespace,
    jobs: int,
    screen: Screen,
    ready: Callable[[Run], bool],
    ended: Callable[[Run, str, Exception | None, Late | None], Sequence[Run] | None],
) -> None:
    """Runs those of ``runs`` that are ready, up to ``jobs`` at a time, until none is.

    Args:
        ready: whether a run is to be started, and what it starts from is done.
        ended: told of a run with its title, its error, and why it was ended if it was late. Returns
            the runs from then on, where there are others. What it raises ends those that run,
            which go on where they were when they are started again.
    """
    with places(jobs, args.num_gpus) as idle:
        running: dict[Future[_Ended], tuple[Run, Place]] = {}
        while True:
            titles = titles_of(runs)
            busy = {run.folder for run, _ in running.values()}
            for run in runs:
                if idle and run.folder not in busy and ready(run):
                    busy.add(run.folder)
                    place, title = idle.pop(0), titles[run.folder]
                    job = _Job(run, args, screen.begin(run, title, runs, busy))
                    running[place.submit(title, job)] = run, place
            if not running:
                return
            finished, _ = wait(running, timeout=_LOOK, return_when=FIRST_COMPLETED)
            screen.show(partial(_text, [run for run, _ in running.values()], len(runs), jobs))
            for future in finished:
                run, place = running.pop(future)
                idle.append(place)
                screen.clear()
                error, late = _outcome(future)
                runs = ended(run, titles[run.folder], error, late) or runs


def alone_among(runs: Sequence[Run]) -> set[str]:
    """Folders of the runs next to which no other can be: each comes before them or after them."""
    before = {run.folder: _before(run) for run in runs}

    def is_alone(folder: str) -> bool:
        others = set(before) - before[folder] - {folder}
        return all(folder in before[other] for other in others)

    return {folder for folder in before if is_alone(folder)}


def _before(run: Run) -> set[str]:
    """Folders of all that a run starts from, and what that starts from."""
    found: set[str] = set()
    stages = run.pipeline.sources_of(run.stage)
    while stages:
        stage = stages.pop()
        found.add(run.pipeline.folder(stage.name))
        stages += run.pipeline.sources_of(stage)
    return found


def titles_of(runs: Sequence[Run]) -> dict[str, str]:
    """Folder of a run -> e.g. "[2/5] search"."""
    return {run.folder: f"[{n}/{len(runs)}] {run.name}" for n, run in enumerate(runs, start=1)}


@contextmanager
def places(
    jobs: int, num_gpus: int, work: Callable[[Any], Any] | None = None
) -> Iterator[list[Place]]:
    """Room for so many stages at a time, each with ``num_gpus`` GPUs of its own, or an equal share
    of the cores; at the end of the block the processes end, by an error at once.

    Args:
        work: function, of a module, that processes call instead of running stages.
    """
    gpus, processes = _gpus(), jobs * num_gpus
    chosen = "OMP_NUM_THREADS" in os.environ
    threads = 0 if chosen else max(1, len(usable_cpus()) // processes)
    shares = [gpus[i * num_gpus : (i + 1) * num_gpus] for i in range(jobs)]
    rooms = [Place(_StageWorker(",".join(share), threads, work)) for share in shares]
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()  # of what ran alone in this process
    at_once = True
    try:
        yield list(rooms)
        at_once = False
    finally:
        for room in rooms:
            room.end(at_once=at_once)


def _outcome(future: Future[_Ended]) -> tuple[Exception | None, Late | None]:
    try:
        ended = future.result()
    except Exception as error:  # the process died
        return error, None
    return ended.error(), ended.late


def _text(running: Sequence[Run], total: int, jobs: int) -> str:
    """The line about all that runs, with the time left as if work could be shared out evenly."""
    stages, left, later = [], [], None
    for run in running:  # the last one to begin knows best what comes later
        status = read_json(run.folder, PROGRESS_FILE)
        text, eta = run.name, status.get("eta_seconds")
        if status.get("total"):
            text += f" {100 * status['done'] / status['total']:.0f} %"
        if eta is not None:
            text += f", ETA {duration(eta)}"
            left.append(eta)
            later = status["all_seconds"] - eta, status["all_measured"]
        stages.append(text)
    parts = [f"{len(running)} of {total} stages: {'; '.join(stages)}"]
    if later is not None:
        seconds = max(*left, (sum(left) + later[0]) / jobs) if later[0] else max(left)
        parts.append(all_text(seconds, later[1]))
    return " | ".join(parts)
