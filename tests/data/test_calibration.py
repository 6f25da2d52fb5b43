"""Fixed batches for recalibration."""

from __future__ import annotations

import pytest
import torch

from detnas_d2.data import CalibrationBatches, build_calibration_batches, register_datasets


def test_batches_are_fixed(cfg):
    batches = build_calibration_batches(cfg, "pets", 5, 2, seed=1)
    first, again = list(batches), list(batches)
    cfg.DATALOADER.NUM_WORKERS = 2
    rebuilt = list(build_calibration_batches(cfg, "pets", 5, 2, seed=1))
    assert [len(batch) for batch in first] == [2, 2, 1]
    for other in (again, rebuilt):
        for batch, same in zip(first, other, strict=True):
            for a, b in zip(batch, same, strict=True):
                assert torch.equal(a["image"], b["image"])
                assert a["file_name"] == b["file_name"]
    names = [d["file_name"] for batch in first for d in batch]
    assert len(set(names)) == 5
    other = build_calibration_batches(cfg, "pets", 5, 2, seed=2)
    assert other.image_indices != batches.image_indices


def test_images_as_in_evaluation_with_targets(cfg):
    cfg.INPUT.CROP.ENABLED = True  # an augmentation of training alone
    for batch in build_calibration_batches(cfg, "pets", 7, 3, seed=1):
        for record in batch:
            assert min(record["image"].shape[1:]) == 32
            assert len(record["instances"]) >= 1
            assert record["instances"].image_size == tuple(record["image"].shape[1:])


def test_ranks_share_batches(cfg):
    whole = build_calibration_batches(cfg, "pets", 7, 2, seed=1)
    assert (len(whole.image_indices), whole.batch_ids) == (4, (0, 1, 2, 3))
    expected = [[d["file_name"] for d in batch] for batch in whole]
    found = {}
    for rank in range(3):
        part = CalibrationBatches(whole.dataset, whole._batches, 0, rank, 3)
        assert len(part) == len(part.batch_ids)
        for batch_id, batch in zip(part.batch_ids, part, strict=True):
            found[batch_id] = [d["file_name"] for d in batch]
    assert [found[i] for i in range(4)] == expected
    idle = CalibrationBatches(whole.dataset, whole._batches, 0, 5, 6)
    assert list(idle) == []


def test_small_data_sets_are_used_whole(cfg, caplog):
    batches = build_calibration_batches(cfg, "pets", 100, 4, seed=1)
    assert sum(len(batch) for batch in batches) == 7
    assert "asks for 100 images of 'pets'; all of its 7" in caplog.text
    with pytest.raises(ValueError, match="positive"):
        build_calibration_batches(cfg, "pets", 0, 4, seed=1)


def test_classification(make_cfg, toys):
    cfg = make_cfg(toys.declaration)
    cfg.INPUT.CLASSIFICATION.CROP_SIZE = 16
    cfg.INPUT.CLASSIFICATION.RESIZE_SIZE = 20
    register_datasets(cfg, ["toys"])
    batch = next(iter(build_calibration_batches(cfg, "toys", 8, 8, seed=1)))
    assert sorted(d["label"] for d in batch) == [0] * 4 + [1] * 4
    assert batch[0]["image"].shape == (3, 16, 16)
