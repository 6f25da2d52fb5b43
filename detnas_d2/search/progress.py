"""What a search says while it runs: a line per candidate, a summary per generation."""

from __future__ import annotations

import logging
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from operator import length_hint
from pathlib import Path
from typing import Any, TypeVar

from detnas_d2.files import write_json
from detnas_d2.search.candidate import CandidateRecord
from detnas_d2.search.searcher import GenerationSearcher

logger = logging.getLogger("detnas_d2.search")

T = TypeVar("T")

SUMMARY_FILE = "generations.json"


class Progress:
    """An `on_progress` callback of `run_search`, for rank 0.

    After every generation ``generations.json`` in `directory` is rewritten: a list with one object
    per generation: generation, evaluated, failed, best, mean, std (population standard deviation;
    None if all failed), best_path, best_macs, best_so_far, seconds (per stage, summed).

    Args:
        searcher: tells how many generations and candidates to expect.
        directory: where to write the summaries; None: nowhere.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        searcher: GenerationSearcher,
        directory: str | Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.summaries: list[dict[str, Any]] = []
        self._expected = searcher.expected
        self._generations = searcher.generations
        self._directory = None if directory is None else Path(directory)
        self._clock = clock
        self._start = clock()
        self._seen = 0
        self._live = 0
        self._best: CandidateRecord | None = None
        self._members: list[CandidateRecord] = []
        self._seconds: Counter[str] = Counter()

    def __call__(self, record: CandidateRecord, *, size: int, replayed: bool) -> None:
        """Take note of a candidate of a generation of `size`, and say so unless replayed."""
        self._seen += 1
        self._members.append(record)
        if record.fitness is not None and (self._best is None or _precedes(record, self._best)):
            self._best = record
        if replayed:
            self._start = self._clock()  # replaying is no measure of evaluating
        else:
            self._live += 1
            self._seconds.update(record.seconds)
            logger.info(self._candidate_line(record, size))
        if len(self._members) == size:
            self._finish_generation(record.generation, quiet=replayed)

    @property
    def eta_seconds(self) -> float | None:
        """Time left at the pace of this run's own evaluations; None before the first."""
        if self._live == 0:
            return None
        return (self._clock() - self._start) / self._live * (self._expected - self._seen)

    def _candidate_line(self, record: CandidateRecord, size: int) -> str:
        eta = self.eta_seconds
        parts = [
            f"generation {record.generation + 1}/{self._generations} "
            f"candidate {len(self._members)}/{size}",
            "failed" if record.fitness is None else f"fitness {record.fitness:.4f}",
            _best_text(self._best),
            f"generation mean {_number(_mean(self._members))}",
            f"ETA {timedelta(seconds=round(eta)) if eta is not None else '-'}",
        ]
        if self._seconds:
            parts.append(f"time: {_shares(self._seconds)}")
        return " | ".join(parts)

    def _finish_generation(self, generation: int, *, quiet: bool) -> None:
        members, self._members = self._members, []
        fitness = [r.fitness for r in members if r.fitness is not None]
        best = min((r for r in members if r.fitness is not None), key=_rank, default=None)
        seconds: Counter[str] = Counter()
        for record in members:
            seconds.update(record.seconds)
        summary = {
            "generation": generation,
            "evaluated": len(members),
            "failed": len(members) - len(fitness),
            "best": best.fitness if best else None,
            "mean": _mean(members),
            "std": statistics.pstdev(fitness) if fitness else None,
            "best_path": best.path if best else None,
            "best_macs": best.macs if best else None,
            "best_so_far": self._best.fitness if self._best else None,
            "seconds": dict(seconds),
        }
        self.summaries.append(summary)
        if self._directory is not None:
            write_json(self._directory / SUMMARY_FILE, self.summaries, indent=2)
        if not quiet:
            logger.info(
                "generation %d/%d done: best %s mean %s std %s of %d (%d failed) | %s",
                generation + 1,
                self._generations,
                _number(summary["best"]),
                _number(summary["mean"]),
                _number(summary["std"]),
                summary["evaluated"],
                summary["failed"],
                _best_text(self._best),
            )


def reported(
    items: Iterable[T],
    what: str,
    *,
    every: float = 60.0,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[T]:
    """Passes items on, and logs from time to time how many are done and how long the rest takes.

    Args:
        items: their number comes from ``len``, where they have one.
        what: what is done with them.
        every: seconds between two messages.
        clock: seconds, monotonic.
    """
    total, start = length_hint(items), clock()
    last = start
    for done, item in enumerate(items):
        now = clock()
        if done and now - last >= every:
            last = now
            rest = round((now - start) / done * (total - done))
            left = f" of {total}, {timedelta(seconds=rest)} left" if total >= done else ""
            logger.info("%s: %d batches%s", what, done, left)
        yield item


def _rank(record: CandidateRecord) -> tuple[float, int, int]:
    """Sort key: the fittest first, ties in order of proposal."""
    return (-record.fitness, record.generation, record.position)


def _precedes(one: CandidateRecord, other: CandidateRecord) -> bool:
    return _rank(one) < _rank(other)


def _mean(records: list[CandidateRecord]) -> float | None:
    fitness = [r.fitness for r in records if r.fitness is not None]
    return statistics.fmean(fitness) if fitness else None


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _best_text(best: CandidateRecord | None) -> str:
    if best is None:
        return "best -"
    macs = "" if best.macs is None else f" ({best.macs / 1e6:.1f}M MACs)"
    return f"best {best.fitness:.4f}{macs}"


def _shares(seconds: Counter[str]) -> str:
    total = sum(seconds.values()) or 1.0
    return ", ".join(f"{stage} {value / total:.0%}" for stage, value in seconds.most_common())
