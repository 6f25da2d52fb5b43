"""The built-in demo's data."""

from __future__ import annotations

import os

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from numpy.random import RandomState
from PIL import Image

from detnas_d2.data import DatasetError, build_train_loader, register_datasets
from detnas_d2.data.datasets.digits import draw_scene, load_digits

SMALL = {
    "DATASETS__DIGITS__NUM_TRAIN": 12,
    "DATASETS__DIGITS__NUM_VAL": 5,
    "DATASETS__DIGITS__NUM_TEST": 4,
    "DATASETS__DIGITS__SCENE_SIZE": 96,
    "DATASETS__DIGITS__PATCH_SIZE": 24,
    "DATASETS__DIGITS__PATCHES_PER_DIGIT": 1,
}


def test_parts_share_no_digit():
    parts = {name: load_digits(name) for name in ("train", "val", "test")}
    assert [len(p.labels) for p in parts.values()] == [1197, 300, 300]
    for part in parts.values():
        assert set(part.labels) == set(range(10))
    # scikit-learn's digits hold no exact copies, so equal images would be shared ones.
    rows = [{image.tobytes() for image in part.images} for part in parts.values()]
    assert not (rows[0] & rows[1] or rows[0] & rows[2] or rows[1] & rows[2])


def test_scenes_are_reproducible_and_labelled_tightly():
    digits = load_digits("train")
    first, objects = draw_scene(digits, 128, RandomState(5))
    again, same = draw_scene(digits, 128, RandomState(5))
    assert np.array_equal(first, again)
    assert objects == same
    sides = []
    for seed in range(20):
        image, objects = draw_scene(digits, 128, RandomState(seed))
        assert image.shape == (128, 128, 3)
        assert image.dtype == np.uint8
        assert 4 <= len(objects) <= 11
        for (x, y, w, h), label in objects:
            assert x >= 0 and y >= 0 and x + w <= 128 and y + h <= 128
            assert 0 <= label < 10
            sides.append(max(w, h))
    assert min(sides) < 20 and max(sides) > 38  # different scales


def test_digits_hardly_overlap():
    digits = load_digits("train")
    for seed in range(20):
        _, objects = draw_scene(digits, 128, RandomState(seed))
        for i, ((ax, ay, aw, ah), _) in enumerate(objects):
            for (bx, by, bw, bh), _ in objects[:i]:
                across = max(0, min(ax + aw, bx + bw) - max(ax, bx))
                down = max(0, min(ay + ah, by + bh) - max(ay, by))
                assert across * down <= 0.15 * min(aw * ah, bw * bh)


def test_scenes_as_a_data_set(make_cfg, perfect_results):
    names = ["digits_scenes_train@search_train", "digits_scenes_train@search_val"]
    cfg = make_cfg(train=names[:1], test=["digits_scenes_val", "digits_scenes_test"], **SMALL)
    register_datasets(cfg)
    sizes = [len(DatasetCatalog.get(n)) for n in (*names, *cfg.DATASETS.TEST)]
    assert sizes == [9, 3, 5, 4]
    meta = MetadataCatalog.get("digits_scenes_test")
    assert meta.thing_classes == list("0123456789")
    assert len(meta.thing_dataset_id_to_contiguous_id) == 10
    record = DatasetCatalog.get("digits_scenes_test")[0]
    with Image.open(record["file_name"]) as image:
        assert image.size == (96, 96)
    evaluator = COCOEvaluator(names[1], ("bbox",), False)
    assert perfect_results(names[1], evaluator)["bbox"]["AP"] == pytest.approx(100)
    batch = next(iter(build_train_loader(cfg, start_iter=0)))
    assert len(batch[0]["instances"]) >= 1


def test_scenes_are_drawn_once(make_cfg):
    cfg = make_cfg(test=["digits_scenes_test"], **SMALL)
    register_datasets(cfg)
    path = MetadataCatalog.get("digits_scenes_test").json_file
    time = os.stat(path).st_mtime_ns
    register_datasets(cfg)
    assert os.stat(path).st_mtime_ns == time
    cfg.DATASETS.DIGITS.NUM_TEST = 5
    register_datasets(cfg)
    assert len(DatasetCatalog.get("digits_scenes_test")) == 5


def test_single_digits(make_cfg):
    cfg = make_cfg(train=["digits_train"], test=["digits_test"], **SMALL)
    cfg.INPUT.CLASSIFICATION.CROP_SIZE = 16
    cfg.INPUT.CLASSIFICATION.RESIZE_SIZE = 20
    register_datasets(cfg)
    train, test = DatasetCatalog.get("digits_train"), DatasetCatalog.get("digits_test")
    assert (len(train), len(test)) == (1197, 300)
    assert train[0]["image"].shape == (24, 24, 3)
    assert [d["label"] for d in test] == load_digits("test").labels.tolist()
    register_datasets(make_cfg(test=["digits_val"], **SMALL))
    val = DatasetCatalog.get("digits_val")
    assert [d["label"] for d in val] == load_digits("val").labels.tolist()
    batch = next(iter(build_train_loader(cfg, start_iter=0)))
    assert batch[0]["image"].shape == (3, 16, 16)
    register_datasets(cfg)
    assert np.array_equal(DatasetCatalog.get("digits_train")[7]["image"], train[7]["image"])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("SCENE_SIZE", 20, "SCENE_SIZE must be at least 64"),
        ("PATCH_SIZE", 8, "PATCH_SIZE 16"),
        ("NUM_TRAIN", 0, "must be positive"),
    ],
)
def test_wrong_settings(make_cfg, key, value, message):
    cfg = make_cfg(train=["digits_scenes_train"])
    cfg.DATASETS.DIGITS[key] = value
    with pytest.raises(DatasetError, match=message):
        register_datasets(cfg)
