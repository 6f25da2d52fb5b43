"""Detectron2's evaluators of the datasets that a config names."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.coco import convert_to_coco_json
from detectron2.evaluation import (
    COCOEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    PascalVOCDetectionEvaluator,
    SemSegEvaluator,
)

from detnas_d2.evaluation.classification import ClassificationEvaluator
from detnas_d2.evaluation.panoptic import PanopticEvaluator
from detnas_d2.evaluation.scoring import evaluator_type, quiet
from detnas_d2.utils.compat import voc_evaluation_alone

# COCO files that this process made: what of -> who gave the dicts.
_CONVERTED: dict[str, Any] = {}


def build_evaluator(
    cfg: CfgNode, dataset_name: str, output_dir: str | None = None
) -> DatasetEvaluator:
    """The evaluator of a dataset, by its ``evaluator_type``.

    Args:
        output_dir: where results are written; ``<OUTPUT_DIR>/inference`` by default.

    Raises:
        ValueError: a dataset of an unknown type.
    """
    kind = evaluator_type(dataset_name)
    folder = output_dir or os.path.join(cfg.OUTPUT_DIR, "inference")
    if kind == "image_classification":
        return ClassificationEvaluator()
    if kind == "sem_seg":
        return SemSegEvaluator(dataset_name, output_dir=folder)
    detection = "coco" if kind == "coco_panoptic_seg" else kind
    with metadata_of(dataset_name, coco_file(dataset_name, folder)):
        evaluator = detection_evaluator(
            detection, dataset_name, output_dir=folder, sigmas=keypoint_sigmas(cfg)
        )
    if kind != "coco_panoptic_seg":
        return evaluator
    others = SemSegEvaluator(dataset_name, output_dir=folder), PanopticEvaluator(dataset_name)
    return DatasetEvaluators([evaluator, *others])


def detection_evaluator(
    kind: str,
    dataset_name: str,
    *,
    sigmas: Sequence[float] | None,
    distributed: bool = True,
    output_dir: str | None = None,
) -> DatasetEvaluator:
    """Detectron2's evaluator of a "coco" or "pascal_voc" dataset.

    COCO's counts in C++ where Detectron2 can (``use_fast_impl``), up to rounding as pycocotools
    does; for models with keypoints it is pycocotools, as faster-coco-eval takes these from its own
    dataset class only.

    Args:
        sigmas: see :func:`keypoint_sigmas`.
        distributed: gather the predictions of all ranks.
        output_dir: where COCO results are written; None: nowhere.
    """
    if kind == "pascal_voc":
        voc = PascalVOCDetectionEvaluator if distributed else _VocOfOneRank
        return voc(dataset_name)
    return COCOEvaluator(
        dataset_name,
        distributed=distributed,
        output_dir=output_dir,
        use_fast_impl=sigmas is None,
        kpt_oks_sigmas=sigmas or (),
    )


def keypoint_sigmas(cfg: CfgNode) -> tuple[float, ...] | None:
    """``TEST.KEYPOINT_OKS_SIGMAS``, one per keypoint (empty: COCO's own 17); None without any."""
    return tuple(cfg.TEST.KEYPOINT_OKS_SIGMAS) if cfg.MODEL.KEYPOINT_ON else None


def coco_file(dataset_name: str, folder: str) -> dict[str, str]:
    """The metadata entry "json_file" for a dataset registered without one; empty for others.

    Every process makes the file again: the data may be others than those of the last run. The
    catalog is not told of it: it belongs to this folder.
    """
    metadata = MetadataCatalog.get(dataset_name)
    kind = evaluator_type(dataset_name)
    if kind not in ("coco", "coco_panoptic_seg") or hasattr(metadata, "json_file"):
        return {}
    file = os.path.abspath(os.path.join(folder, f"{dataset_name}_coco_format.json"))
    source = DatasetCatalog.data[dataset_name]
    if _CONVERTED.get(file) is not source or not os.path.exists(file):
        os.makedirs(folder, exist_ok=True)
        with quiet():
            convert_to_coco_json(dataset_name, file, allow_cached=False)
        _CONVERTED[file] = source
    return {"json_file": file}


@contextmanager
def metadata_of(dataset_name: str, entries: Mapping[str, Any]) -> Iterator[None]:
    """Within the block the dataset's metadata have ``entries`` too; then they are what they were.

    Evaluators that are made in the block keep what they found.
    """
    known, catalog = MetadataCatalog.get(dataset_name), MetadataCatalog.data
    catalog[dataset_name] = type(known)(**{**known.as_dict(), **entries})
    try:
        yield
    finally:
        catalog[dataset_name] = known


def candidate_evaluators(
    dataset_name: str, task: str, *, output_dir: str, sigmas: Sequence[float] | None
) -> Callable[[], DatasetEvaluator]:
    """Makes an evaluator for each candidate of a search, of the metric's task alone.

    Nothing is written but VOC's temporary files and, for a dataset without COCO file, that file.

    Args:
        task: the metric's, e.g. "bbox".
        output_dir: where that file goes.
        sigmas: see :func:`keypoint_sigmas`.
    """
    kind = evaluator_type(dataset_name)
    if task == "panoptic_seg":
        prototype: DatasetEvaluator = PanopticEvaluator(dataset_name)
    elif task == "sem_seg":
        prototype = _SemSegMetrics(dataset_name)
    elif kind == "image_classification":
        return ClassificationEvaluator
    else:
        kind = "coco" if kind == "coco_panoptic_seg" else kind
        entries = coco_file(dataset_name, output_dir)

        def make() -> DatasetEvaluator:
            with metadata_of(dataset_name, entries), quiet():
                return detection_evaluator(kind, dataset_name, sigmas=sigmas)

        return make
    return lambda: copy.copy(prototype)  # ``reset`` gives each its own counts


class _SemSegMetrics(SemSegEvaluator):
    """Detectron2's evaluator without the list of predicted masks, which nobody reads."""

    def encode_json_sem_seg(self, sem_seg: Any, input_file_name: str) -> list[dict[str, Any]]:
        return []


class _VocOfOneRank(PascalVOCDetectionEvaluator):
    """Detectron2's evaluator, which gathers the predictions of all ranks, of those of this one."""

    def evaluate(self) -> dict[str, Any]:
        with voc_evaluation_alone():
            return dict(super().evaluate())
