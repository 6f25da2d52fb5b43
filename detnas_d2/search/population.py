"""Evaluation of a population together: each piece of work once, results as one by one.

Two passes over the images for a chunk of candidates: calibration (statistics per node of the trie
of their paths) and inference (each candidate with its own). Per batch the paths run in the order
of a depth-first walk of the trie, see :class:`detnas_d2.modeling.PrefixWalk`; images are decoded,
moved and normalised once for all of them.

Memory beside the model and one forward pass: one activation of the backbone per layer at most (of
the layers after which paths of the chunk part), the statistics of all nodes seen (16 bytes per
channel of a BatchNorm), and 24 bytes per detection of the chunk.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import torch
from detectron2.evaluation import inference_context
from detectron2.utils import comm
from torch import nn

from detnas_d2.data import CalibrationBatches
from detnas_d2.modeling import PrefixWalk, activate, walking
from detnas_d2.search.candidate import CANDIDATE_FAILURES, CandidateFailed, Evaluation
from detnas_d2.search.evaluation import finite_features, fitness_of
from detnas_d2.search.population_statistics import (
    StatisticsMemory,
    agree_on_failures,
    attempt,
    on_device,
    recalibrate_population,
    shared_preprocessing,
)
from detnas_d2.search.predictions import Predictions
from detnas_d2.search.ranks import all_or_none
from detnas_d2.search.recalibration import BNStatistics, Loan, batch_norms
from detnas_d2.search.scoring_workers import Score, ScoringPool
from detnas_d2.search_space import Path

logger = logging.getLogger("detnas_d2.search")

Failures = dict[Path, CandidateFailed]


class PopulationEvaluator:
    """:class:`SequentialEvaluator`'s results for many paths at once.

    Candidates are taken in lexicographic order of their choices, ``chunk`` at a time. While a
    chunk is calibrated, the chunk before it is scored by the workers of ``scoring``; then its
    results are yielded, so that a killed search loses one chunk. Every rank calls
    :meth:`evaluate_many` with the same paths; ranks share the images, and score candidates in
    turn.

    Args:
        model: any Detectron2 model that holds a supernet.
        calibration: this rank's calibration batches, the same at every iteration.
        data_loader: this rank's share of the search-validation images.
        scoring: of this rank.
        metric: "task/metric" to maximise, e.g. "bbox/AP".
        chunk: candidates evaluated together.
        seed: seed of the model's random choices during calibration.
        calibration_key: names what ``calibration`` yields, see :class:`StatisticsMemory`.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        calibration: CalibrationBatches,
        data_loader: Iterable[list[dict]],
        scoring: ScoringPool,
        metric: str,
        chunk: int,
        seed: int = 0,
        calibration_key: str = "",
    ) -> None:
        if chunk < 1:
            raise ValueError(f"SEARCH.CHUNK must be positive, got {chunk}")
        self.model = model
        self.calibration = calibration
        self.data_loader = data_loader
        self.scoring = scoring
        self.metric = metric
        self.chunk = chunk
        self.seed = seed
        self.calibration_key = calibration_key
        self.memory = StatisticsMemory()

    def evaluate(self, path: Path) -> Evaluation:
        """Fitness of one path.

        Raises:
            CandidateFailed: why it has none.
        """
        ((_, outcome),) = self.evaluate_many([path])
        if isinstance(outcome, CandidateFailed):
            raise outcome
        return outcome

    def evaluate_many(
        self, paths: Sequence[Path]
    ) -> Iterator[tuple[Path, Evaluation | CandidateFailed]]:
        """Every path once with its evaluation or why it failed; see the class.

        Raises:
            KeyError: the evaluator does not report the metric; lists those it does.
            ScoringError: scoring cannot work, whatever the candidate.
        """
        ordered = PrefixWalk(paths).paths
        previous: _Inferred | None = None
        for start in range(0, len(ordered), self.chunk):
            chunk = ordered[start : start + self.chunk]
            begin = time.perf_counter()
            statistics = self.statistics(chunk)
            calibrated = time.perf_counter()
            if previous is not None:
                yield from self._finish(previous)
            resumed = time.perf_counter()
            predictions, failures = self._infer(statistics)
            seconds = {
                "recalibration": (calibrated - begin) / len(chunk),
                "inference": (time.perf_counter() - resumed) / len(chunk),
            }
            previous = self._submit(chunk, predictions, failures, seconds)
        if previous is not None:
            yield from self._finish(previous)

    def statistics(self, paths: Sequence[Path]) -> dict[Path, BNStatistics | CandidateFailed]:
        """Recalibrated statistics of the paths, merged over ranks; prefixes are remembered."""
        self.memory.use(self.model, self.calibration_key)

        def numbered() -> Iterator[tuple[int, list[dict]]]:
            # Nothing is loaded where everything is remembered.
            yield from zip(self.calibration.batch_ids, self.calibration, strict=True)

        return recalibrate_population(
            self.model, paths, numbered(), seed=self.seed, known=self.memory.nodes
        )

    @torch.no_grad()
    def _infer(
        self, statistics: dict[Path, BNStatistics | CandidateFailed]
    ) -> tuple[dict[Path, Predictions], Failures]:
        """What this rank's share of the images gives for every path, and which paths failed."""
        failures: Failures = {p: s for p, s in statistics.items() if isinstance(s, CandidateFailed)}
        walk = PrefixWalk(path for path in statistics if path not in failures)
        modules = batch_norms(self.model)
        loans = {path: Loan(modules, statistics[path]) for path in walk.paths}
        collectors = {path: self.scoring.collector() for path in walk.paths}
        with (
            all_or_none(),
            walking(self.model, walk),
            shared_preprocessing(self.model),
            inference_context(self.model),
            finite_features(self.model),
        ):
            for inputs in self.data_loader if walk.paths else ():
                inputs = on_device(inputs, self.model)
                walk.clear()
                for path in walk.paths:
                    if path in failures:
                        continue

                    def step(path: Path = path, inputs: list[dict] = inputs) -> None:
                        with activate(self.model, path), loans[path].installed():
                            collectors[path].process(inputs, self.model(inputs))

                    failure = attempt(step, walk)
                    if failure is not None:
                        failures[path] = failure
        failures = agree_on_failures(failures)
        finished = {p: c.finish() for p, c in collectors.items() if p not in failures}
        return finished, failures

    def _submit(
        self,
        chunk: list[Path],
        predictions: dict[Path, Predictions],
        failures: Failures,
        seconds: dict[str, float],
    ) -> _Inferred:
        futures: dict[Path, Future[Score]] = {}
        detections: dict[Path, int] = {}
        for turn, (path, part) in enumerate(predictions.items()):
            rank = turn % comm.get_world_size()
            parts = comm.gather(part, dst=rank)
            if comm.get_rank() == rank:
                merged = type(part).merged(parts)
                detections[path] = merged.detections
                futures[path] = self.scoring.submit(str(path), merged)
        return _Inferred(chunk, failures, futures, detections, seconds)

    def _finish(
        self, inferred: _Inferred
    ) -> Iterator[tuple[Path, Evaluation | CandidateFailed]]:
        """Waits for the scores of a chunk."""
        mine: dict[Path, Evaluation | CandidateFailed] = dict(inferred.failures)
        for path, future in inferred.futures.items():
            try:
                score = future.result()
            except CANDIDATE_FAILURES as error:
                mine[path] = CandidateFailed.because(error)
                continue
            fitness = fitness_of(score.metrics, self.metric, inferred.detections[path])
            seconds = {**inferred.seconds, "scoring": score.seconds}
            mine[path] = Evaluation(fitness, score.metrics, seconds)
        outcomes: dict[Path, Evaluation | CandidateFailed] = {}
        for part in comm.all_gather(mine):
            outcomes |= part
        for path in inferred.paths:
            yield path, outcomes[path]


@dataclass(frozen=True)
class _Inferred:
    """A chunk on its way through scoring; ``futures`` and ``detections`` are this rank's share."""

    paths: list[Path]
    failures: Failures
    futures: dict[Path, Future[Score]]
    detections: dict[Path, int]
    seconds: dict[str, float]
