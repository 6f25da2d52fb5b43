"""``COCOeval_opt`` without ``detectron2._C``: the C++ evaluation of faster-coco-eval if there."""

from __future__ import annotations

from typing import Any

from pycocotools.cocoeval import COCOeval

try:
    from faster_coco_eval import COCOeval_faster
except ImportError:
    COCOeval_opt = COCOeval
else:

    def COCOeval_opt(truth: Any, found: Any, iou_type: str = "segm") -> COCOeval | COCOeval_faster:
        # faster-coco-eval takes keypoints from a dataset class of its own only.
        cls = COCOeval if iou_type == "keypoints" else COCOeval_faster
        return cls(truth, found, iou_type)


__all__ = ["COCOeval_opt"]
