"""COCO's AP is pycocotools', whichever implementation counts."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.evaluation import COCOEvaluator

from detnas_d2.config.tools import base_config
from detnas_d2.evaluation.evaluators import build_evaluator
from detnas_d2.evaluation.scoring_workers import ScoringPool, ScoringTask
from tests.evaluation.coco_scenes import IDS, detect, forget, ground_truth, register

POINTS = 5


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Any]:
    """Registers a ground truth as "scene"."""
    yield lambda truth: register("scene", truth, tmp_path)
    forget("scene")


def by_pycocotools(batches: list, sigmas: tuple[float, ...] = ()) -> dict[str, dict[str, float]]:
    evaluator = COCOEvaluator(
        "scene", distributed=False, use_fast_impl=False, kpt_oks_sigmas=sigmas
    )
    return evaluated(evaluator, batches)


def evaluated(evaluator: Any, batches: list) -> dict[str, dict[str, float]]:
    evaluator.reset()
    for inputs, outputs in copy.deepcopy(batches):  # COCO's moves keypoints in place
        evaluator.process(inputs, outputs)
    with contextlib.redirect_stdout(io.StringIO()):
        return evaluator.evaluate()


def assert_equal(found: dict[str, dict], expected: dict[str, dict]) -> None:
    assert found.keys() == expected.keys()
    for task, metrics in expected.items():
        assert found[task].keys() == metrics.keys()
        for name, value in metrics.items():
            # absolute: percent; NaN where there is no object
            assert found[task][name] == pytest.approx(value, rel=0, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize(("seed", "digits", "crowds"), [(0, 1, 0.15), (1, 2, 0.5), (2, 7, 0.0)])
def test_random_scenes(
    scene: Any, masks: bool, seed: int, digits: int, crowds: float, tmp_path: Path
) -> None:
    truth = ground_truth(seed, crowds=crowds)
    scene(truth)
    batches = detect(truth, seed, digits=digits, masks=masks)
    expected = by_pycocotools(batches)
    assert 5 < expected["segm" if masks else "bbox"]["AP"] < 90
    assert any(a["iscrowd"] for a in truth["annotations"]) == (crowds > 0)
    evaluator = build_evaluator(base_config(), "scene", str(tmp_path / "out"))
    assert_equal(evaluated(evaluator, batches), expected)


@pytest.mark.parametrize("hits", [(1, 0, 1, 0), (1, 1, 0), (1,), (0, 1), (1, 0, 1, 1), (1, 1, 1)])
def test_first_detections(scene: Any, hits: tuple[int, ...], tmp_path: Path) -> None:
    """Where faster-coco-eval rounds otherwise: a right detection before a wrong one."""
    truth = ground_truth(0, images=1)
    box = {"image_id": 100, "category_id": IDS[0], "area": 100.0, "iscrowd": 0}
    truth["annotations"] = [
        {**box, "id": i + 1, "bbox": [12.0 * i, 0.0, 10.0, 10.0]} for i in range(sum(hits) + 1)
    ]
    scene(truth)
    (batch,) = detect({**truth, "annotations": []}, 1)
    found = batch[1][0]["instances"]
    while len(found) < len(hits):
        found = type(found).cat([found, found])
    found = found[: len(hits)]
    left = np.where(hits, 12.0 * (np.cumsum(hits) - 1), 100.0)
    found.pred_boxes.tensor = torch.tensor([[x, 0, x + 10, 10] for x in left]).float()
    found.scores = torch.linspace(0.9, 0.1, len(hits))
    found.pred_classes[:] = 0
    batch[1][0]["instances"] = found
    expected = by_pycocotools([batch])
    assert expected["bbox"]["AP"] > 0
    evaluator = build_evaluator(base_config(), "scene", str(tmp_path / "out"))
    assert_equal(evaluated(evaluator, [batch]), expected)


@pytest.mark.parametrize("what", ["truth", "detections"])
def test_nothing_there(scene: Any, what: str, tmp_path: Path) -> None:
    truth = ground_truth(3)
    batches = detect(truth, 0)
    if what == "truth":
        truth["annotations"] = []
    for _, outputs in batches if what == "detections" else ():
        outputs[0]["instances"] = outputs[0]["instances"][:0]
    scene(truth)
    evaluator = build_evaluator(base_config(), "scene", str(tmp_path / "out"))
    found = evaluated(evaluator, batches)
    assert_equal(found, by_pycocotools(batches))
    assert np.isnan(found["bbox"]["AP"])


def keypoint_scene(seed: int) -> tuple[dict[str, Any], list]:
    """Persons of all sizes, some of them crowds or without a visible point, and guesses."""
    truth, random = ground_truth(seed), np.random.default_rng(seed)
    points = {}
    for a in truth["annotations"]:
        x, y, w, h = a["bbox"]
        a["category_id"] = IDS[0]
        shown = 2 * (random.random(POINTS) < 0.7) * (random.random() < 0.8)
        xy = random.uniform((x, y), (x + w, y + h), (POINTS, 2))
        points[x, y] = xy
        a["keypoints"] = np.column_stack([xy, shown]).ravel().tolist()
        a["num_keypoints"] = int((shown > 0).sum())
    batches = detect(truth, seed, digits=2)
    everywhere = np.array([*points.values()])
    for _, outputs in batches:
        found = outputs[0]["instances"]
        found.pred_classes[:] = 0
        near = found.pred_boxes.tensor[:, None, :2].numpy()
        start = np.array([*points])[None]
        nearest = ((near - start) ** 2).sum(-1).argmin(1)
        moved = everywhere[nearest] + random.normal(0, 4, (len(found), POINTS, 2))
        shape = (len(found), POINTS, 1)
        found.pred_keypoints = torch.tensor(np.concatenate([moved, np.ones(shape)], -1)).float()
    return truth, batches


def test_keypoints_by_the_sigmas_of_the_config(scene: Any, tmp_path: Path) -> None:
    truth, batches = keypoint_scene(4)
    scene(truth)
    cfg, aps = base_config(), []
    cfg.MODEL.KEYPOINT_ON = True
    for sigma in (0.1, 0.5):
        cfg.TEST.KEYPOINT_OKS_SIGMAS = [sigma] * POINTS
        evaluator = build_evaluator(cfg, "scene", str(tmp_path / "out"))
        found = evaluated(evaluator, batches)
        assert_equal(found, by_pycocotools(batches, (sigma,) * POINTS))
        aps.append(found["keypoints"]["AP"])
        task = ScoringTask.of("scene", output_dir=str(tmp_path), sigmas=(sigma,) * POINTS)
        with ScoringPool(task, workers=0) as pool:
            collector = pool.collector()
            for inputs, outputs in batches:
                collector.process(inputs, outputs)
            score = pool.submit("path", collector.finish()).result()
        assert score.metrics["keypoints/AP"] == aps[-1]
    assert 0.5 < aps[0] < aps[1]


def test_detectron2_without_a_fast_implementation(
    scene: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There Detectron2 names pycocotools' class COCOeval_opt."""
    from detectron2.evaluation import coco_evaluation

    monkeypatch.setattr(coco_evaluation, "COCOeval_opt", coco_evaluation.COCOeval)
    truth = ground_truth(5)
    scene(truth)
    batches = detect(truth, 5)
    evaluator = build_evaluator(base_config(), "scene", str(tmp_path / "out"))
    np.testing.assert_equal(evaluated(evaluator, batches), by_pycocotools(batches))
