"""Evaluation of a population together: each piece of work once, results as one by one.

Two passes over the images for a chunk of candidates: calibration (statistics per node of the trie
of their paths) and inference (each candidate with its own). Per batch the paths run in the order
of a depth-first walk of the trie, see :class:`detnas_d2.modeling.PrefixWalk`; images are decoded,
moved and normalised once for all of them.

Memory besides the model and one forward pass, which on a GPU may be that of several small
calibration batches: one activation of the backbone per layer at most (of the layers after which
paths of the chunk part), the statistics of all nodes seen (16 bytes per
channel of a BatchNorm), and 24 bytes per detection of the chunk; on the CPU also weights with these
statistics folded in, of up to ``kept_weights.MOST_BYTES``. Graphs share the memory of one
more forward pass, and have an input and results for each size of images.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from detectron2.utils import comm
from torch import nn

from detnas_d2.evaluation.candidate import Evaluation
from detnas_d2.evaluation.evaluator_scoring import Scoring
from detnas_d2.evaluation.graphed_supernet import graphed
from detnas_d2.evaluation.graphs import GraphedCalls
from detnas_d2.evaluation.passes import OnPass, counted, log_pass
from detnas_d2.evaluation.predictions import Predictions
from detnas_d2.evaluation.prefix_statistics import (
    StatisticsMemory,
    agree_on_failures,
    attempt,
    recalibrate_population,
    shared_preprocessing,
    to_device,
)
from detnas_d2.evaluation.ranks import all_or_none
from detnas_d2.evaluation.recalibration import BNOverride, BNStatistics, NumberedBatches
from detnas_d2.evaluation.scoring_workers import Score
from detnas_d2.evaluation.sequential import finite_features, fitness_of
from detnas_d2.layers.batch_norm_mode import batch_norms, in_mode
from detnas_d2.layers.kept_weights import weights_stay
from detnas_d2.modeling import PrefixWalk, activate, walking
from detnas_d2.search_space import Path
from detnas_d2.utils.errors import CANDIDATE_FAILURES, CandidateFailed

T = TypeVar("T")

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
        together: calibration batches that run together at most, see
            :func:`recalibrate_population`.
        graphs: replay the backbone of candidates, to the bit, for sizes of images that come again;
            None: none is.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        calibration: NumberedBatches,
        data_loader: Iterable[list[dict[str, Any]]],
        scoring: Scoring,
        metric: str,
        chunk: int,
        seed: int = 0,
        calibration_key: str = "",
        together: int = 0,
        graphs: GraphedCalls | None = None,
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
        self.together = together
        self.graphs = graphs
        self.memory = StatisticsMemory()
        self.on_pass: OnPass = log_pass

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
            WorkerError: scoring cannot work, whatever the candidate.
        """
        ordered = PrefixWalk(paths).paths
        previous: PendingScores | None = None
        for start in range(0, len(ordered), self.chunk):
            chunk = ordered[start : start + self.chunk]
            begin = time.perf_counter()
            statistics = self.statistics(chunk)
            calibrated = time.perf_counter()
            if previous is not None:
                yield from self._finish(previous)
            seconds = {"recalibration": (calibrated - begin) / len(chunk)}
            previous = self._infer(self._chunk(chunk, statistics), seconds)
        if previous is not None:
            yield from self._finish(previous)

    def predictions(self, paths: Sequence[Path]) -> Iterator[tuple[Path, Predictions]]:
        """This rank's share of the paths, with predictions for the images of all ranks
        (collective). A path that fails is left out.
        """
        ordered = PrefixWalk(paths).paths
        for start in range(0, len(ordered), self.chunk):
            part = ordered[start : start + self.chunk]
            chunk = self._chunk(part, self.statistics(part))
            found = chunk.infer(self._watched(self.data_loader, "inference", len(part)))
            yield from self._shared_out(chunk, found)

    def statistics(self, paths: Sequence[Path]) -> dict[Path, BNStatistics | CandidateFailed]:
        """Recalibrated statistics of the paths, merged over ranks; prefixes are remembered."""
        self.memory.use(self.model, self.calibration_key)

        def numbered() -> Iterator[tuple[int, list[dict[str, Any]]]]:
            # Nothing is loaded where everything is remembered.
            batches = self._watched(self.calibration, "recalibration", len(paths))
            yield from zip(self.calibration.batch_ids, batches, strict=True)

        return recalibrate_population(
            self.model,
            paths,
            numbered(),
            seed=self.seed,
            known=self.memory.nodes,
            together=self.together,
            graphs=self.graphs,
        )

    def _chunk(
        self, paths: list[Path], statistics: dict[Path, BNStatistics | CandidateFailed]
    ) -> Chunk:
        return Chunk(self.model, self.scoring, paths, statistics, self.graphs)

    def _watched(self, batches: Iterable[T], stage: str, candidates: int) -> Iterator[T]:
        return counted(batches, lambda done, total: self.on_pass(stage, candidates, done, total))

    def _infer(self, chunk: Chunk, seconds: dict[str, float]) -> PendingScores:
        """Infers a chunk and hands it to the scoring workers."""
        start = time.perf_counter()
        found = chunk.infer(self._watched(self.data_loader, "inference", len(chunk.paths)))
        seconds["inference"] = (time.perf_counter() - start) / len(chunk.paths)
        pending = PendingScores(chunk, seconds)
        for path, predictions in self._shared_out(chunk, found):
            pending.detections[path] = predictions.detections
            pending.futures[path] = self.scoring.submit(str(path), predictions)
        return pending

    def _shared_out(
        self, chunk: Chunk, found: dict[Path, Predictions]
    ) -> Iterator[tuple[Path, Predictions]]:
        """This rank's share of the candidates, with the predictions of all ranks (collective)."""
        for path, part in found.items():
            whole = self.scoring.share(part, chunk.paths.index(path) % comm.get_world_size())
            if whole is not None:
                yield path, whole

    def _finish(
        self, pending: PendingScores
    ) -> Iterator[tuple[Path, Evaluation | CandidateFailed]]:
        """Waits for the scores of a chunk (collective)."""
        mine: dict[Path, Evaluation | CandidateFailed] = {}
        for path, future in pending.futures.items():
            mine[path] = self._evaluation(path, future, pending)
        outcomes: dict[Path, Evaluation | CandidateFailed] = dict(pending.chunk.failures)
        for part in comm.all_gather(mine):
            outcomes |= part
        for path in pending.chunk.paths:
            yield path, outcomes[path]

    def _evaluation(
        self, path: Path, future: Future[Score], pending: PendingScores
    ) -> Evaluation | CandidateFailed:
        try:
            score = future.result()
        except (*CANDIDATE_FAILURES, CandidateFailed) as error:
            return CandidateFailed.because(error)
        fitness = fitness_of(score.metrics, self.metric, pending.detections[path])
        return Evaluation(fitness, score.metrics, {**pending.seconds, "scoring": score.seconds})


