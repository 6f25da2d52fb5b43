"""Made-up COCO ground truth and detections for tests of scoring."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as rle
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, Instances

CLASSES = ("cat", "dog", "bird", "none")
IDS = (3, 7, 11, 20)  # of the dataset; there is no "none"
SIZE = (90, 120)


def ground_truth(seed: int, *, images: int = 12, crowds: float = 0.15) -> dict[str, Any]:
    """A COCO file's content with polygons, crowds and boxes of every area range."""
    random = np.random.default_rng(seed)
    annotations: list[dict] = []
    for image in range(images):
        for _ in range(random.integers(0, 7)):
            x, y = random.uniform(0, 50, 2)
            w, h = random.choice([8, 30, 60], 2) * random.uniform(0.8, 1.1, 2)
            w, h = min(w, SIZE[1] - x), min(h, SIZE[0] - y)
            corners = [x, y, x + w, y, x + w, y + h, x + 2, y + h]
            crowd = bool(random.random() < crowds)
            mask = rle.frPyObjects([corners], *SIZE)[0]
            counts = {"size": mask["size"], "counts": mask["counts"].decode()}
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": 100 + image,
                    "category_id": int(random.choice(IDS[:3], p=[0.6, 0.3, 0.1])),
                    "bbox": [x, y, w, h],
                    "area": float(w * h),
                    "iscrowd": int(crowd),
                    "segmentation": counts if crowd else [corners],
                }
            )
    return {
        "images": [{"id": 100 + i, "height": SIZE[0], "width": SIZE[1]} for i in range(images)],
        "categories": [{"id": i, "name": n} for i, n in zip(IDS, CLASSES, strict=True)],
        "annotations": annotations,
    }


def register(name: str, truth: dict[str, Any], folder: Path) -> None:
    """Puts ``truth`` in a file and its metadata in the catalog; call ``forget`` afterwards."""
    file = folder / f"{name}.json"
    file.write_text(json.dumps(truth))
    MetadataCatalog.get(name).set(
        json_file=str(file),
        evaluator_type="coco",
        thing_classes=list(CLASSES),
        thing_dataset_id_to_contiguous_id={i: n for n, i in enumerate(IDS)},
    )


def forget(name: str) -> None:
    MetadataCatalog.remove(name)


def detect(
    truth: dict[str, Any], seed: int, *, digits: int = 2, masks: bool = False
) -> list[tuple[list[dict], list[dict]]]:
    """(inputs, outputs) per image: the truth displaced, and what is not there.

    Args:
        digits: of the scores; few digits make many ties.
        masks: with "pred_masks", (N, height, width).
    """
    random = np.random.default_rng(seed)
    batches = []
    for image in truth["images"]:
        boxes, classes = [], []
        for a in truth["annotations"]:
            for _ in range(random.integers(0, 4) if a["image_id"] == image["id"] else 0):
                x, y, w, h = np.array(a["bbox"]) + random.normal(0, 0.06, 4) * max(a["bbox"][2:])
                boxes.append([x, y, x + max(w, 1), y + max(h, 1)])
                right = random.random() < 0.8
                classes.append(IDS.index(a["category_id"]) if right else random.integers(0, 4))
        for _ in range(random.integers(0, 6)):
            x, y, w, h = random.uniform(1, 50, 4)
            boxes.append([x, y, x + w, y + h])
            classes.append(random.integers(0, 4))
        found = Instances(SIZE)
        found.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
        found.scores = torch.tensor(np.round(random.random(len(boxes)), digits)).float()
        found.pred_classes = torch.tensor(np.array(classes, dtype=np.int64))
        if masks:
            found.pred_masks = _ellipses(boxes)
        batches.append(([{"image_id": image["id"]}], [{"instances": found}]))
    return batches


def _ellipses(boxes: list[list[float]]) -> torch.Tensor:
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    masks = np.zeros((len(boxes), *SIZE), dtype=bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        across = (columns - (x0 + x1) / 2) / (x1 - x0)
        down = (rows - (y0 + y1) / 2) / (y1 - y0)
        mask[:] = across**2 + down**2 < 0.27
    return torch.from_numpy(masks)
