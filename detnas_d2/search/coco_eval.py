"""COCO's figures by C++, equal to pycocotools' to the last bit.

faster-coco-eval (optional) is about ten times as fast as pycocotools and differs from it in one
place: a class whose first detection is right and whose second is not starts with a precision of
1 / (1 + 2^-52) in pycocotools and of 1 in C++. :class:`FastCOCOeval` puts that right.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
from detectron2.evaluation import COCOEvaluator, coco_evaluation
from pycocotools.cocoeval import COCOeval

COCO_EVALS = ("auto", "pycocotools", "faster")

# tp / (fp + tp + np.spacing(1)) for the first of all detections, a true positive.
_FIRST_PRECISION = 1 / (1 + np.spacing(1))


def coco_eval_name(setting: str) -> str:
    """ "pycocotools" or "faster", by SEARCH.COCO_EVAL; "auto" takes what is installed.

    Raises:
        ValueError: an unknown setting, or "faster" without faster-coco-eval.
    """
    if setting not in COCO_EVALS:
        raise ValueError(f"SEARCH.COCO_EVAL must be one of {COCO_EVALS}, got {setting!r}")
    installed = importlib.util.find_spec("faster_coco_eval") is not None
    if setting == "faster" and not installed:
        raise ValueError(
            "SEARCH.COCO_EVAL is 'faster': pip install faster-coco-eval, or set 'auto'"
        )
    return "faster" if installed and setting != "pycocotools" else "pycocotools"


class FastCOCOEvaluator(COCOEvaluator):
    """Detectron2's evaluator with :class:`FastCOCOeval` in place of pycocotools' class."""

    def __init__(self, dataset_name: str, **arguments: Any) -> None:
        super().__init__(dataset_name, use_fast_impl=True, **arguments)

    def evaluate(self, img_ids: Any = None) -> Any:
        with _fast_implementation(FastCOCOeval):
            return super().evaluate(img_ids)


@contextlib.contextmanager
def _fast_implementation(cls: type[COCOeval]) -> Iterator[None]:
    # The name that Detectron2 0.6 and later look up for use_fast_impl.
    with mock.patch.object(coco_evaluation, "COCOeval_opt", cls):
        yield


class FastCOCOeval(COCOeval):
    """pycocotools' COCOeval with ``evaluate`` and ``accumulate`` of faster-coco-eval.

    ``eval["precision"]``, ``eval["recall"]``, ``eval["scores"]`` and ``stats`` are those of
    pycocotools. Key points, and ground truth with the annotation id 0 (which pycocotools takes
    for "no match"), are left to pycocotools.
    """

    def evaluate(self) -> None:
        if self.params.iouType == "keypoints" or 0 in self.cocoGt.anns:
            super().evaluate()
            return
        self.evalImgs = []
        self._results = self._evaluate_fast()

    def accumulate(self, p: Any = None) -> None:
        if self.evalImgs:
            super().accumulate(p)
        else:
            self.eval = self._results

    def _evaluate_fast(self) -> dict[str, Any]:
        """``eval`` of pycocotools."""
        from faster_coco_eval import COCOeval_faster

        params = self.params
        params.imgIds = list(np.unique(params.imgIds))
        params.catIds = list(np.unique(params.catIds))
        params.maxDets = sorted(params.maxDets)
        fast = COCOeval_faster(self.cocoGt, self.cocoDt, params.iouType, rle_iou_max_workers=1)
        for name in ("imgIds", "catIds", "iouThrs", "maxDets", "areaRng", "useCats"):
            setattr(fast.params, name, getattr(params, name))
        positives = self._positives()
        probes = np.unique(positives[positives > 1])
        # Precision at recall 1.5 / n is that of the second true positive and those after it.
        fast.params.recThrs = np.concatenate([params.recThrs, 1.5 / probes])
        fast.evaluate()
        fast.accumulate()
        size = len(params.recThrs)
        shape = (len(params.iouThrs), len(fast.params.recThrs), *positives.shape)
        shape += (len(params.maxDets),)
        precision = np.asarray(fast.eval["precision"]).reshape(shape)
        scores = np.asarray(fast.eval["scores"]).reshape(shape)
        second = np.zeros_like(precision[:, 0])
        for place, count in enumerate(probes, size):
            second[:, positives == count] = precision[:, place][:, positives == count]
        precision = np.ascontiguousarray(precision[:, :size])
        precision[(precision == 1) & (second != 1)[:, None]] = _FIRST_PRECISION
        recall = np.asarray(fast.eval["recall"]).reshape(shape[:1] + shape[2:])
        return {
            "params": params,
            "counts": [shape[0], size, *shape[2:]],
            "precision": precision,
            "recall": recall,
            "scores": np.ascontiguousarray(scores[:, :size]),
        }

    def _positives(self) -> np.ndarray:
        """Ground truth that counts, (categories, area ranges)."""
        params = self.params
        ids = self.cocoGt.getAnnIds(imgIds=params.imgIds, catIds=params.catIds)
        truth = [a for a in self.cocoGt.loadAnns(ids) if not a.get("iscrowd", 0)]
        area = np.array([a["area"] for a in truth])
        category = np.searchsorted(params.catIds, [a["category_id"] for a in truth])
        counts = np.zeros((len(params.catIds), len(params.areaRng)), dtype=np.int64)
        for place, (low, high) in enumerate(params.areaRng):
            np.add.at(counts[:, place], category[(area >= low) & (area <= high)], 1)
        return counts
