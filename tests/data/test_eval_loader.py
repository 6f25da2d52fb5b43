"""Evaluation batches."""

from __future__ import annotations

import pytest

from detnas_d2.data import build_eval_loader, build_test_loader, register_datasets


def test_every_image_once_in_order(make_cfg, coco):
    cfg = make_cfg(coco.declaration, test=["pets"])
    register_datasets(cfg)
    batches = list(build_eval_loader(cfg, "pets", 3))
    assert [len(batch) for batch in batches] == [3, 3, 2]
    records = [record for batch in batches for record in batch]
    assert [r["image_id"] for r in records] == list(range(1, 9))
    assert all("instances" not in r and min(r["image"].shape[1:]) == 32 for r in records)
    with pytest.raises(ValueError, match="batch_size"):
        build_eval_loader(cfg, "pets", 0)


def test_classification(make_cfg, toys):
    cfg = make_cfg(toys.declaration, test=["toys"])
    cfg.INPUT.CLASSIFICATION.CROP_SIZE = 16
    cfg.INPUT.CLASSIFICATION.RESIZE_SIZE = 20
    register_datasets(cfg)
    labels = [r["label"] for batch in build_eval_loader(cfg, "toys", 5) for r in batch]
    assert labels == [0] * 4 + [1] * 4


def test_batch_size_of_the_config(make_cfg, coco, toys):
    cfg = make_cfg(coco.declaration, toys.declaration, test=["pets", "toys"])
    cfg.INPUT.CLASSIFICATION.CROP_SIZE = 16
    cfg.INPUT.CLASSIFICATION.RESIZE_SIZE = 20
    cfg.INPUT.CLASSIFICATION.TEST_BATCH_SIZE = 3
    register_datasets(cfg)
    assert [len(batch) for batch in build_test_loader(cfg, "pets")] == [1] * 8
    assert [len(batch) for batch in build_test_loader(cfg, "toys")] == [3, 3, 2]
    cfg.TEST.BATCH_SIZE = 5
    assert [len(batch) for batch in build_test_loader(cfg, "pets")] == [5, 3]
