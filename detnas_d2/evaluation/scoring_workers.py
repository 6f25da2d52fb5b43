"""Scoring of finished candidates in worker processes, while the next ones infer."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from detnas_d2.evaluation.classification import accuracy
from detnas_d2.evaluation.evaluators import coco_file, detection_evaluator, metadata_of
from detnas_d2.evaluation.predictions import (
    DetectionCollector,
    Detections,
    TopKCollector,
    TopKCounts,
)
from detnas_d2.evaluation.scoring import evaluator_type, flat_metrics, quiet
from detnas_d2.utils.workers import WorkerPool

_METADATA = (
    "json_file",
    "thing_classes",
    "thing_dataset_id_to_contiguous_id",
    "dirname",
    "split",
    "year",
)


@dataclass(frozen=True)
class Score:
    """``metrics`` as :func:`flat_metrics` gives them; ``seconds`` that scoring took."""

    metrics: dict[str, float]
    seconds: float


@dataclass(frozen=True)
class ScoringTask:
    """Dataset and settings of a scoring; can be sent to another process.

    Attributes:
        kind: "coco", "pascal_voc" or "image_classification".
        metadata: the entries of Detectron2's catalog that evaluators read.
        sigmas: see :func:`detnas_d2.evaluation.evaluators.keypoint_sigmas`.
    """

    kind: str
    dataset_name: str
    metadata: Mapping[str, Any]
    sigmas: tuple[float, ...] | None

    @classmethod
    def of(
        cls, dataset_name: str, *, output_dir: str, sigmas: tuple[float, ...] | None = None
    ) -> ScoringTask:
        """Of a registered dataset. One that has no COCO file gets one in ``output_dir``.

        Raises:
            ValueError: a dataset of an unknown type.
        """
        kind, metadata = evaluator_type(dataset_name), MetadataCatalog.get(dataset_name)
        known = {n: getattr(metadata, n) for n in _METADATA if hasattr(metadata, n)}
        return cls(
            "coco" if kind == "coco_panoptic_seg" else kind,
            dataset_name,
            {**known, **coco_file(dataset_name, output_dir)},
            sigmas,
        )

    def evaluator(self) -> DatasetEvaluator:
        """Detectron2's, with its ground truth, in a process where the dataset may be unknown."""
        with metadata_of(self.dataset_name, self.metadata), quiet():
            return detection_evaluator(
                self.kind, self.dataset_name, sigmas=self.sigmas, distributed=False
            )

    def __call__(self) -> Callable[[Detections], Score]:
        """Function that a worker calls for every candidate."""
        torch.set_num_threads(1)
        evaluator = self.evaluator()
        return lambda detections: score(evaluator, detections)


class ScoringPool:
    """Scores candidates on ``workers`` processes; on none, at once in this one.

    Classification needs no more than a division and is always done at once. Usage::

        with ScoringPool(ScoringTask.of("coco_2017_val", output_dir="output"), workers=2) as pool:
            collector = pool.collector()
            collector.process(inputs, outputs)  # for every batch of this rank
            predictions = pool.share(collector.finish(), rank=0)  # of all ranks
            future = pool.submit(str(path), predictions)
            future.result().metrics  # == flat_metrics(evaluator.evaluate()), to the last bit

    The future raises a RuntimeError if scoring this candidate failed or its worker died (another
    one is started), and a :class:`WorkerError` if it is not the candidate's fault. Leaving the
    block waits for what was submitted; after an exception it drops it.

    Nothing is written but what Detectron2's VOC evaluator puts in a temporary folder.
    """

    def __init__(self, task: ScoringTask, *, workers: int) -> None:
        if workers < 0:
            raise ValueError(f"SEARCH.SCORING_WORKERS must not be negative, got {workers}")
        self.task = task
        self._evaluator: DatasetEvaluator | None = None
        use_pool = workers > 0 and task.kind != "image_classification"
        self._pool = WorkerPool(task, workers) if use_pool else None

    def __enter__(self) -> ScoringPool:
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        self.close(wait=kind is None)

    def collector(self) -> DetectionCollector | TopKCollector:
        """Takes the outputs of one candidate, image after image, as an evaluator would."""
        return TopKCollector() if self.task.kind == "image_classification" else DetectionCollector()

    def share(self, part: Detections | TopKCounts, rank: int) -> Detections | TopKCounts | None:
        """The predictions of all ranks, on ``rank``; None on the others (collective)."""
        parts = comm.gather(part, dst=rank)
        return type(part).merged(parts) if comm.get_rank() == rank else None

    def submit(self, key: str, predictions: Detections | TopKCounts) -> Future[Score]:
        """Scores one candidate's predictions of all images; with workers, returns at once.

        Args:
            key: names the candidate in error messages.
        """
        if self._pool is not None:
            return self._pool.submit(key, predictions)
        future: Future[Score] = Future()
        try:
            future.set_result(self._score_here(predictions))
        except Exception as error:
            future.set_exception(error)
        return future

    def _score_here(self, predictions: Detections | TopKCounts) -> Score:
        if isinstance(predictions, TopKCounts):
            counts = predictions.images, predictions.top1, predictions.top5
            return Score(flat_metrics(accuracy(*counts)), 0.0)
        if self._evaluator is None:
            self._evaluator = self.task.evaluator()
        return score(self._evaluator, predictions)

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers."""
        return [] if self._pool is None else self._pool.pids

    def close(self, *, wait: bool = True) -> None:
        """Ends the workers; ``wait``: after what was submitted."""
        if self._pool is not None:
            self._pool.close(wait=wait)


def score(evaluator: DatasetEvaluator, detections: Detections) -> Score:
    """Metrics of one candidate by a Detectron2 evaluator of one process."""
    start = time.perf_counter()
    with quiet():
        detections.feed(evaluator)
        metrics = flat_metrics(evaluator.evaluate() or {})
        evaluator.reset()  # frees its dicts
    return Score(metrics, time.perf_counter() - start)
