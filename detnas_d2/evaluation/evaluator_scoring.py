"""Scoring of candidates by an evaluator each, whatever it is, in the processes that infer."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from detnas_d2.evaluation.scoring import flat_metrics, quiet
from detnas_d2.evaluation.scoring_workers import Score
from detnas_d2.evaluation.sequential import CountingEvaluator
from detnas_d2.utils.errors import CANDIDATE_FAILURES, CandidateFailed


class Scoring(Protocol):
    """Interface of :class:`ScoringPool` and :class:`EvaluatorScoring`, which score candidates."""

    def collector(self) -> Any:
        """Takes the outputs of one candidate: ``process`` as an evaluator, then ``finish``."""

    def share(self, part: Any, rank: int) -> Any:
        """All ranks' parts joined, on ``rank``; None on the others (collective)."""

    def submit(self, key: str, predictions: Any) -> Future[Score]:
        """The score of a candidate, perhaps later."""


@dataclass(frozen=True)
class Evaluated:
    """One candidate's evaluator with what it took in, after ``share`` with its results."""

    detections: int
    evaluator: CountingEvaluator | None = None
    outcome: Score | CandidateFailed | None = None


class EvaluatorScoring:
    """Scores candidates by evaluators of Detectron2's interface, whatever the model gives.

    Each candidate of a chunk has an evaluator of its own, which holds what it needs of the outputs
    until all images are seen; it is then evaluated on all ranks together, as a trainer would. The
    evaluators of a chunk are in memory at the same time.

    Args:
        build: makes a fresh evaluator, of all ranks.
    """

    def __init__(self, build: Callable[[], DatasetEvaluator]) -> None:
        self.build = build

    def collector(self) -> _Collector:
        return _Collector(self.build())

    def share(self, part: Evaluated, rank: int) -> Evaluated | None:
        start = time.perf_counter()
        assert part.evaluator is not None
        outcome: dict[str, float] | CandidateFailed
        try:
            with quiet():
                outcome = flat_metrics(part.evaluator.evaluate() or {})
        except CANDIDATE_FAILURES as error:
            outcome = CandidateFailed.because(error)
        # Evaluators report on rank 0, classification's on all.
        gathered = comm.all_gather((outcome, part.detections))
        if comm.get_rank() != rank:
            return None
        found = gathered[0][0]
        if not isinstance(found, CandidateFailed):
            found = Score(found, time.perf_counter() - start)
        return Evaluated(sum(count for _, count in gathered), outcome=found)

    def submit(self, key: str, predictions: Evaluated) -> Future[Score]:
        future: Future[Score] = Future()
        if isinstance(predictions.outcome, CandidateFailed):
            future.set_exception(predictions.outcome)
        elif predictions.outcome is not None:
            future.set_result(predictions.outcome)
        return future


class _Collector:
    def __init__(self, evaluator: DatasetEvaluator) -> None:
        self._evaluator = CountingEvaluator(evaluator)
        self._evaluator.reset()

    def process(self, inputs: Any, outputs: Any) -> None:
        self._evaluator.process(inputs, outputs)

    def finish(self) -> Evaluated:
        return Evaluated(self._evaluator.detections, self._evaluator)
