"""Every kind of Detectron2 model is trained and searched, with its own metric as fitness."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from detnas_d2.data import register_datasets
from detnas_d2.engine import prepare, train
from detnas_d2.engine.evolution_search import load_supernet, search
from detnas_d2.evaluation.build import sequential_evaluator
from detnas_d2.evaluation.settings import EvaluationSettings
from detnas_d2.modeling import find_supernet
from tests.engine.tiny_runs import arguments
from tests.engine.tiny_scenes import scene_search

METRICS = {
    "mask": {"segm/AP", "bbox/AP"},
    "cascade": {"segm/AP", "bbox/AP"},
    "keypoint": {"keypoints/AP", "bbox/AP"},
    "panoptic": {"panoptic_seg/PQ", "panoptic_seg/PQ_st"},
    "semantic": {"sem_seg/mIoU", "sem_seg/IoU-floor"},
}


@pytest.mark.parametrize("model", METRICS)
def test_trained_and_searched(model: str, tmp_path: Path) -> None:
    cfg = scene_search(tmp_path, model)
    training = cfg.clone()
    training.MODEL.WEIGHTS, training.OUTPUT_DIR = "", str(tmp_path / "supernet")
    prepare(training, arguments())
    train(training, resume=False)
    cfg.MODEL.WEIGHTS = str(tmp_path / "supernet" / "model_final.pth")
    cfg.freeze()
    register_datasets(cfg)
    best = search(cfg, resume=False)
    lines = Path(cfg.OUTPUT_DIR, "history.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert len(records) == 4 and all(r["error"] is None for r in records)
    assert best.fitness == max(r["fitness"] for r in records) > 0
    assert METRICS[model] <= records[0]["metrics"].keys()
    network = load_supernet(cfg)
    evaluator = sequential_evaluator(EvaluationSettings.from_config(cfg), network)
    for record in records:
        found = evaluator.evaluate(find_supernet(network).space.path(record["choices"]))
        assert found.fitness == record["fitness"]


def test_what_a_model_cannot_be_scored_by(tmp_path: Path) -> None:
    cfg = scene_search(tmp_path, "keypoint")
    cfg.TEST.KEYPOINT_OKS_SIGMAS = []
    with pytest.raises(ValueError, match=r"SIGMAS has 0 values, .*NUM_KEYPOINTS is 5"):
        EvaluationSettings.from_config(cfg).check()
    cfg.TEST.KEYPOINT_OKS_SIGMAS = [0.1] * 4
    with pytest.raises(ValueError, match=r"SIGMAS has 4 values, .*NUM_KEYPOINTS is 5"):
        EvaluationSettings.from_config(cfg).check()
    cfg.MODEL.KEYPOINT_ON = False
    with pytest.raises(ValueError, match="METRIC 'keypoints/AP': .* is scored by bbox/AP, "):
        EvaluationSettings.from_config(cfg).check()
    MetadataCatalog.get("others").evaluator_type = "lvis"
    DatasetCatalog.register("others", list)
    cfg.SEARCH.VAL = "others"
    with pytest.raises(ValueError, match="evaluator_type 'lvis'; expected one of coco, "):
        EvaluationSettings.from_config(cfg).check()


def test_data_registered_by_hand_serves_again(tmp_path: Path) -> None:
    """Evaluation makes a COCO file of dicts; the next run in the process has other dicts."""
    cfg = scene_search(tmp_path, "mask")
    cfg.MODEL.BACKBONE.NAME = "build_detnas_fpn_backbone"
    cfg.MODEL.DETNAS.PATH = "3x3 / 3x3 / 3x3 3x3 / 3x3"
    cfg.MODEL.WEIGHTS = ""
    for images in (3, 2):
        prepare(cfg, arguments())
        train(cfg, resume=False)
        file = Path(cfg.OUTPUT_DIR, "inference", "scenes_val_coco_format.json")
        assert len(json.loads(file.read_text())["images"]) == images
        assert not hasattr(MetadataCatalog.get("scenes_val"), "json_file")
        fewer = DatasetCatalog.get("scenes_val")[: images - 1]
        DatasetCatalog.remove("scenes_val")
        DatasetCatalog.register("scenes_val", lambda fewer=fewer: fewer)
    MetadataCatalog.get("scenes_val").json_file = str(tmp_path / "elsewhere.json")
    register_datasets(cfg)  # a file without image folder says nothing about where images are
