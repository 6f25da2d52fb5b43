"""Detections of images whose annotations nobody here has, such as COCO's test-dev: a file."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from detectron2.modeling import build_model

from detnas_d2.engine import train_main
from tests.engine.tiny_runs import Configs, arguments, write_config


def test_detections_without_annotations_are_written(configs: Configs, tmp_path: Path) -> None:
    cfg = configs("faster").clone()
    cfg.defrost()
    cfg.MODEL.BACKBONE.NAME = "build_detnas_fpn_backbone"
    cfg.MODEL.DETNAS.PATH = "3x3 " * 5
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    (shapes,) = cfg.DATASETS.REGISTER
    # As image_info_test-dev2017.json: images and categories, with COCO's numbers, alone.
    info = json.loads((tmp_path / "shapes.json").read_text())
    del info["annotations"]
    categories = [{"id": 10 * (i + 1), "name": name} for i, name in enumerate("abc")]
    images = info["images"][:2]
    (tmp_path / "info.json").write_text(json.dumps({"images": images, "categories": categories}))
    unseen = {**shapes, "NAME": "unseen", "ANNOTATIONS": str(tmp_path / "info.json")}
    cfg.DATASETS.REGISTER = [shapes, unseen]
    torch.manual_seed(0)
    torch.save({"model": build_model(cfg).state_dict()}, tmp_path / "weights.pth")
    write_config(cfg, tmp_path / "config.yaml")
    args = arguments(
        str(tmp_path / "config.yaml"),
        *("DATASETS.TEST", "('unseen',)", "MODEL.WEIGHTS", str(tmp_path / "weights.pth")),
        *("OUTPUT_DIR", str(tmp_path / "out")),
    )
    args.eval_only = True
    train_main(args)
    found = json.loads((tmp_path / "out" / "inference" / "coco_instances_results.json").read_text())
    assert {entry["image_id"] for entry in found} == {image["id"] for image in images}
    assert {entry["category_id"] for entry in found} <= {10, 20, 30}
    assert all(set(entry) == {"image_id", "category_id", "bbox", "score"} for entry in found)
