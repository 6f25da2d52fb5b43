"""Intervals of candidates' fitness, bootstrapped over the images that they are scored on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.utils import comm

from detnas_d2.evaluation.matches import match_boxes
from detnas_d2.evaluation.predictions import Detections
from detnas_d2.evaluation.resized import PathEvaluator
from detnas_d2.evaluation.scoring_workers import ScoringPool, ScoringTask
from detnas_d2.search_space import Path

Interval = tuple[float, float]

_IOUS = {"bbox/AP": slice(None), "bbox/AP50": slice(0, 1), "bbox/AP75": slice(5, 6)}
"""Metrics with an interval -> the steps of COCO's IoUs that they are a mean over."""


def fitness_intervals(evaluator: PathEvaluator, paths: Sequence[Path]) -> dict[Path, Interval]:
    """95 % intervals of the fitness of paths that have one (collective; the same on all ranks).

    The paths are inferred once more, each rank draws sets of images for its share. Without interval
    are metrics other than COCO's AP of boxes, and paths that fail.
    """
    scoring = evaluator.scoring
    ious = _IOUS.get(evaluator.metric)
    if not isinstance(scoring, ScoringPool) or scoring.task.kind != "coco" or ious is None:
        return {}
    mine: dict[Path, Interval] = {}
    for path, predictions in evaluator.predictions(paths):
        assert isinstance(predictions, Detections)
        matches = match_boxes(scoring.task.metadata["json_file"], _boxes(scoring.task, predictions))
        interval = matches.interval_at(ious)
        if interval is not None:
            mine[path] = interval
    found: dict[Path, Interval] = {}
    for part in comm.all_gather(mine):
        found |= part
    return found


def _boxes(task: ScoringTask, detections: Detections) -> list[dict[str, Any]]:
    """Detections as COCO's list of results."""
    names = task.metadata.get("thing_dataset_id_to_contiguous_id") or {}
    categories = {number: name for name, number in names.items()}
    found: list[dict[str, Any]] = []
    for image, instances, _ in detections.images():
        found += instances_to_coco_json(instances, image)
    for box in found:
        box["category_id"] = categories.get(box["category_id"], box["category_id"])
    return found
