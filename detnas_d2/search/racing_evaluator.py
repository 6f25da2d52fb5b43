"""The population evaluator of a search whose candidates race. Approximate; see `racing`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

from detectron2.utils import comm

from detnas_d2.search.candidate import CANDIDATE_FAILURES, CandidateFailed, Evaluation
from detnas_d2.search.evaluation import fitness_of
from detnas_d2.search.population import Chunk, Inferred, PopulationEvaluator
from detnas_d2.search.predictions import Predictions
from detnas_d2.search.racing import Race, shard_metrics
from detnas_d2.search.scoring_workers import Score
from detnas_d2.search_space import Path


class RacingEvaluator(PopulationEvaluator):
    """Evaluates shard after shard and drops candidates that cannot reach their opponent.

    A candidate that is not dropped is evaluated as by :class:`PopulationEvaluator`; its fitness on
    every shard is added to its metrics. A shard is scored while the next one is inferred, so a
    candidate goes on for one shard more than the bound needs.

    Args:
        race: who is dropped when.
    """

    def __init__(self, *args: Any, race: Race, **arguments: Any) -> None:
        super().__init__(*args, **arguments)
        self.race = race

    def _infer(self, chunk: Chunk, seconds: dict[str, float]) -> Inferred:
        start = time.perf_counter()
        inferred = _Raced(chunk, seconds)
        opponent = self.race.opponent()
        for shard in self._shards(len(chunk.paths)):
            self._drop(inferred, self._judged(inferred, opponent))
            if not chunk.active:
                break
            for path, predictions in self._shared_out(chunk, chunk.infer(shard)):
                inferred.parts.setdefault(path, []).append(predictions)
                future = self.scoring.submit(str(path), predictions)
                inferred.shards.setdefault(path, []).append(future)
        seconds["inference"] = (time.perf_counter() - start) / len(chunk.paths)
        for path, parts in inferred.parts.items():
            if path in chunk.active:
                whole = type(parts[0]).merged(parts)
                inferred.detections[path] = whole.detections
                inferred.futures[path] = self.scoring.submit(str(path), whole)
        return inferred

    def _shards(self, candidates: int) -> Iterator[list[list[dict]] | Iterator[list[dict]]]:
        """This rank's batches, cut into as many shards on every rank (some may be empty)."""
        count, total = self.race.settings.shards, len(self.data_loader)
        batches = self._watched(self.data_loader, "inference", candidates)
        for shard in range(count):
            size = total * (shard + 1) // count - total * shard // count
            yield _take(batches, size)

    def _judged(self, inferred: _Raced, opponent: Any) -> dict[Path, Evaluation | CandidateFailed]:
        """Candidates to drop, the same on every rank (collective)."""
        mine: dict[Path, Evaluation | CandidateFailed] = {}
        for path, futures in inferred.shards.items():
            if path not in inferred.chunk.active:
                continue
            scores = self._scores(inferred, path, futures)
            if isinstance(scores, CandidateFailed):
                mine[path] = scores
                continue
            verdict = self.race.judge(scores, opponent)
            if verdict is not None:
                mine[path] = Evaluation(*verdict, dict(inferred.seconds))
        everywhere: dict[Path, Evaluation | CandidateFailed] = {}
        for part in comm.all_gather(mine):
            everywhere |= part
        return everywhere

    def _drop(self, inferred: _Raced, judged: dict[Path, Evaluation | CandidateFailed]) -> None:
        chunk = inferred.chunk
        for path, outcome in judged.items():
            if isinstance(outcome, CandidateFailed):
                chunk.failures[path] = outcome
            else:
                inferred.settled[path] = outcome
        chunk.active = [path for path in chunk.active if path not in judged]

    def _scores(
        self, inferred: _Raced, path: Path, futures: list[Future[Score]]
    ) -> list[float] | CandidateFailed:
        """Fitness on the shards so far."""
        try:
            found = [future.result() for future in futures]
        except CANDIDATE_FAILURES as error:
            return CandidateFailed.because(error)
        parts = inferred.parts[path]
        return [
            fitness_of(score.metrics, self.metric, part.detections)
            for score, part in zip(found, parts, strict=True)
        ]

    def _evaluation(
        self, path: Path, future: Future[Score], inferred: Inferred
    ) -> Evaluation | CandidateFailed:
        found = super()._evaluation(path, future, inferred)
        if isinstance(found, CandidateFailed):
            return found
        scores = self._scores(inferred, path, inferred.shards[path])
        if isinstance(scores, CandidateFailed):
            return scores
        metrics = {**found.metrics, **shard_metrics(scores)}
        return Evaluation(found.fitness, metrics, found.seconds)


class _Raced(Inferred):
    """A chunk whose shards are scored one by one; predictions and scores of this rank's share."""

    def __init__(self, chunk: Chunk, seconds: dict[str, float]) -> None:
        super().__init__(chunk, seconds)
        self.parts: dict[Path, list[Predictions]] = {}
        self.shards: dict[Path, list[Future[Score]]] = {}


def _take(batches: Iterator[list[dict]], count: int) -> Iterator[list[dict]]:
    for _ in range(count):
        yield next(batches)
