"""``COCOeval_opt`` without ``detectron2._C``: the C++ evaluation of faster-coco-eval if there."""

from __future__ import annotations

try:
    from faster_coco_eval import COCOeval_faster as COCOeval_opt
except ImportError:
    from pycocotools.cocoeval import COCOeval as COCOeval_opt

__all__ = ["COCOeval_opt"]
