"""The metric that a search maximises, by dataset and model."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator, Mapping, Sequence

from detectron2.data import MetadataCatalog

from detnas_d2.utils.errors import InputError

_CHATTY = ("detectron2.evaluation", "detectron2.data", "fvcore")

COCO_KEYPOINTS = 17

DEFAULT_METRICS = {
    "coco": "bbox/AP",
    "pascal_voc": "bbox/AP50",
    "image_classification": "classification/top1",
    "sem_seg": "sem_seg/mIoU",
    "coco_panoptic_seg": "panoptic_seg/PQ",
}


def evaluator_type(dataset_name: str) -> str:
    """A key of ``DEFAULT_METRICS``; ``ValueError`` names any other."""
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type", None)
    if kind not in DEFAULT_METRICS:
        raise InputError(
            f"dataset {dataset_name!r} has evaluator_type {kind!r}; expected one of "
            f"{', '.join(DEFAULT_METRICS)}, or a call of search_model with an evaluator of your own"
        )
    return str(kind)


def check_metric(
    metric: str,
    dataset_name: str,
    *,
    masks: bool,
    keypoints: int,
    sigmas: Sequence[float] | None,
) -> None:
    """Compares a metric with what the evaluator of a dataset will report.

    Args:
        metric: "task/name".
        masks, keypoints: what the model predicts besides boxes: masks, and how many keypoints.
        sigmas: ``TEST.KEYPOINT_OKS_SIGMAS``; None without keypoints.

    Raises:
        ValueError: it will not; lists what it will. Or COCO's evaluation of key points lacks what
            it needs.
    """
    known = known_metrics(dataset_name, masks=masks, keypoints=keypoints > 0)
    if metric not in known:
        raise InputError(
            f"SEARCH.METRIC {metric!r}: dataset {dataset_name!r} is scored by {', '.join(known)}"
        )
    if keypoints:
        check_sigmas(keypoints, sigmas or ())


def known_metrics(dataset_name: str, *, masks: bool, keypoints: bool) -> list[str]:
    """Metrics that a dataset's evaluators report for a model that predicts these next to boxes."""
    kind, metadata = evaluator_type(dataset_name), MetadataCatalog.get(dataset_name)
    if kind == "image_classification":
        return [f"classification/{name}" for name in ("top1", "top5")]
    if kind == "pascal_voc":
        return [f"bbox/{name}" for name in ("AP", "AP50", "AP75")]
    known = []
    if kind == "coco_panoptic_seg":
        parts = [f"{name}{part}" for part in ("", "_th", "_st") for name in ("PQ", "SQ", "RQ")]
        known += [f"panoptic_seg/{name}" for name in parts]
    if kind != "coco":
        names = [f"{n}-{c}" for n in ("IoU", "ACC") for c in metadata.get("stuff_classes", ())]
        known += [f"sem_seg/{name}" for name in ("mIoU", "fwIoU", "mACC", "pACC", *names)]
    if kind == "sem_seg":
        return known
    classes = metadata.get("thing_classes", ())
    names = ["AP", "AP50", "AP75", "APs", "APm", "APl"]
    names += [f"AP-{name}" for name in classes if len(classes) > 1]
    tasks = ["bbox"] + ["segm"] * (masks or kind != "coco")
    known += [f"{task}/{name}" for task in tasks for name in names]
    if keypoints:
        known += [f"keypoints/{name}" for name in names if name != "APs"]
    return known


def check_sigmas(points: int, sigmas: Sequence[float]) -> None:
    """Raises ValueError unless ``TEST.KEYPOINT_OKS_SIGMAS`` fits the number of keypoints."""
    if len(sigmas) != points and (sigmas or points != COCO_KEYPOINTS):
        raise InputError(
            f"TEST.KEYPOINT_OKS_SIGMAS has {len(sigmas)} values, "
            f"MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS is {points}: COCO's similarity of key points "
            f"needs one for each (it has its own for {COCO_KEYPOINTS}, used if the list is empty)"
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
