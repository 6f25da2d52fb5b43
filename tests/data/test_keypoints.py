"""Key points of a declared dataset are named and mirrored by its file."""

from __future__ import annotations

import json

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import create_keypoint_hflip_indices

from detnas_d2.data import DatasetError, register_datasets

NAMES = ["nose", "left_ear", "right_ear", "tail_Left", "tail_Right"]


def with_points(coco, names, make_cfg, *opts):
    data = json.loads((coco.root / "pets.json").read_text())
    for category in data["categories"]:
        if names is not None:
            category["keypoints"] = names
    for annotation in data["annotations"]:
        x, y, w, h = annotation["bbox"]
        annotation["keypoints"] = [x + w / 2, y + h / 2, 2] * 5
        annotation["num_keypoints"] = 5
    (coco.root / "pets.json").write_text(json.dumps(data))
    cfg = make_cfg(coco.declaration, train=["pets", "pets@search_val"])
    cfg.DATASETS.SEARCH_SPLIT.SIZE = 2
    cfg.MODEL.KEYPOINT_ON, cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS = True, 5
    cfg.merge_from_list(list(opts))
    return cfg


def test_names_and_mirror_images(make_cfg, coco):
    cfg = with_points(coco, NAMES, make_cfg)
    for _ in range(2):
        register_datasets(cfg)
        for name in ("pets", "pets@search_val"):
            assert MetadataCatalog.get(name).keypoint_names == NAMES
            assert list(create_keypoint_hflip_indices([name])) == [0, 2, 1, 4, 3]
            points = [a["keypoints"] for d in DatasetCatalog.get(name) for a in d["annotations"]]
            assert {len(p) for p in points} == {15}


def test_points_without_names_are_not_flipped(make_cfg, coco):
    with pytest.raises(DatasetError, match=r"pets\.json: MODEL.KEYPOINT_ON.*expected one list"):
        register_datasets(with_points(coco, None, make_cfg))
    register_datasets(with_points(coco, None, make_cfg, "INPUT.RANDOM_FLIP", "none"))
    assert list(create_keypoint_hflip_indices(["pets"])) == [0, 1, 2, 3, 4]


def test_number_of_names(make_cfg, coco):
    with pytest.raises(DatasetError, match=r"pets\.json: 4 key points are named, .*POINTS is 5"):
        register_datasets(with_points(coco, NAMES[:4], make_cfg))
