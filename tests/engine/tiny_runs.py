"""Tiny datasets on disk and configs of a few iterations, for whole runs in seconds."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from PIL import Image

from detnas_d2.config.tools import short_yaml
from tests.helpers import detector_config

COLORS = ((250, 60, 60), (60, 250, 60), (60, 60, 250))


def write_shapes(root: Path, count: int = 12) -> dict[str, object]:
    """COCO files of coloured rectangles on noise, wide and high images in turn."""
    random = np.random.RandomState(0)
    data: dict[str, list] = {"images": [], "annotations": []}
    data["categories"] = [{"id": i + 1, "name": name} for i, name in enumerate("abc")]
    (root / "shapes").mkdir()
    for image in range(1, count + 1):
        width, height = (64, 48) if image % 2 else (48, 64)
        pixels = random.randint(0, 60, (height, width, 3), dtype=np.uint8)
        for k in range(2):
            x, y = random.randint(0, 20, 2)
            side = int(random.randint(16, 28))
            label = (image + k) % 3
            pixels[y : y + side, x : x + side] = COLORS[label]
            data["annotations"].append(
                {
                    "id": len(data["annotations"]) + 1,
                    "image_id": image,
                    "category_id": label + 1,
                    "bbox": [int(x), int(y), side, side],
                    "segmentation": [_corners(int(x), int(y), side)],
                    "area": side * side,
                    "iscrowd": 0,
                }
            )
        Image.fromarray(pixels).save(root / "shapes" / f"{image}.png")
        size = {"width": width, "height": height}
        data["images"].append({"id": image, "file_name": f"{image}.png", **size})
    (root / "shapes.json").write_text(json.dumps(data))
    return {
        "NAME": "shapes",
        "FORMAT": "coco",
        "IMAGES": str(root / "shapes"),
        "ANNOTATIONS": str(root / "shapes.json"),
    }


def _corners(x: int, y: int, side: int) -> list[int]:
    return [x, y, x + side, y, x + side, y + side, x, y + side]


def write_colors(root: Path, count: int = 6) -> dict[str, object]:
    """Folders of noisy images, one for each colour."""
    random = np.random.RandomState(1)
    for label, color in enumerate(COLORS):
        (root / "colors" / "abc"[label]).mkdir(parents=True)
        for image in range(count):
            pixels = random.randint(0, 100, (40, 44, 3)) + np.array(color) // 2
            file = root / "colors" / "abc"[label] / f"{image}.png"
            Image.fromarray(pixels.astype(np.uint8)).save(file)
    return {"NAME": "colors", "FORMAT": "image_folder", "ROOT": str(root / "colors")}


def _set_data(cfg: CfgNode, root: Path, *, classifies: bool) -> None:
    write = write_colors if classifies else write_shapes
    declaration = write(root)
    name = declaration["NAME"]
    cfg.DATASETS.REGISTER = [declaration]
    cfg.DATASETS.TRAIN = (f"{name}@search_train",)
    cfg.DATASETS.TEST = (f"{name}@search_val",)
    cfg.DATASETS.SEARCH_SPLIT.SIZE = 4
    cfg.DATASETS.CACHE_DIR = str(root / "cache")
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (48, 64), 48
    cfg.INPUT.CLASSIFICATION.CROP_SIZE = cfg.INPUT.CLASSIFICATION.RESIZE_SIZE = 32


class Configs:
    """Makes configs of six iterations that train a supernet of the tiny space on data of its own.

    Called with "faster", "mask", "retinanet" or "classifier", and KEY, VALUE overrides.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._data: dict[bool, CfgNode] = {}

    def __call__(self, kind: str = "faster", *opts: object) -> CfgNode:
        classifies = kind == "classifier"
        cfg = detector_config("faster" if classifies else kind)
        if classifies not in self._data:
            _set_data(cfg, self.root, classifies=classifies)
            self._data[classifies] = cfg.clone()
        for node in ("DATASETS", "DATALOADER", "INPUT"):
            cfg[node] = self._data[classifies][node].clone()
        if classifies:
            cfg.MODEL.META_ARCHITECTURE = "ImageClassifier"
            cfg.MODEL.BACKBONE.NAME = "build_detnas_supernet_backbone"
            cfg.MODEL.DETNAS.LAST_CONV = True
            cfg.MODEL.DETNAS.OUT_FEATURES = ["last"]
            cfg.MODEL.CLASSIFIER.NUM_CLASSES = 3
        cfg.MODEL.FPN.NORM = cfg.MODEL.ROI_BOX_HEAD.NORM = "BN"
        cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 20
        cfg.SOLVER.IMS_PER_BATCH = 2
        cfg.SOLVER.BASE_LR = 0.01
        cfg.SOLVER.MAX_ITER = 6
        cfg.SOLVER.STEPS = (4,)
        cfg.SOLVER.WARMUP_ITERS = 2
        cfg.SOLVER.CHECKPOINT_PERIOD = 2
        cfg.OUTPUT_DIR = str(self.root / "out")
        cfg.merge_from_list(list(opts))
        return cfg

    def search(self, *opts: object, kind: str = "faster", norm: str = "BN") -> CfgNode:
        """A search of three generations of four, over random weights, with fitness above zero."""
        cfg = self(kind)
        cfg.MODEL.FPN.NORM = cfg.MODEL.ROI_BOX_HEAD.NORM = norm
        # Every proposal counts as a detection of every class: some are right by chance.
        cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
        cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.0
        cfg.MODEL.WEIGHTS = str(self.root / f"supernet_{kind}{norm}.pth")
        cfg.SEARCH.VAL = cfg.DATASETS.TEST[0]
        cfg.SEARCH.SCORING_WORKERS = 0
        cfg.SEARCH.POPULATION, cfg.SEARCH.GENERATIONS = 4, 3
        cfg.SEARCH.CALIBRATION.IMAGES, cfg.SEARCH.CALIBRATION.BATCH_SIZE = 4, 2
        cfg.SEARCH.MAX_MACS_INPUT = [64, 64]
        cfg.OUTPUT_DIR = str(self.root / "search")
        if not os.path.exists(cfg.MODEL.WEIGHTS):
            torch.manual_seed(0)
            torch.save({"model": build_model(cfg).state_dict()}, cfg.MODEL.WEIGHTS)
        cfg.merge_from_list(list(opts))
        return cfg


def write_config(cfg: CfgNode, file: Path) -> str:
    """Writes a config as short YAML; returns the file's name."""
    file.write_text(short_yaml(cfg))
    return str(file)


def arguments(
    file: str = "", *opts: str, dry_run: bool = False, resume: bool = False
) -> argparse.Namespace:
    """What the commands' parsers give for a run in one process."""
    return argparse.Namespace(
        config_file=file,
        opts=list(opts),
        num_gpus=1,
        num_machines=1,
        machine_rank=0,
        dist_url="auto",
        eval_only=False,
        resume=resume,
        dry_run=dry_run,
    )
