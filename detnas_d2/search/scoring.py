"""Detectron2's evaluators by data set, and the metric that a search maximises."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Iterator, Mapping

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, PascalVOCDetectionEvaluator

from detnas_d2.data.classification_evaluation import ClassificationEvaluator
from detnas_d2.files.errors import InputError
from detnas_d2.search.coco_eval import FastCOCOEvaluator

_CHATTY = ("detectron2.evaluation", "detectron2.data", "fvcore")

DEFAULT_METRICS = {
    "coco": "bbox/AP",
    "pascal_voc": "bbox/AP50",
    "image_classification": "classification/top1",
}


def build_evaluator(
    cfg: CfgNode, dataset_name: str, output_dir: str | None = None
) -> DatasetEvaluator:
    """The evaluator of a data set, by its ``evaluator_type``; COCO's is pycocotools'.

    Args:
        output_dir: where COCO results are written; ``<OUTPUT_DIR>/inference`` by default.

    Raises:
        ValueError: a data set of an unknown type.
    """
    kind = evaluator_type(dataset_name)
    if kind == "image_classification":
        return ClassificationEvaluator()
    folder = output_dir or os.path.join(cfg.OUTPUT_DIR, "inference")
    return detection_evaluator(kind, dataset_name, output_dir=folder)


def detection_evaluator(
    kind: str,
    dataset_name: str,
    *,
    coco_eval: str = "pycocotools",
    distributed: bool = True,
    output_dir: str | None = None,
) -> DatasetEvaluator:
    """Detectron2's evaluator of a "coco" or "pascal_voc" data set.

    Args:
        coco_eval: "pycocotools", or "faster" for the same figures from faster-coco-eval.
        distributed: COCO's gathers the predictions of all ranks (VOC's always does).
        output_dir: where COCO results are written; None: nowhere.
    """
    if kind == "pascal_voc":
        return PascalVOCDetectionEvaluator(dataset_name)
    if coco_eval == "faster":
        return FastCOCOEvaluator(dataset_name, distributed=distributed, output_dir=output_dir)
    return COCOEvaluator(
        dataset_name, distributed=distributed, output_dir=output_dir, use_fast_impl=False
    )


def evaluator_type(dataset_name: str) -> str:
    """ "coco", "pascal_voc" or "image_classification"; ``ValueError`` names any other."""
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type", None)
    if kind not in DEFAULT_METRICS:
        raise InputError(
            f"data set {dataset_name!r} has evaluator_type {kind!r}; expected one of "
            f"{', '.join(DEFAULT_METRICS)}"
        )
    return kind


def metric_name(cfg: CfgNode, dataset_name: str) -> str:
    """``SEARCH.METRIC``, or the usual one of the data set: COCO AP, VOC AP50, top-1 (percent)."""
    return cfg.SEARCH.METRIC or DEFAULT_METRICS[evaluator_type(dataset_name)]


def check_metric(cfg: CfgNode, dataset_name: str) -> None:
    """Compares ``SEARCH.METRIC`` with what the evaluator of a data set will report.

    Raises:
        ValueError: it will not; lists what it will.
    """
    kind = evaluator_type(dataset_name)
    if kind == "image_classification":
        known = [f"classification/{name}" for name in ("top1", "top5")]
    elif kind == "pascal_voc":
        known = [f"bbox/{name}" for name in ("AP", "AP50", "AP75")]
    else:
        classes = MetadataCatalog.get(dataset_name).get("thing_classes", ())
        names = ["AP", "AP50", "AP75", "APs", "APm", "APl"]
        names += [f"AP-{name}" for name in classes if len(classes) > 1]
        tasks = ["bbox"] + ["segm"] * cfg.MODEL.MASK_ON + ["keypoints"] * cfg.MODEL.KEYPOINT_ON
        known = [f"{task}/{name}" for task in tasks for name in names]
    metric = metric_name(cfg, dataset_name)
    if metric not in known:
        raise InputError(
            f"SEARCH.METRIC {metric!r}: data set {dataset_name!r} is scored by {', '.join(known)}"
        )


def flat_metrics(results: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """An evaluator's nested results as ``{"task/metric": value}``."""
    return {f"{t}/{m}": float(v) for t, values in results.items() for m, v in values.items()}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences what Detectron2 and pycocotools print for every evaluation."""
    loggers = [logging.getLogger(name) for name in _CHATTY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
