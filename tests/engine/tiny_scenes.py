"""Scenes registered by hand with boxes, masks, key points, stuff and panoptic segments."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from detectron2.structures import BoxMode
from PIL import Image

from tests.helpers import detector_config

POINTS = ("left_top", "right_top", "left_bottom", "right_bottom", "middle")
FLIPS = (("left_top", "right_top"), ("left_bottom", "right_bottom"))
THINGS, STUFF = ("red", "green"), ("things", "floor", "wall")
THING_IDS, STUFF_IDS = {11: 0, 12: 1}, {0: 0, 21: 1, 22: 2}
HEIGHT, WIDTH = 48, 64


def write_scenes(root: Path, count: int = 6) -> list[dict[str, Any]]:
    """Detectron2's dicts of two squares (things) before a floor and a wall (stuff) each."""
    random = np.random.RandomState(0)
    for name in ("images", "semantic", "panoptic"):
        (root / name).mkdir(parents=True)
    dicts, truth = [], []
    for image in range(1, count + 1):
        semantic = np.full((HEIGHT, WIDTH), 2, np.uint8)
        semantic[30:] = 1
        panoptic = np.where(semantic == 1, 1001, 1002)
        pixels = random.randint(0, 60, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        pixels[30:, :, 2] += 120
        segments = [{"id": 1001, "category_id": 21}, {"id": 1002, "category_id": 22}]
        annotations = []
        for k in range(2):
            side, x, y = int(random.randint(14, 22)), 2 + 30 * k, int(random.randint(0, 26))
            place = slice(y, y + side), slice(x, x + side)
            label = (image + k) % 2
            pixels[place] = (250, 40, 40) if label == 0 else (40, 250, 40)
            semantic[place], panoptic[place] = 0, k + 1
            segments.append({"id": k + 1, "category_id": 11 + label})
            far = x + side, y + side
            points = [(x, y), (far[0], y), (x, far[1]), far, (x + side / 2, y + side / 2)]
            annotations.append(
                {
                    "bbox": [x, y, *far],
                    "bbox_mode": BoxMode.XYXY_ABS,
                    "category_id": label,
                    "segmentation": [[x, y, far[0], y, *far, x, far[1]]],
                    "keypoints": [value for p in points for value in (*p, 2)],
                    "iscrowd": 0,
                }
            )
        Image.fromarray(pixels).save(root / "images" / f"{image}.png")
        Image.fromarray(semantic).save(root / "semantic" / f"{image}.png")
        colors = np.stack([panoptic % 256, panoptic // 256, 0 * panoptic], 2).astype(np.uint8)
        Image.fromarray(colors).save(root / "panoptic" / f"{image}.png")
        for segment in segments:
            segment |= {"iscrowd": 0, "area": int((panoptic == segment["id"]).sum())}
        name = f"{image}.png"
        truth.append({"image_id": image, "file_name": name, "segments_info": segments})
        dicts.append(
            {
                "file_name": str(root / "images" / name),
                "sem_seg_file_name": str(root / "semantic" / name),
                "image_id": image,
                "height": HEIGHT,
                "width": WIDTH,
                "annotations": annotations,
            }
        )
    categories = [{"id": i, "name": THINGS[n], "isthing": 1} for i, n in THING_IDS.items()]
    categories += [{"id": i, "name": STUFF[n], "isthing": 0} for i, n in STUFF_IDS.items() if i]
    data = {"annotations": truth, "categories": categories, "images": []}
    (root / "panoptic.json").write_text(json.dumps(data))
    return dicts


def register_scenes(root: Path, kind: str, name: str = "scenes") -> None:
    """Registers them under ``name``_train and ``name``_val with an evaluator type."""
    dicts = write_scenes(root)
    keys = ["file_name", "image_id", "height", "width"]
    keys += [] if kind == "sem_seg" else ["annotations"]
    keys += [] if kind == "coco" else ["sem_seg_file_name"]
    for half, part in (("train", dicts), ("val", dicts[:3])):
        chosen = [{key: d[key] for key in keys} for d in part]
        DatasetCatalog.register(f"{name}_{half}", lambda chosen=chosen: chosen)
        metadata = MetadataCatalog.get(f"{name}_{half}")
        metadata.set(evaluator_type=kind, thing_classes=list(THINGS))
        if kind == "coco":
            metadata.set(keypoint_names=list(POINTS), keypoint_flip_map=list(FLIPS))
            continue
        metadata.set(stuff_classes=list(STUFF), ignore_label=255)
        if kind == "coco_panoptic_seg":
            metadata.set(
                thing_dataset_id_to_contiguous_id=THING_IDS,
                stuff_dataset_id_to_contiguous_id=STUFF_IDS,
                panoptic_json=str(root / "panoptic.json"),
                panoptic_root=str(root / "panoptic"),
            )


def scene_search(root: Path, model: str) -> CfgNode:
    """A search of two generations of two on such scenes, for "mask", "cascade", "keypoint",
    "panoptic" or "semantic" models with random weights."""
    types = {"panoptic": "coco_panoptic_seg", "semantic": "sem_seg"}
    register_scenes(root / "data", types.get(model, "coco"))
    cfg = detector_config("mask" if model in ("mask", "cascade", "panoptic") else "faster")
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 2
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 20
    cfg.INPUT.MASK_FORMAT = "polygon"
    if model == "cascade":
        cfg.MODEL.ROI_HEADS.NAME = "CascadeROIHeads"
        cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = True
    if model == "keypoint":
        cfg.MODEL.KEYPOINT_ON = True
        cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS = len(POINTS)
        cfg.MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS = (8, 8)
        cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE = 0
        cfg.TEST.KEYPOINT_OKS_SIGMAS = [0.5] * len(POINTS)
        cfg.SEARCH.METRIC = "keypoints/AP"
    if model in types:
        cfg.MODEL.META_ARCHITECTURE = {"panoptic": "PanopticFPN", "semantic": "SemanticSegmentor"}[
            model
        ]
        head = cfg.MODEL.SEM_SEG_HEAD
        head.NUM_CLASSES, head.CONVS_DIM, head.NORM = len(STUFF), 8, "BN"
        cfg.MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT = 1
        cfg.MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH = 0.0
    if model in ("mask", "cascade"):
        cfg.SEARCH.METRIC = "segm/AP"
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("scenes_train",), ("scenes_val",)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (HEIGHT,), HEIGHT
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS = 2, 2, ()
    cfg.SOLVER.BASE_LR = 0.002
    cfg.SEARCH.VAL = cfg.DATASETS.TEST[0]
    cfg.SEARCH.POPULATION = cfg.SEARCH.GENERATIONS = 2
    cfg.SEARCH.CALIBRATION.IMAGES, cfg.SEARCH.CALIBRATION.BATCH_SIZE = 4, 2
    cfg.SEARCH.SCORING_WORKERS = 0
    cfg.SEARCH.MAX_MACS_INPUT = [64, 64]
    cfg.OUTPUT_DIR = str(root / "out")
    cfg.MODEL.WEIGHTS = str(root / "supernet.pth")
    torch.manual_seed(0)
    torch.save({"model": build_model(cfg).state_dict()}, cfg.MODEL.WEIGHTS)
    return cfg
