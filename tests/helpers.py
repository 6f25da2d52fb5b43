"""Tiny detectors, batches, records and comparisons that several tests share."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from detnas_d2.config.tools import base_config
from detnas_d2.evaluation import CandidateRecord


def detector_config(kind: str = "faster") -> CfgNode:
    """A "faster" or "mask" R-CNN or a "retinanet" over the supernet "detnas_tiny", on CPU."""
    cfg = base_config()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    cfg.SUPERNET.CHECK.PATHS = 0  # of a few iterations no supernet learns; see test_supernet_check
    cfg.MODEL.DETNAS.SPACE = "detnas_tiny"
    cfg.MODEL.FPN.IN_FEATURES = ["stage1", "stage2", "stage3", "stage4"]
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    cfg.MODEL.BACKBONE.NAME = "build_detnas_supernet_fpn_backbone"
    if kind == "retinanet":
        cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
        cfg.MODEL.BACKBONE.NAME = "build_detnas_supernet_retinanet_fpn_backbone"
        cfg.MODEL.FPN.IN_FEATURES = ["stage2", "stage3", "stage4"]
        cfg.MODEL.RETINANET.NUM_CLASSES = 3
        return cfg
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    cfg.MODEL.MASK_ON = kind == "mask"
    cfg.INPUT.MASK_FORMAT = "bitmask"
    cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[8], [16], [32], [64], [128]]
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 16
    cfg.MODEL.ROI_BOX_HEAD.NAME = "DetNASConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_CONV = 1
    cfg.MODEL.ROI_BOX_HEAD.CONV_DIM = 16
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 1
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 16
    cfg.MODEL.ROI_BOX_HEAD.NORM = "SyncBN"
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 7
    cfg.MODEL.ROI_MASK_HEAD.NAME = "MaskRCNNConvUpsampleHead"
    cfg.MODEL.ROI_MASK_HEAD.NUM_CONV = 1
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 8
    return cfg


def classifier() -> nn.Module:
    """A supernet that classifies images of three classes."""
    cfg = detector_config()
    cfg.MODEL.META_ARCHITECTURE = "ImageClassifier"
    cfg.MODEL.BACKBONE.NAME = "build_detnas_supernet_backbone"
    cfg.MODEL.DETNAS.LAST_CONV = True
    cfg.MODEL.DETNAS.OUT_FEATURES = ["last"]
    cfg.MODEL.CLASSIFIER.NUM_CLASSES = 3
    torch.manual_seed(0)
    return build_model(cfg)


def training_batch(
    *,
    masks: bool = False,
    sizes: tuple[tuple[int, int], ...] = ((64, 96), (80, 64)),
    classes: tuple[int, ...] = (0, 2),
    generator: torch.Generator | None = None,
) -> list[dict]:
    """Random images of ``sizes`` (height, width) with one box for each of ``classes``."""
    batch = []
    for height, width in sizes:
        instances = Instances((height, width))
        boxes = torch.tensor([[4.0, 6, 30, 40], [20, 10, 60, 60]])[: len(classes)]
        instances.gt_boxes = Boxes(boxes)
        instances.gt_classes = torch.tensor(classes)
        if masks:
            bits = torch.zeros(len(classes), height, width, dtype=torch.bool)
            for mask, (x0, y0, x1, y1) in zip(bits, boxes.int().tolist(), strict=True):
                mask[y0:y1, x0:x1] = True
            instances.gt_masks = BitMasks(bits)
        image = torch.randint(0, 255, (3, height, width), dtype=torch.uint8, generator=generator)
        batch.append({"image": image, "instances": instances, "height": height, "width": width})
    return batch


def classification_batch(size: int, labels: list[int], *, seed: int = 0) -> list[dict]:
    """Random images (3, size, size) with ``labels``."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(
        0, 255, (len(labels), 3, size, size), dtype=torch.uint8, generator=generator
    )
    return [{"image": i, "label": label} for i, label in zip(images, labels, strict=True)]


def candidate_record(index: int = 0, **fields: object) -> CandidateRecord:
    """A record of a search's first generation with other ``fields``."""
    values = {
        "generation": 1,
        "position": index,
        "origin": "random",
        "path": f"path {index}",
        "choices": (index,),
        "fitness": 1.0,
        "metrics": {},
        "macs": None,
        "params": None,
        "latency_ms": None,
        "error": None,
        "seconds": {},
        "finished": "",
    }
    return CandidateRecord(index, **{**values, **fields})


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """A copy of all parameters and buffers."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def changed(model: nn.Module, before: dict[str, Tensor]) -> set[str]:
    """Names of the parameters and buffers that are not the same bits as ``before``."""
    after = model.state_dict()
    assert after.keys() == before.keys()
    return {name for name, value in before.items() if not torch.equal(after[name], value)}


def load_file(name: str, path: Path) -> ModuleType:
    """The module of a file that belongs to no package."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def scalars_in(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Tag -> (step, value) of TensorBoard's scalars in a folder, as TensorBoard reads them."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {
        tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }


def resnet_features(net: Any, image: Tensor) -> Tensor:
    """The last map of a ResNet of torchvision, by its layers."""
    x = net.maxpool(net.relu(net.bn1(net.conv1(image))))
    return net.layer4(net.layer3(net.layer2(net.layer1(x))))
