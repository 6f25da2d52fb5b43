"""faster-coco-eval's figures are pycocotools'."""

from __future__ import annotations

import contextlib
import copy
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.evaluation import COCOEvaluator
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detnas_d2.evaluation import coco_eval
from detnas_d2.evaluation.coco_eval import FastCOCOeval, FastCOCOEvaluator, coco_eval_name
from tests.evaluation.coco_scenes import detect, forget, ground_truth, register

pytest.importorskip("faster_coco_eval")
_RESULTS = FastCOCOeval._evaluate_fast


def evaluated(cls: type[COCOeval], truth: COCO, results: list[dict], task: str) -> COCOeval:
    with contextlib.redirect_stdout(io.StringIO()):
        found = cls(truth, truth.loadRes(copy.deepcopy(results)), task)
        found.evaluate()
        found.accumulate()
        found.summarize()
    return found


def coco(truth: dict[str, Any]) -> COCO:
    made = COCO()
    made.dataset = copy.deepcopy(truth)
    with contextlib.redirect_stdout(io.StringIO()):
        made.createIndex()
    return made


def results(name: str, truth: dict[str, Any], task: str, seed: int, digits: int) -> list[dict]:
    """Detections in COCO's format with the data set's ids."""
    evaluator = COCOEvaluator(name, distributed=False, use_fast_impl=False)
    evaluator.reset()
    for inputs, outputs in detect(truth, seed, digits=digits, masks=task == "segm"):
        evaluator.process(inputs, outputs)
    ids = sorted(c["id"] for c in truth["categories"])
    found = [r for p in evaluator._predictions for r in p["instances"]]
    for record in found:
        record["category_id"] = ids[record["category_id"]]
        if task == "segm":
            del record["bbox"]
    return found


@pytest.mark.parametrize("task", ["bbox", "segm"])
@pytest.mark.parametrize(("seed", "digits"), [(0, 1), (1, 2), (2, 7), (3, 7)])
def test_all_figures_are_those_of_pycocotools(
    tmp_path: Path, task: str, seed: int, digits: int
) -> None:
    truth = ground_truth(seed)
    register("figures", truth, tmp_path)
    try:
        found = results("figures", truth, task, seed, digits)
    finally:
        forget("figures")
    assert sum(a["iscrowd"] for a in truth["annotations"]) > 1
    ours = evaluated(FastCOCOeval, coco(truth), found, task)
    theirs = evaluated(COCOeval, coco(truth), found, task)
    assert ours.stats.shape == (12,) and 0.05 < theirs.stats[0] < 0.9
    for key in ("precision", "recall", "scores"):
        np.testing.assert_array_equal(ours.eval[key], theirs.eval[key])
    np.testing.assert_array_equal(ours.stats, theirs.stats)
    assert not ours.evalImgs  # it was not pycocotools that computed them


def box(image: int, x: float, score: float | None = None, **more: Any) -> dict[str, Any]:
    truth = {"area": 1600.0, "iscrowd": 0} if score is None else {"score": score}
    return {
        "image_id": image, "category_id": 1, "bbox": [x, 0.0, 40.0, 40.0], **truth, **more
    }  # fmt: skip


@pytest.mark.parametrize("hits", [(1, 0, 1, 0), (1, 1, 0), (1,), (0, 1), (1, 0, 1, 1), (1, 1, 1)])
def test_precision_of_the_first_detections(hits: tuple[int, ...]) -> None:
    """The one place where faster-coco-eval alone differs."""
    truth = {
        "images": [{"id": 1, "height": 400, "width": 400}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [box(1, 60.0 * i, id=i + 1) for i in range(sum(hits) + 1)],
    }
    right = iter(60.0 * i for i in range(9))
    found = [box(1, next(right) if h else 380.0, 1 - i / 10) for i, h in enumerate(hits)]
    ours = evaluated(FastCOCOeval, coco(truth), found, "bbox")
    theirs = evaluated(COCOeval, coco(truth), found, "bbox")
    np.testing.assert_array_equal(ours.eval["precision"], theirs.eval["precision"])
    if hits[0]:
        first = theirs.eval["precision"][0, 0, 0, 0, -1]
        assert (first == 1) == (hits[:2] == (1, 1))


def test_annotation_id_0_is_left_to_pycocotools() -> None:
    truth = {
        "images": [{"id": 1, "height": 400, "width": 400}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [box(1, 0.0, id=0)],
    }
    ours = evaluated(FastCOCOeval, coco(truth), [box(1, 0.0, 0.5)], "bbox")
    assert ours.evalImgs and ours.stats[0] == 0  # pycocotools takes id 0 for "not matched"


def test_evaluator(tmp_path: Path) -> None:
    truth = ground_truth(5)
    register("evaluator", truth, tmp_path)
    figures = []
    try:
        for cls, more in ((COCOEvaluator, {"use_fast_impl": False}), (FastCOCOEvaluator, {})):
            evaluator = cls("evaluator", distributed=False, **more)
            evaluator.reset()
            for inputs, outputs in detect(truth, 1, masks=True):
                evaluator.process(inputs, outputs)
            with contextlib.redirect_stdout(io.StringIO()):
                figures.append(evaluator.evaluate())
    finally:
        forget("evaluator")
    assert set(figures[0]) == {"bbox", "segm"}
    np.testing.assert_equal(figures[1], figures[0])


def test_names(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [coco_eval_name(s) for s in ("auto", "faster", "pycocotools")] == [
        "faster", "faster", "pycocotools"
    ]  # fmt: skip
    with pytest.raises(ValueError, match="SEARCH.COCO_EVAL must be one of .* got 'fast'"):
        coco_eval_name("fast")
    monkeypatch.setattr(coco_eval, "disagreement", lambda: "its figures differ")
    assert coco_eval_name("auto") == "pycocotools"
    with pytest.raises(ValueError, match="'faster': its figures differ, or set 'auto'"):
        coco_eval_name("faster")
    monkeypatch.setattr(coco_eval.importlib.util, "find_spec", lambda name: None)
    assert coco_eval_name("auto") == "pycocotools"
    with pytest.raises(ValueError, match="pip install faster-coco-eval"):
        coco_eval_name("faster")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda self: {"precision": 0}, "it fails"),
        (lambda self: {**_RESULTS(self), "scores": np.zeros(1)}, "for bbox are not"),
    ],
)
def test_a_version_that_differs_is_noticed(
    change: Any, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert coco_eval.disagreement() == ""
    monkeypatch.setattr(FastCOCOeval, "_evaluate_fast", change)
    assert reason in coco_eval.disagreement.__wrapped__()