class Chunk:
    """Candidates that were evaluated together.

    Args:
        paths: in the order of a walk.
        statistics: of every path, or why it has none.
        graphs: see :class:`PopulationEvaluator`.

    Attributes:
        failures: the candidates that failed so far; the same on every rank.
        active: the candidates that take part in the next pass.
    """

    def __init__(
        self,
        model: nn.Module,
        scoring: Scoring,
        paths: list[Path],
        statistics: dict[Path, BNStatistics | CandidateFailed],
        graphs: GraphedCalls | None = None,
    ) -> None:
        self.paths = paths
        self.failures: Failures = {
            path: why for path, why in statistics.items() if isinstance(why, CandidateFailed)
        }
        self.active = [path for path in paths if path not in self.failures]
        self._model = model
        self._scoring = scoring
        self._graphs = graphs
        modules = batch_norms(model)
        self._overrides = {
            path: BNOverride(modules, found)
            for path in self.active
            if not isinstance(found := statistics[path], CandidateFailed)
        }

    @torch.no_grad()
    def infer(self, batches: Iterable[list[dict[str, Any]]]) -> dict[Path, Predictions]:
        """Predictions of the active candidates for this rank's batches.

        Collective: a candidate that fails on a rank fails on all and is not active any more.
        """
        model, failures = self._model, {}
        walk = PrefixWalk(self.active)
        collectors = {path: self._scoring.collector() for path in walk.paths}
        with (
            all_or_none(),
            walking(model, walk),
            shared_preprocessing(model),
            in_mode(model, training=False),
            finite_features(model),
            graphed(model, self._graphs, "evaluation"),
            weights_stay(model),
        ):
            for inputs in batches if walk.paths else ():
                inputs = to_device(inputs, model)
                walk.clear()
                for path in walk.paths:
                    if path in failures:
                        continue

                    def step(path: Path = path, inputs: list[dict[str, Any]] = inputs) -> None:
                        with activate(model, path), self._overrides[path].applied():
                            collectors[path].process(inputs, model(inputs))

                    failure = attempt(step, walk)
                    if failure is not None:
                        failures[path] = failure
        self.failures |= agree_on_failures(failures)
        self.active = [path for path in self.active if path not in self.failures]
        return {path: collectors[path].finish() for path in self.active}


@dataclass
class PendingScores:
    """A chunk on its way through scoring.

    Attributes:
        futures, detections: of this rank's share of the candidates.
    """

    chunk: Chunk
    seconds: dict[str, float]
    futures: dict[Path, Future[Score]] = field(default_factory=dict)
    detections: dict[Path, int] = field(default_factory=dict)
