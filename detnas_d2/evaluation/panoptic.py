"""Panoptic quality, image by image, without files in between.

Detectron2's evaluator needs the panopticapi package, which no registry has, writes a PNG for each
image and starts a process for each core; for a search that would be once per candidate.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from PIL import Image

_VOID = 0
_SHIFT = 2**32


class PanopticEvaluator(DatasetEvaluator):
    """PQ, SQ and RQ of a dataset of the type "coco_panoptic_seg", in percent.

    Kirillov et al., Panoptic Segmentation (CVPR 2019), section 4.1 and eq. 1: segments of one
    category match if their IoU, void pixels left out, is above 0.5. A prediction of which more
    than half is void or crowd of its category is no error. Results are named as Detectron2's
    ``COCOPanopticEvaluator`` names them; averages are over the categories that are in the ground
    truth or predicted (NaN if there is none).

    Reads ``panoptic_json``, ``panoptic_root`` and the two maps of category ids of the metadata.
    """

    def __init__(self, dataset_name: str, *, distributed: bool = True) -> None:
        metadata = MetadataCatalog.get(dataset_name)
        with open(metadata.panoptic_json, encoding="utf-8") as file:
            data = json.load(file)
        self._name, self._root = dataset_name, metadata.panoptic_root
        self._truth = {record["image_id"]: record for record in data["annotations"]}
        self._is_thing = {c["id"]: bool(c["isthing"]) for c in data["categories"]}
        self._category = {
            True: {v: k for k, v in metadata.thing_dataset_id_to_contiguous_id.items()},
            False: {v: k for k, v in metadata.stuff_dataset_id_to_contiguous_id.items()},
        }
        self._label_divisor = metadata.get("label_divisor")
        self._distributed = distributed
        self.reset()

    def reset(self) -> None:
        # Category id -> sum of the IoUs of matches, their number, false positives and negatives.
        self._counts = {category: np.zeros(4) for category in self._is_thing}

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Adds images; outputs hold "panoptic_seg": (segment ids (H, W), list of segments).

        Raises:
            ValueError: an image that the ground truth does not have.
        """
        for sample, output in zip(inputs, outputs, strict=True):
            truth = self._truth.get(sample["image_id"])
            if truth is None:
                raise ValueError(
                    f"dataset {self._name!r}: image {sample['image_id']!r} has no annotation in "
                    "its panoptic_json"
                )
            with Image.open(os.path.join(self._root, truth["file_name"])) as image:
                red, green, blue = np.moveaxis(np.array(image.convert("RGB"), np.int64), 2, 0)
            ids, segments = self._predicted(*output["panoptic_seg"])
            true_ids = red + 256 * green + 256**2 * blue
            self._add(true_ids, {s["id"]: s for s in truth["segments_info"]}, ids, segments)

    def _predicted(
        self, ids: Any, segments: list[dict[str, Any]] | None
    ) -> tuple[np.ndarray, dict[int, int]]:
        """Segment ids and category id of each segment, 0 for void."""
        ids = ids.cpu().numpy().astype(np.int64)
        if segments is None:  # ids are category * label_divisor + instance, -1 for void
            labels = np.unique(ids[ids >= 0]).tolist()
            return ids + 1, {label + 1: label // self._label_divisor for label in labels}
        names = self._category
        return ids, {
            s["id"]: names[s["isthing"]][s["category_id"]] if "isthing" in s else s["category_id"]
            for s in segments
        }

    def _add(
        self,
        true_ids: np.ndarray,
        truth: Mapping[int, dict[str, Any]],
        ids: np.ndarray,
        found: Mapping[int, int],
    ) -> None:
        pairs, counts = np.unique(true_ids * _SHIFT + ids, return_counts=True)
        shared = {divmod(int(p), _SHIFT): int(n) for p, n in zip(pairs, counts, strict=True)}
        areas: dict[int, int] = {}
        true_areas: dict[int, int] = {}
        for (true, predicted), pixels in shared.items():
            true_areas[true] = true_areas.get(true, 0) + pixels
            areas[predicted] = areas.get(predicted, 0) + pixels
        matched: set[int] = set()
        missed = {i for i, segment in truth.items() if not segment.get("iscrowd", 0)}
        for (true, predicted), pixels in shared.items():
            if true not in missed or truth[true]["category_id"] != found.get(predicted):
                continue
            void = shared.get((_VOID, predicted), 0)
            iou = pixels / (true_areas[true] + areas[predicted] - pixels - void)
            if iou > 0.5:  # so that at most one segment matches
                self._counts[found[predicted]] += (iou, 1, 0, 0)
                matched.add(predicted)
                missed.discard(true)
        for true in missed:
            self._counts[truth[true]["category_id"]][3] += 1
        for predicted, category in found.items():
            if predicted in matched or predicted not in areas:
                continue
            crowds = [
                i for i, s in truth.items() if s.get("iscrowd", 0) and s["category_id"] == category
            ]
            ignored = sum(shared.get((i, predicted), 0) for i in (_VOID, *crowds))
            if ignored / areas[predicted] <= 0.5:
                self._counts[category][2] += 1

    def evaluate(self) -> dict[str, dict[str, float]]:
        """``{"panoptic_seg": {"PQ": ..., "SQ": ..., "RQ": ..., "PQ_th": ..., ...}}`` on rank 0."""
        parts = comm.gather(self._counts) if self._distributed else [self._counts]
        if not parts:
            return {}
        counts = {
            category: sum((part[category] for part in parts), np.zeros(4))
            for category in self._counts
        }
        found: dict[str, float] = {}
        for suffix, kinds in (("", (True, False)), ("_th", (True,)), ("_st", (False,))):
            chosen = [c for i, c in counts.items() if self._is_thing[i] in kinds and c[1:].any()]
            qualities = [_qualities(c) for c in chosen]
            means = np.mean(qualities, axis=0) if qualities else np.full(3, np.nan)
            found |= {f"{n}{suffix}": 100 * float(v) for n, v in zip(_NAMES, means, strict=True)}
        return {"panoptic_seg": found}


_NAMES = ("PQ", "SQ", "RQ")


def _qualities(counts: np.ndarray) -> tuple[float, float, float]:
    """PQ, SQ and RQ (eq. 1) of a category."""
    iou, matches, positives, negatives = counts
    weight = matches + 0.5 * positives + 0.5 * negatives
    return iou / weight, iou / matches if matches else 0.0, matches / weight
