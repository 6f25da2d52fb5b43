"""A run's folder with a detector in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image

from detnas_d2.config.tools import short_yaml
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
