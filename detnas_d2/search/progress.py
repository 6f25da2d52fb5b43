"""Progress of a search: lines at even intervals, a summary per generation."""

from __future__ import annotations

import logging
import statistics
import time
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from detnas_d2.evaluation.candidate import CandidateRecord
from detnas_d2.evaluation.passes import PASSES
from detnas_d2.search.objectives import FrontSoFar, Objectives
from detnas_d2.search.searcher import GenerationSearcher
from detnas_d2.utils.io import write_json
from detnas_d2.utils.screen import Pace

logger = logging.getLogger("detnas_d2.search")

T = TypeVar("T")

SUMMARY_FILE = "generations.json"


class Progress:
    """An `on_progress` callback of `run_search`, for rank 0.

    Candidates that are evaluated together are finished together; lines come at even times all the
    same (level INFO, every ten seconds, after ten minutes every minute), and the time left counts
    the share of them that is done. What each candidate got goes to the log file (level DEBUG).

    After every generation ``generations.json`` in `directory` is rewritten: a list with one object
    per generation: generation (from 1), evaluated, failed, best, mean, std (population standard
    deviation; None if all failed), best_path, best_macs, best_so_far, seconds (per stage, summed).
    With several objectives also front (members so far) and hypervolume (of the front so far).

    Args:
        searcher: tells how many generations and candidates to expect.
        directory: where to write the summaries; None: nowhere.
        clock: seconds, monotonic.
        outlook: what to tell after the time left, called with that and the share of the search.
        tell: called whenever something is done, with candidates done (shares of those that are not
            finished included) and in all, the seconds left (None before they are known), and a text
            about the best so far ("" before there is one).
        objectives: of the search, if there are several.
    """

    def __init__(
        self,
        searcher: GenerationSearcher,
        directory: str | Path | None = None,
        clock: Callable[[], float] = time.monotonic,
        outlook: Callable[[float, float], str] = lambda eta, share: "",
        tell: Callable[[float, int, float | None, str], None] = lambda *_: None,
        objectives: Objectives | None = None,
    ) -> None:
        self._outlook, self._tell = outlook, tell
        self.summaries: list[dict[str, Any]] = []
        self._expected = searcher.expected
        self._generations = searcher.generations
        self._directory = None if directory is None else Path(directory)
        self._clock = clock
        self._start, self._pace = clock(), Pace(clock)
        self._replayed = 0
        self._live = 0
        self._work = 0.0  # candidates of this run, with the shares of those not finished yet
        self._passed = 0.0  # part of _work before the current pass
        self._stage = ""
        self._generation, self._size = 1, searcher.expected // searcher.generations
        self._best: CandidateRecord | None = None
        self._members: list[CandidateRecord] = []
        self._front = None if objectives is None else FrontSoFar(objectives)
        self._seconds: Counter[str] = Counter()

    def __call__(self, record: CandidateRecord, *, size: int, replayed: bool) -> None:
        """Take note of a candidate of a generation of `size`."""
        self._members.append(record)
        self._generation, self._size = record.generation, size
        self._best = _best([record] if self._best is None else [self._best, record])
        if replayed:
            self._replayed += 1
            self._start = self._clock()  # replaying is no measure of evaluating
            self._pace.restart()
        else:
            self._live += 1
            self._work = max(self._work, self._live)
            self._seconds.update(record.seconds)
            logger.debug(_candidate_line(record, len(self._members), size))
        self._tell_how_far()
        if len(self._members) == size:
            self._finish_generation(record.generation, quiet=replayed)
        elif not replayed:
            self._say()

    def passed(self, stage: str, candidates: int, done: int, total: int) -> None:
        """An `OnPass`: counts what is done of candidates that are not finished yet."""
        share = candidates * self._share(stage)
        self._work = max(self._live, self._passed + share * done / max(total, 1))
        self._stage = f" | {stage} {done / max(total, 1):.0%}"
        if done >= total:
            self._passed, self._stage = self._work, ""
        self._tell_how_far()
        self._say()

    def _tell_how_far(self) -> None:
        done = self._replayed + self._work
        best = "" if self._best is None else _best_text(self._best)
        self._tell(done, self._expected, self.eta_seconds, best)

    def _share(self, stage: str) -> float:
        """Part of a candidate's time that a pass takes, by those finished so far."""
        together = sum(self._seconds[name] for name in PASSES)
        return self._seconds[stage] / together if together else 1 / len(PASSES)

    @property
    def eta_seconds(self) -> float | None:
        """Time left at the pace of this run's own evaluations; None before the first."""
        if not self._work:
            return None
        return (self._clock() - self._start) / self._work * self._left

    @property
    def _left(self) -> float:
        """Candidates still to evaluate."""
        return max(0.0, self._expected - self._replayed - self._work)

    def _eta_text(self) -> str:
        eta = self.eta_seconds
        if eta is None:
            return "ETA -"
        share = self._left / self._expected
        return f"ETA {timedelta(seconds=round(eta))}{self._outlook(eta, share)}"

    def _say(self) -> None:
        if not self._pace.due():
            return
        parts = [
            f"generation {self._generation}/{self._generations}: {len(self._members)} of "
            f"{self._size} candidates{self._stage}",
            _best_text(self._best),
            f"generation mean {_number(_mean(self._members))}",
            self._eta_text(),
        ]
        if self._seconds:
            parts.append(f"time: {_shares(self._seconds)}")
        logger.info(" | ".join(parts))

    def _finish_generation(self, generation: int, *, quiet: bool) -> None:
        members, self._members = self._members, []
        self._generation = generation + 1
        self._pace.said()
        self._work = self._passed = float(self._live)
        fitness = [r.fitness for r in members if r.fitness is not None]
        best = _best(members)
        seconds: Counter[str] = Counter()
        for record in members:
            seconds.update(record.seconds)
        std = statistics.stdev(fitness) if len(fitness) > 1 else None
        summary = {
            "generation": generation,
            "evaluated": len(members),
            "failed": len(members) - len(fitness),
            "best": best.fitness if best else None,
            "mean": _mean(members),
            "std": std,
            "best_path": best.path if best else None,
            "best_macs": best.macs if best else None,
            "best_so_far": self._best.fitness if self._best else None,
            "seconds": dict(seconds),
            **self._front_with(members),
        }
        self.summaries.append(summary)
        if self._directory is not None:
            write_json(self._directory / SUMMARY_FILE, self.summaries, indent=2)
        if not quiet:
            logger.info(
                "generation %d/%d done: best %s mean %s std %s of %d (%d failed) | %s | %s",
                generation,
                self._generations,
                _number(best.fitness if best else None),
                _number(_mean(members)),
                _number(std),
                len(members),
                len(members) - len(fitness),
                _best_text(self._best) + _front_text(summary),
                self._eta_text(),
            )

    def _front_with(self, members: list[CandidateRecord]) -> dict[str, Any]:
        """What a summary has of several objectives."""
        if self._front is None:
            return {}
        self._front.add(members)
        return {"front": len(self._front.members), "hypervolume": self._front.hypervolume}


def _best(records: list[CandidateRecord]) -> CandidateRecord | None:
    alive = (record for record in records if record.fitness is not None)
    return min(alive, key=lambda record: record.rank_key, default=None)


def _mean(records: list[CandidateRecord]) -> float | None:
    fitness = [r.fitness for r in records if r.fitness is not None]
    return statistics.fmean(fitness) if fitness else None


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _candidate_line(record: CandidateRecord, number: int, size: int) -> str:
    result = "failed" if record.fitness is None else f"fitness {record.fitness:.4f}"
    return f"generation {record.generation} candidate {number}/{size} {record.path}: {result}"


def _best_text(best: CandidateRecord | None) -> str:
    if best is None:
        return "best -"
    macs = "" if best.macs is None else f" ({best.macs / 1e6:.1f}M MACs)"
    return f"best {best.fitness:.4f}{macs}"


def _front_text(summary: dict[str, Any]) -> str:
    if "front" not in summary:
        return ""
    return f" | front of {summary['front']}, hypervolume {summary['hypervolume']:.4f}"


def _shares(seconds: Counter[str]) -> str:
    total = sum(seconds.values()) or 1.0
    return ", ".join(f"{stage} {value / total:.0%}" for stage, value in seconds.most_common())
