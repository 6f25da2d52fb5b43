"""Detectron2's evaluators by data set, and the metric that a search maximises."""

from __future__ import annotations

import os
from collections.abc import Mapping

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, PascalVOCDetectionEvaluator

from detnas_d2.data import ClassificationEvaluator

DEFAULT_METRICS = {
    "coco": "bbox/AP",
    "pascal_voc": "bbox/AP50",
    "image_classification": "classification/top1",
}


def build_evaluator(
    cfg: CfgNode, dataset_name: str, output_dir: str | None = None
) -> DatasetEvaluator:
    """The evaluator of a data set, by its ``evaluator_type``.

    Args:
        output_dir: where COCO results are written; ``<OUTPUT_DIR>/inference`` by default.

    Raises:
        ValueError: a data set of an unknown type.
    """
    kind = evaluator_type(dataset_name)
    if kind == "coco":
        folder = output_dir or os.path.join(cfg.OUTPUT_DIR, "inference")
        # pycocotools is the reference.
        return COCOEvaluator(dataset_name, output_dir=folder, use_fast_impl=False)
    if kind == "pascal_voc":
        return PascalVOCDetectionEvaluator(dataset_name)
    return ClassificationEvaluator()


def evaluator_type(dataset_name: str) -> str:
    """ "coco", "pascal_voc" or "image_classification"; ``ValueError`` names any other."""
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type", None)
    if kind not in DEFAULT_METRICS:
        raise ValueError(
            f"data set {dataset_name!r} has evaluator_type {kind!r}; expected one of "
            f"{', '.join(DEFAULT_METRICS)}"
        )
    return kind


def metric_name(cfg: CfgNode, dataset_name: str) -> str:
    """``SEARCH.METRIC``, or the usual one of the data set: COCO AP, VOC AP50, top-1 (percent)."""
    return cfg.SEARCH.METRIC or DEFAULT_METRICS[evaluator_type(dataset_name)]


def flat_metrics(results: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """An evaluator's nested results as ``{"task/metric": value}``."""
    return {f"{t}/{m}": float(v) for t, values in results.items() for m, v in values.items()}
