"""A run's folder with a detector in it; a folder of images, and settings for a run in seconds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image, ImageDraw

from detnas_d2.config.tools import short_yaml
from detnas_d2.pipeline import side_by_side
from detnas_d2.recipe import measuring, refitting, schedule
from detnas_d2.recipe.schedule import Schedule
from tests.helpers import detector_config


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A run whose searched network has random weights, which find something everywhere."""
    folder = tmp_path / "run" / "searched"
    folder.mkdir(parents=True)
    cfg = detector_config()
    cfg.MODEL.BACKBONE.NAME = "build_detnas_fpn_backbone"
    cfg.MODEL.DETNAS.PATH = "0 1 2 3 0"
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 64, 128
    torch.manual_seed(0)
    torch.save({"model": build_model(cfg).state_dict()}, folder / "model_final.pth")
    (folder / "config.yaml").write_text(short_yaml(cfg))
    return folder.parent


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    pixels = np.random.RandomState(0).randint(0, 255, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Sixteen images of a few bright boxes, annotated as COCO, as Roboflow lays it out."""
    rng = np.random.default_rng(0)
    folder = tmp_path / tmp_path.name  # names of datasets are taken from it
    for part, number in (("train", 12), ("test", 4)):
        (folder / part).mkdir(parents=True)
        coco = {
            "images": [], "annotations": [],
            "categories": [{"id": 1, "name": "light"}, {"id": 2, "name": "dark"}],
        }  # fmt: skip
        for n in range(number):
            image = Image.new("RGB", (64, 48), (90, 90, 90))
            for label in (1, 2):
                x, y = (int(v) for v in rng.integers(0, 24, 2))
                box = [x, y, 16 + 4 * label, 14]
                corners = (x, y, x + box[2] - 1, y + box[3] - 1)
                ImageDraw.Draw(image).rectangle(corners, (220,) * 3 if label == 1 else (10,) * 3)
                number_ = len(coco["annotations"]) + 1
                coco["annotations"].append(
                    {"id": number_, "image_id": n + 1, "category_id": label, "bbox": box,
                     "area": box[2] * box[3], "iscrowd": 0}
                )  # fmt: skip
            image.save(folder / part / f"{n}.png")
            coco["images"].append({"id": n + 1, "file_name": f"{n}.png", "width": 64, "height": 48})
        (folder / part / "_annotations.coco.json").write_text(json.dumps(coco))
    return folder


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch, quick_figures: None) -> None:
    """Runs of a few iterations, without --jobs one stage after the other."""
    for module in (schedule, refitting):
        monkeypatch.setattr(module, "LEAST", Schedule(2, 2, 1, 2, 0))
    monkeypatch.setattr(schedule, "_USUAL_LEAST", {"small": 4})
    monkeypatch.setattr(schedule, "_MOST_EPOCHS", 0)
    monkeypatch.setattr(schedule, "_MOST_CANDIDATES", 2)
    monkeypatch.setattr(schedule, "networks_for", lambda seconds: 0)
    monkeypatch.setattr(schedule, "_TUNING", {"detnas": 0.5})
    monkeypatch.setattr(measuring, "_STEPS", 1)
    monkeypatch.setattr(side_by_side, "usable_cpus", lambda: [0])
