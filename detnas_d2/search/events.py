"""A search in TensorBoard: its candidates over the number of evaluations."""

from __future__ import annotations

import statistics
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

from detnas_d2.evaluation.candidate import CandidateRecord
from detnas_d2.search.objectives import FrontSoFar, Objectives

SUFFIX = ".search"
"""End of the names of a search's event files."""
_MEGA = 1e6


class SearchEvents:
    """An `on_progress` callback of `run_search`, for rank 0, that writes TensorBoard's events.

    Per candidate, at the number of its evaluation (from 1): ``search/fitness``, ``search/best`` so
    far, ``search/macs_millions``, ``search/params_millions``, ``search/latency_ms``. Where a
    generation ends: ``search/generation_mean``, ``search/failed`` candidates so far, and
    ``time_share/recalibration``, ``time_share/inference``, ``time_share/scoring`` of the seconds
    that its candidates took; with several objectives ``search/hypervolume`` and
    ``search/front_members`` of the front so far.

    The events of earlier starts are written anew from the history, at the times of then: there is
    every point once, however often a search was killed.

    Args:
        directory: where the search writes.
        objectives: of the search, if there are several.
    """

    def __init__(self, directory: str | Path, objectives: Objectives | None = None) -> None:
        self._directory = Path(directory)
        self._front = None if objectives is None else FrontSoFar(objectives)
        self._replayed: list[tuple[CandidateRecord, int]] = []
        self._writer: Any = None
        self._best: float | None = None
        self._failed = 0
        self._members: list[CandidateRecord] = []

    def __call__(self, record: CandidateRecord, *, size: int, replayed: bool) -> None:
        """Take note of a candidate of a generation of `size`."""
        if replayed:  # not in the order of evaluation
            self._replayed.append((record, size))
            return
        self._write_replayed()
        self._write(record, size)

    def close(self) -> None:
        """At the end of the search, however it ends."""
        self._write_replayed()
        if self._writer is not None:
            self._writer.close()

    def _write_replayed(self) -> None:
        for record, size in sorted(self._replayed, key=lambda pair: pair[0].index):
            self._write(record, size)
        self._replayed.clear()

    def _write(self, record: CandidateRecord, size: int) -> None:
        if self._writer is None:
            self._writer = self._open()
        values = {
            "fitness": record.fitness,
            "best": self._best_with(record),
            "macs_millions": None if record.macs is None else record.macs / _MEGA,
            "params_millions": None if record.params is None else record.params / _MEGA,
            "latency_ms": record.latency_ms,
        }
        self._add(record, {f"search/{name}": value for name, value in values.items()})
        self._members.append(record)
        if len(self._members) == size:
            self._end_generation(record)

    def _best_with(self, record: CandidateRecord) -> float | None:
        if record.fitness is not None:
            known = [record.fitness] if self._best is None else [self._best, record.fitness]
            self._best = max(known)
        return self._best

    def _end_generation(self, last: CandidateRecord) -> None:
        fitness = [record.fitness for record in self._members if record.fitness is not None]
        self._failed += len(self._members) - len(fitness)
        seconds: Counter[str] = Counter()
        for record in self._members:
            seconds.update(record.seconds)
        front: dict[str, float] = {}
        if self._front is not None:
            self._front.add(self._members)
            front["search/hypervolume"] = self._front.hypervolume
            front["search/front_members"] = len(self._front.members)
        self._members = []
        together = sum(seconds.values()) or 1.0
        shares = {f"time_share/{name}": value / together for name, value in seconds.items()}
        mean = statistics.fmean(fitness) if fitness else None
        told = {"search/generation_mean": mean, "search/failed": self._failed}
        self._add(last, {**told, **front, **shares})

    def _add(self, record: CandidateRecord, values: dict[str, float | None]) -> None:
        time = datetime.fromisoformat(record.finished).timestamp()
        for tag, value in values.items():
            if value is not None:
                self._writer.add_scalar(tag, value, record.index + 1, walltime=time)

    def _open(self) -> Any:
        """Not before it is needed: its thread must not be there when workers are forked."""
        from torch.utils.tensorboard import SummaryWriter

        for file in self._directory.glob(f"events.out.tfevents.*{SUFFIX}"):
            file.unlink()
        return SummaryWriter(str(self._directory), filename_suffix=SUFFIX, flush_secs=30)
