"""The released detectors over the first images of a dataset, with random weights."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from recorded_search import SPACE

from detnas_d2.config.tools import load_config
from detnas_d2.data import build_test_loader, register_datasets
from detnas_d2.engine.checkpoint import DetNASCheckpointer
from detnas_d2.engine.trainers.trainer import Trainer
from detnas_d2.modeling import activate

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "DetNAS"


def detector(args: argparse.Namespace, kind: str, size: str, folder: str) -> CfgNode:
    """The released architecture over this benchmark's images."""
    cfg = load_config(str(CONFIGS / f"{kind}_coco" / "search.yaml"))
    short, long = map(int, size.split("x"))
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = short, long
    cfg.MODEL.DEVICE = args.device
    cfg.DATALOADER.NUM_WORKERS = args.loaders
    cfg.DATASETS.INVALID = "ignore"
    cfg.DATASETS.CACHE_DIR = os.path.join(folder, "data")
    images = args.images if size == "320x480" else max(2, args.images // 4)
    names = [subset(name, images, folder) for name in source_sets(cfg)]
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (names[0],), (names[1],)
    classes = len(MetadataCatalog.get(names[1]).thing_classes)
    cfg.MODEL.RETINANET.NUM_CLASSES = cfg.MODEL.ROI_HEADS.NUM_CLASSES = classes
    cfg.SEARCH.VAL = ""
    cfg.SEARCH.CALIBRATION.IMAGES, cfg.SEARCH.CALIBRATION.BATCH_SIZE = images, 2
    cfg.SEARCH.CHUNK, cfg.SEARCH.SCORING_WORKERS = args.chunk, args.workers
    cfg.MODEL.WEIGHTS = os.path.join(folder, f"{kind}.pth")
    cfg.OUTPUT_DIR = os.path.join(folder, f"{kind}_{size}")
    os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
    if not os.path.exists(cfg.MODEL.WEIGHTS):
        torch.save({"model": random_weights(cfg)}, cfg.MODEL.WEIGHTS)
    if kind == "retinanet":
        cfg.MODEL.RETINANET.SCORE_THRESH_TEST = score_threshold(cfg)
    return cfg


@torch.no_grad()
def score_threshold(cfg: CfgNode, candidates: int = 2000) -> float:
    """The score that so many (anchor, class) pairs of the first image pass, as of a trained net."""
    model = Trainer.build_model(cfg).train()
    DetNASCheckpointer(model).load_all(cfg.MODEL.WEIGHTS)
    batch = next(iter(build_test_loader(cfg, cfg.DATASETS.TEST[0])))
    with activate(model, SPACE.uniform_path("3x3")):
        features = model.backbone(model.preprocess_image(batch).tensor)
    logits, _ = model.head([features[name] for name in cfg.MODEL.RETINANET.IN_FEATURES])
    scores = torch.cat([level.flatten() for level in logits]).sigmoid()
    return float(scores.topk(candidates).values[-1])


def random_weights(cfg: CfgNode) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    state = Trainer.build_model(cfg).state_dict()
    if "roi_heads.box_predictor.cls_score.weight" in state:
        # Probabilities that differ between proposals: some pass the threshold.
        state["roi_heads.box_predictor.cls_score.weight"] *= 100
    return state


def source_sets(cfg: CfgNode) -> tuple[str, str]:
    """Names of the datasets for calibration and validation."""
    root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets"))
    coco = (root / "coco" / "annotations" / "instances_val2017.json").exists()
    names = ("coco_2017_train", "coco_2017_val")
    names = names if coco else ("digits_scenes_train", "digits_scenes_val")
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (names[0],), (names[1],)
    cfg.SEARCH.VAL = names[1]
    register_datasets(cfg)
    return names


def subset(name: str, images: int, folder: str) -> str:
    """Registers the first images of a COCO dataset that have objects."""
    known = MetadataCatalog.get(name)
    truth = json.loads(Path(known.json_file).read_text())
    with_objects = {a["image_id"] for a in truth["annotations"] if not a.get("iscrowd")}
    truth["images"] = [i for i in truth["images"] if i["id"] in with_objects][:images]
    ids = {i["id"] for i in truth["images"]}
    truth["annotations"] = [a for a in truth["annotations"] if a["image_id"] in ids]
    new, dicts = f"{name}_{images}", DatasetCatalog.get(name)
    if new not in DatasetCatalog.list():
        file = Path(folder) / f"{new}.json"
        file.write_text(json.dumps(truth))
        DatasetCatalog.register(new, lambda: [d for d in dicts if d["image_id"] in ids])
        more = known.as_dict()
        drop = ("name", "json_file")
        MetadataCatalog.get(new).set(
            json_file=str(file), **{k: v for k, v in more.items() if k not in drop}
        )
    return new
