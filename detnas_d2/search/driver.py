"""The search loop: ask for candidates, evaluate them, put them on disk, tell the searcher."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol

from detnas_d2.evaluation.candidate import (
    CandidateRecord,
    Evaluation,
    Evaluator,
    ManyEvaluator,
    finite_or_none,
)
from detnas_d2.evaluation.ranks import Ranks
from detnas_d2.search.constraints import Constraint
from detnas_d2.search.history import History, HistoryError
from detnas_d2.search.searcher import GenerationSearcher
from detnas_d2.search_space import Choices
from detnas_d2.utils.errors import CANDIDATE_FAILURES, CandidateFailed

logger = logging.getLogger("detnas_d2.search")


class ReplayError(HistoryError):
    """The history is not what the searcher, told the same fitness values, would have asked for."""


class TooManyFailures(Exception):
    """More candidates failed than allowed. Everything evaluated so far is in the history."""


class Space(Protocol):
    """Interface of a search space that the loop needs: canonical paths from choices."""

    def path(self, source: Sequence[int]) -> Any: ...


OnProgress = Callable[..., None]
"""Called as ``f(record, size=<candidates of its generation>, replayed=<bool>)``."""


def open_history(
    directory: str | Path,
    fingerprint: Mapping[str, Any],
    *,
    resume: bool,
    ranks: Ranks | None = None,
) -> History:
    """`History.open` on rank 0; the other ranks get its records and write nothing.

    Collective. If rank 0 cannot open it, every rank raises (none is left waiting).
    """
    ranks = ranks or Ranks()
    history, failure = None, None
    if ranks.is_main:
        try:
            history = History.open(directory, fingerprint, resume=resume)
        except (OSError, ValueError) as error:
            failure = error
    records, message = ranks.from_main(
        (list(history) if history else [], str(failure) if failure else None)
    )
    if failure is not None:
        raise failure
    if message is not None:
        raise HistoryError(f"rank 0: {message}")
    return history if history is not None else History.in_memory(records)


def run_search(
    searcher: GenerationSearcher,
    evaluator: Evaluator | ManyEvaluator,
    history: History,
    *,
    space: Space,
    limits: Constraint,
    max_failures: int,
    on_progress: OnProgress | None = None,
    after_generation: Callable[[], None] | None = None,
    ranks: Ranks | None = None,
) -> CandidateRecord:
    """Search until the searcher is done; what `history` holds already is not evaluated again.

    Collective: every rank calls it with an equal searcher and history. A candidate fails if it
    fails on any rank; otherwise rank 0's evaluation counts.

    Args:
        searcher: fresh; its `feasible` should be `limits`.
        evaluator: `evaluate_many` is used where there is one.
        limits: supplies the costs that go into the records.
        max_failures: the search stops when more candidates than this have failed.
        on_progress: called after each candidate, replayed ones included; pass it on rank 0 only.
        after_generation: called on every rank after each generation that was evaluated but the
            last; by an exception of its own it ends the search, which can be resumed.
        ranks: default: Detectron2's process group.

    Returns:
        The best candidate.

    Raises:
        ReplayError: the history does not fit the searcher; names the record.
        TooManyFailures: see `max_failures`; also if no candidate at all could be evaluated.
    """
    loop = _Loop(searcher, history, space, limits, max_failures, on_progress, ranks or Ranks())
    replayed = loop.replay()
    if replayed:
        logger.info("resumed: %d candidates taken from the history", replayed)
    while not searcher.done:
        loop.run_generation(evaluator)
        if after_generation is not None and not searcher.done:
            after_generation()
    best = history.best()
    if not best:
        raise TooManyFailures(f"none of the {len(history)} candidates could be evaluated")
    return best[0]


class _Loop:
    """The state of one `run_search` call."""

    def __init__(
        self,
        searcher: GenerationSearcher,
        history: History,
        space: Space,
        limits: Constraint,
        max_failures: int,
        on_progress: OnProgress | None,
        ranks: Ranks,
    ) -> None:
        self.searcher = searcher
        self.history = history
        self.space = space
        self.limits = limits
        self.max_failures = max_failures
        self.on_progress = on_progress
        self.ranks = ranks

    def replay(self) -> int:
        """Tell the searcher all records; returns their number."""
        told: set[Choices] = set()
        while not self.searcher.done:
            found = [r for r in map(self.history.get, self.searcher.ask()) if r is not None]
            if not found:
                break
            for record in found:
                self._verify(record)
                self._tell(record, replayed=True)
                told.add(record.choices)
        for record in self.history:
            if record.choices not in told:
                raise ReplayError(
                    f"record {record.index} (generation {record.generation}, position "
                    f"{record.position}, path {record.path}) is not what the searcher asks for, "
                    f"which is at generation {self.searcher.generation} after {len(told)} records"
                )
        self._check_failures()
        return len(told)

    def _verify(self, record: CandidateRecord) -> None:
        place, origin = self._place(record.choices)
        path = str(self.space.path(record.choices))
        here = (*place, origin, path)
        stored = (record.generation, record.position, record.origin, record.path)
        if here != stored:
            raise ReplayError(
                f"record {record.index}: the history has (generation, position, origin, path) = "
                f"{stored}, the searcher asks for {here}"
            )

    def run_generation(self, evaluator: Evaluator | ManyEvaluator) -> None:
        """Evaluate what is left of the current generation."""
        waiting = {self.space.path(choices): choices for choices in self.searcher.ask()}
        for path, outcome in _outcomes(evaluator, list(waiting)):
            if path not in waiting:
                raise ValueError(f"the evaluator returned {path}, which is not waited for")
            record = self._record(waiting.pop(path), str(path), self._agree(outcome))
            self.history.append(record)
            self._tell(record, replayed=False)
            if record.error is not None:
                logger.warning("candidate %s failed: %s", record.path, record.error)
                self._check_failures()
        if waiting:
            raise ValueError(f"the evaluator left out {len(waiting)} of the candidates")

    def _agree(self, outcome: Evaluation | Exception) -> Evaluation | str:
        """The evaluation that counts on all ranks, or why the candidate failed."""
        if not isinstance(outcome, (Evaluation, Exception)):
            raise TypeError(f"the evaluator returned {outcome!r}, expected an Evaluation")
        own: Evaluation | str
        own = outcome if isinstance(outcome, Evaluation) else str(CandidateFailed.because(outcome))
        everywhere = self.ranks.gather(own)
        for rank, found in enumerate(everywhere):
            if isinstance(found, str):
                return found if len(everywhere) == 1 else f"rank {rank}: {found}"
        result: Evaluation = everywhere[0]
        if not math.isfinite(result.fitness):
            return f"fitness is {result.fitness}"
        return result

    def _record(self, choices: Choices, path: str, result: Evaluation | str) -> CandidateRecord:
        (generation, position), origin = self._place(choices)
        costs: dict[str, Any] = self.limits.costs_of(choices)
        found, error = (None, result) if isinstance(result, str) else (result, None)
        return CandidateRecord(
            index=len(self.history),
            generation=generation,
            position=position,
            origin=origin,
            path=path,
            choices=choices,
            fitness=None if found is None else float(found.fitness),
            metrics={} if found is None else finite_or_none(found.metrics),
            **costs,
            error=error,
            seconds={} if found is None else {k: float(v) for k, v in found.seconds.items()},
            finished=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )

    def _place(self, choices: Choices) -> tuple[tuple[int, int], str]:
        position = self.searcher.population.index(choices)
        return (self.searcher.generation, position), self.searcher.origins[position]

    def _tell(self, record: CandidateRecord, *, replayed: bool) -> None:
        size = len(self.searcher.population)
        self.searcher.tell(record.choices, record.fitness)
        if self.on_progress is not None:
            self.on_progress(record, size=size, replayed=replayed)

    def _check_failures(self) -> None:
        failed = self.history.failed
        if len(failed) > self.max_failures:
            last = "\n  ".join(f"{record.path}: {record.error}" for record in failed[-3:])
            raise TooManyFailures(
                f"{len(failed)} of {len(self.history)} candidates failed, more than the "
                f"{self.max_failures} allowed (SEARCH.MAX_FAILURES); the last:\n  {last}\n"
                "The history is kept: raise the limit to resume with these as failed."
            )


def _outcomes(
    evaluator: Evaluator | ManyEvaluator, paths: list[Any]
) -> Iterator[tuple[Any, Evaluation | Exception]]:
    """Results of all `paths`, together if the evaluator can, else one after another."""
    if hasattr(evaluator, "evaluate_many"):
        yield from evaluator.evaluate_many(paths)
        return
    for path in paths:
        outcome: Evaluation | Exception
        try:
            outcome = evaluator.evaluate(path)
        except CANDIDATE_FAILURES as error:
            logger.warning("evaluating %s failed", path, exc_info=True)
            outcome = CandidateFailed.because(error)
        yield path, outcome
