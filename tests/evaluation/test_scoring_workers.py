"""Scores from worker processes are the sequential evaluator's."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.data import MetadataCatalog

from detnas_d2.config.tools import base_config
from detnas_d2.evaluation.classification import ClassificationEvaluator
from detnas_d2.evaluation.evaluators import build_evaluator
from detnas_d2.evaluation.scoring import flat_metrics, quiet
from detnas_d2.evaluation.scoring_workers import Score, ScoringPool, ScoringTask
from detnas_d2.utils.workers import WorkerError
from tests.evaluation.coco_scenes import CLASSES, detect, forget, ground_truth, register

TRUTH = ground_truth(8)


@pytest.fixture(scope="module", autouse=True)
def coco_set(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    register("scored", TRUTH, tmp_path_factory.mktemp("coco"))
    yield
    forget("scored")


@pytest.fixture(scope="module")
def pool() -> Iterator[ScoringPool]:
    with ScoringPool(ScoringTask.of("scored", output_dir="output"), workers=1) as made:
        yield made


def submit(pool: ScoringPool, batches: list, key: str = "path") -> Future[Score]:
    collector = pool.collector()
    for inputs, outputs in batches:
        collector.process(inputs, outputs)
    return pool.submit(key, collector.finish())


def sequential(name: str, batches: list, folder: Path) -> dict[str, float]:
    """As the sequential evaluator scores."""
    evaluator = build_evaluator(base_config(), name, str(folder))
    evaluator.reset()
    for inputs, outputs in batches:
        evaluator.process(inputs, outputs)
    with quiet():
        return flat_metrics(evaluator.evaluate() or {})


def test_coco_figures(pool: ScoringPool, tmp_path: Path) -> None:
    candidates = [detect(TRUTH, s, masks=s % 2 == 1, digits=1 + s) for s in range(4)]
    futures = [submit(pool, batches) for batches in candidates]
    for batches, future in zip(candidates, futures, strict=True):
        expected = sequential("scored", batches, tmp_path)
        np.testing.assert_equal(future.result().metrics, expected)
        assert ("segm/AP" in expected) == batches[0][1][0]["instances"].has("pred_masks")
    assert future.result().seconds > 0
    with ScoringPool(ScoringTask.of("scored", output_dir="output"), workers=0) as here:
        np.testing.assert_equal(submit(here, batches).result().metrics, expected)


def test_no_detections(pool: ScoringPool, tmp_path: Path) -> None:
    batches = detect(TRUTH, 0)
    for _, outputs in batches:
        outputs[0]["instances"] = outputs[0]["instances"][:0]
    found = submit(pool, batches).result().metrics
    np.testing.assert_equal(found, sequential("scored", batches, tmp_path))
    assert np.isnan(found["bbox/AP"])
    assert submit(pool, []).result().metrics == {} == sequential("scored", [], tmp_path)


def test_bad_class_is_not_the_candidates_fault(pool: ScoringPool) -> None:
    wrong = detect(TRUTH, 0)
    wrong[0][1][0]["instances"].pred_classes[:] = len(CLASSES)
    with pytest.raises(WorkerError, match="but the dataset only has 4 classes"):
        submit(pool, wrong).result()
    os.kill(pool.pids[0], signal.SIGKILL)  # a new worker reads the ground truth again
    assert submit(pool, detect(TRUTH, 1)).result().metrics["bbox/AP"] > 0


def voc_set(folder: Path) -> None:
    (folder / "Annotations").mkdir()
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    for image in TRUTH["images"]:
        objects = ""
        for a in TRUTH["annotations"]:
            if a["image_id"] == image["id"]:
                x, y, w, h = (int(v) for v in a["bbox"])
                objects += (
                    f"<object><name>{CLASSES[a['category_id'] % 3]}</name><pose>x</pose><truncated>"
                    f"0</truncated><difficult>{a['iscrowd']}</difficult><bndbox><xmin>{x + 1}"
                    f"</xmin><ymin>{y + 1}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox>"
                    "</object>"
                )
        file = folder / "Annotations" / f"{image['id']}.xml"
        file.write_text(f"<annotation>{objects}</annotation>")
    names = "\n".join(str(image["id"]) for image in TRUTH["images"])
    (folder / "ImageSets" / "Main" / "val.txt").write_text(names)
    MetadataCatalog.get("voc_scored").set(
        dirname=str(folder),
        split="val",
        year=2007,
        evaluator_type="pascal_voc",
        thing_classes=list(CLASSES[:3]),
    )


def voc_detections(seed: int) -> list:
    batches = detect(TRUTH, seed)
    for inputs, _ in batches:
        inputs[0]["image_id"] = str(inputs[0]["image_id"])
    return batches


def test_voc_figures(tmp_path: Path) -> None:
    voc_set(tmp_path)
    batches = voc_detections(3)
    try:
        with ScoringPool(ScoringTask.of("voc_scored", output_dir="output"), workers=0) as pool:
            found = submit(pool, batches).result().metrics
        assert found == sequential("voc_scored", batches, tmp_path)
    finally:
        forget("voc_scored")
    assert 1 < found["bbox/AP50"] < 99


def _score_on_a_rank(rank: int, folder: str) -> None:
    """One candidate on each of two ranks, two on the first, as a search shares them out."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=2)
    voc_set(Path(folder, str(rank)))
    with ScoringPool(ScoringTask.of("voc_scored", output_dir="output"), workers=0) as pool:
        found = [submit(pool, voc_detections(s)).result().metrics for s in ((3, 5), (4,))[rank]]
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def test_voc_figures_of_each_ranks_candidates(tmp_path: Path) -> None:
    for rank in range(2):
        (tmp_path / str(rank)).mkdir()
    mp.spawn(_score_on_a_rank, (str(tmp_path),), nprocs=2)
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    voc_set(tmp_path)
    try:
        expected = [sequential("voc_scored", voc_detections(s), tmp_path) for s in (3, 4, 5)]
    finally:
        forget("voc_scored")
    assert found == [[expected[0], expected[2]], [expected[1]]]


def test_classification_needs_no_worker() -> None:
    MetadataCatalog.get("classes").set(evaluator_type="image_classification")
    try:
        task = ScoringTask.of("classes", output_dir="output")
    finally:
        forget("classes")
    batch = [{"label": 1}, {"label": 0}], [{"scores": torch.rand(9)} for _ in range(2)]
    expected = ClassificationEvaluator()
    expected.process(*batch)
    with ScoringPool(task, workers=3) as pool:
        assert pool.pids == []
        found: dict[str, Any] = submit(pool, [batch]).result().metrics
    assert found == flat_metrics(expected.evaluate())


def test_task_overrides_what_a_worker_believes(tmp_path: Path) -> None:
    task = ScoringTask.of("scored", output_dir="output")
    moved = dataclasses.replace(task, dataset_name="moved")
    MetadataCatalog.get("moved").set(json_file="elsewhere.json")
    try:
        assert len(moved.evaluator()._coco_api.imgs) == len(TRUTH["images"])
    finally:
        forget("moved")
    with pytest.raises(ValueError, match="SCORING_WORKERS must not be negative, got -1"):
        ScoringPool(task, workers=-1)
