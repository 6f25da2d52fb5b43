"""COCO's figures by C++, equal to pycocotools' to the last bit.

faster-coco-eval (optional) is about ten times as fast as pycocotools and differs from it in one
place: a class whose first detection is right and whose second is not starts with a precision of
1 / (1 + 2^-52) in pycocotools and of 1 in C++. :class:`FastCOCOeval` puts that right.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib.util
import io
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import pycocotools.mask
from detectron2.evaluation import COCOEvaluator, coco_evaluation
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detnas_d2.utils.errors import InputError

COCO_EVALS = ("auto", "pycocotools", "faster")

# tp / (fp + tp + np.spacing(1)) for the first of all detections, a true positive.
_FIRST_PRECISION = 1 / (1 + np.spacing(1))


def coco_eval_name(setting: str) -> str:
    """ "pycocotools" or "faster", by SEARCH.COCO_EVAL; "auto" is faster where that agrees.

    Raises:
        ValueError: an unknown setting, or "faster" without a faster-coco-eval that agrees.
    """
    if setting not in COCO_EVALS:
        raise InputError(f"SEARCH.COCO_EVAL must be one of {COCO_EVALS}, got {setting!r}")
    if setting == "pycocotools":
        return setting
    if importlib.util.find_spec("faster_coco_eval") is None:
        problem = "pip install faster-coco-eval"
    else:
        problem = disagreement()
    if problem and setting == "faster":
        raise InputError(f"SEARCH.COCO_EVAL is 'faster': {problem}, or set 'auto'")
    return "pycocotools" if problem else "faster"


@functools.lru_cache(maxsize=1)
def disagreement() -> str:
    """Why the installed faster-coco-eval cannot be used, found on a small scene; "" if it can."""
    image = {"id": 1, "height": 120, "width": 400}
    truth, found = [], []
    for place in range(8):
        x, side = 45.0 * place, 20.0 + 10 * (place % 3)
        corners = [x, 0.0, x + side, 0.0, x + side, side, x, side]
        box = {"image_id": 1, "category_id": 1 + place % 2, "segmentation": [corners]}
        crowd = int(place == 5)
        truth.append({**box, "id": place + 1, "bbox": [x, 0.0, side, side], "iscrowd": crowd})
        truth[-1]["area"] = side * side
        moved = [v + 3 * (place % 4) for v in corners]
        code = pycocotools.mask.frPyObjects([moved], image["height"], image["width"])[0]
        score = 0.9 - place // 3 / 10  # some are equal
        found += [{**box, "segmentation": code, "score": score} for _ in range(1 + place % 2)]
    data = {"images": [image], "annotations": truth}
    data["categories"] = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
    try:
        for task in ("bbox", "segm"):
            results = [dict(f) for f in found]
            for result in results if task == "bbox" else ():
                result["bbox"] = pycocotools.mask.toBbox(result.pop("segmentation")).tolist()
            fast, reference = (
                _evaluated(cls, data, results, task) for cls in (FastCOCOeval, COCOeval)
            )
            if not all(np.array_equal(fast[key], reference[key]) for key in reference):
                return f"its figures for {task} are not those of pycocotools"
    except Exception as error:  # whatever a version of another interface raises
        return f"it fails ({type(error).__name__}: {error})"
    return ""


def _evaluated(
    cls: type[COCOeval], data: dict[str, Any], found: list[dict], task: str
) -> dict[str, np.ndarray]:
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(data)
        truth.createIndex()
        evaluation = cls(truth, truth.loadRes(copy.deepcopy(found)), task)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    arrays = {key: evaluation.eval[key] for key in ("precision", "recall", "scores")}
    return {**arrays, "stats": evaluation.stats}


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
