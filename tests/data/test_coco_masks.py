"""Masks and key points of COCO files, as Detectron2's loader and pycocotools read them."""

from __future__ import annotations

import json

import numpy as np
import pycocotools.mask
import pytest
from detectron2.data import DatasetMapper, MetadataCatalog

from detnas_d2.data import DatasetError
from detnas_d2.data.checks.coco_fields import is_mask, run_lengths
from detnas_d2.data.loaders.train import load_training_dicts
from tests.data.declared import objects

NAN = float("nan")


def corners(box):
    x, y, w, h = box
    return [x, y, x + w, y, x + w, y + h, x, y + h]


@pytest.fixture
def masks(coco):
    for annotation in coco.data["annotations"]:
        annotation["segmentation"] = [corners(annotation["bbox"])]
    return coco.data["annotations"]


@pytest.mark.parametrize(
    "value, message",
    [
        (None, "MODEL.MASK_ON is True, and there is no 'segmentation'"),
        ([], "there is no 'segmentation'"),
        ([[]], "must be polygons"),
        ([1, 2, 30, 2, 30, 30], "must be polygons"),
        ([[1, 2, 3, 4]], "must be polygons"),
        ([[1, 2, 3, 2, 5, 2]], "must be polygons"),
        ([[1, 2, NAN, 2, 5, 2]], "must be polygons"),
        ("1 2 3", "must be polygons"),
        ({"size": [30, 40], "counts": [1200]}, "run-length encoding"),
        ({"size": [30, 40], "counts": "~~~"}, "run-length encoding"),
        ({"size": [40, 30], "counts": [600, 600]}, "run-length encoding"),
        ({"size": [30, 40]}, "run-length encoding"),
        ({"size": [30, 40], "counts": [600, 600]}, "INPUT.MASK_FORMAT 'polygon' cannot hold"),
    ],
)
def test_masks_that_cannot_be_learned_are_listed(checked, masks, value, message):
    masks[0]["segmentation"] = value
    with pytest.raises(DatasetError, match=rf"annotations\[0\] \(id 1\): .*{message}"):
        checked(MODEL__MASK_ON=True)
    total = len(masks)
    checked(MODEL__MASK_ON=True, DATASETS__INVALID="drop")
    assert objects() == (total - 1, total - 1)
    checked()  # a detector of boxes keeps the box
    assert objects() == (total, total)


def test_encoded_masks(checked, masks, perfect_results):
    """Both kinds of run-length encodings, and a polygon beside a broken one."""
    masks[0]["segmentation"] = {"size": [30, 40], "counts": [0, 600, 600]}
    code = pycocotools.mask.encode(np.asfortranarray(np.eye(30, 40, dtype=np.uint8)))
    masks[1]["image_id"] = 1
    masks[1]["segmentation"] = {"size": [30, 40], "counts": code["counts"].decode()}
    masks[2]["segmentation"].append([1, 2])
    cfg = checked(MODEL__MASK_ON=True, INPUT__MASK_FORMAT="bitmask")
    mapper = DatasetMapper(cfg, True)
    dicts = load_training_dicts(cfg, ["pets"])
    assert sum(len(mapper(d)["instances"].gt_masks) for d in dicts) == len(masks)


def test_crowd_regions_may_be_encoded(checked, masks):
    masks[0] |= {"iscrowd": 1, "segmentation": {"size": [30, 40], "counts": [600, 600]}}
    cfg = checked(MODEL__MASK_ON=True)
    mapper = DatasetMapper(cfg, True)
    dicts = load_training_dicts(cfg, ["pets"])
    assert sum(len(mapper(d)["instances"]) for d in dicts) == len(masks) - 1


def test_run_lengths_are_those_of_pycocotools():
    random = np.random.RandomState(0)
    for share in (0.0, 0.01, 0.5, 1.0):
        mask = (random.rand(90, 70) < share).astype(np.uint8)
        mask[:40, :30] = 1
        flat = mask.flatten(order="F")
        runs = np.diff([0, *(np.flatnonzero(np.diff(flat)) + 1), flat.size])
        text = pycocotools.mask.encode(np.asfortranarray(mask))["counts"].decode()
        assert run_lengths(text).tolist() == [0, *runs]
        assert is_mask({"size": [90, 70], "counts": text}, 90, 70)
        assert not is_mask({"size": [90, 70], "counts": text[:-1]}, 90, 70)


@pytest.mark.parametrize("value", [None, [1, 2], [1, 2, 7] * 17, [1, 2, 2] * 16, "x"])
def test_key_points_that_cannot_be_learned_are_listed(checked, coco, value):
    for annotation in coco.data["annotations"]:
        annotation["keypoints"] = [5, 5, 2] * 17
    names = [f"point {i}" for i in range(17)]
    coco.data["categories"][0]["keypoints"] = names
    checked(MODEL__KEYPOINT_ON=True)
    assert MetadataCatalog.get("pets").keypoint_names == names
    with open(MetadataCatalog.get("pets").json_file) as file:
        cleaned = json.load(file)
    assert {a["num_keypoints"] for a in cleaned["annotations"]} == {17}
    assert cleaned["categories"][0]["keypoints"] == names
    coco.data["annotations"][0]["keypoints"] = value
    with pytest.raises(DatasetError, match=r"annotations\[0\] .*'keypoints' must be 17 times"):
        checked(MODEL__KEYPOINT_ON=True)
    checked()
    assert objects() == (14, 14)
