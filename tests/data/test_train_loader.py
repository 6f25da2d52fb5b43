"""Training batches."""

from __future__ import annotations

from itertools import islice

import pytest
import torch
from detectron2.utils import comm

from detnas_d2.data import build_train_loader, register_datasets


def take(loader, count):
    return list(islice(loader, count))


def assert_same(left, right):
    assert len(left) == len(right)
    for batch, other in zip(left, right, strict=True):
        assert [d["file_name"] for d in batch] == [d["file_name"] for d in other]
        for a, b in zip(batch, other, strict=True):
            assert torch.equal(a["image"], b["image"])
            if "instances" in a:
                assert torch.equal(a["instances"].gt_boxes.tensor, b["instances"].gt_boxes.tensor)


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_and_resuming_change_nothing(cfg, workers):
    whole = take(build_train_loader(cfg, start_iter=0), 6)
    cfg.DATALOADER.NUM_WORKERS = workers
    assert_same(take(build_train_loader(cfg, start_iter=0), 6), whole)
    assert_same(take(build_train_loader(cfg, start_iter=4), 2), whole[4:])


def test_augmentation_varies_between_epochs(cfg):
    cfg.SOLVER.IMS_PER_BATCH = 1
    seen = {}
    for batch in take(build_train_loader(cfg, start_iter=0), 40):
        seen.setdefault(batch[0]["file_name"], []).append(batch[0]["image"])
    for images in seen.values():
        assert any(not torch.equal(images[0], image) for image in images[1:])


def test_batches(cfg):
    batches = take(build_train_loader(cfg, start_iter=0), 10)
    for batch in batches:
        assert len(batch) == 4
        assert len({d["image"].shape[1] < d["image"].shape[2] for d in batch}) == 1
    names = {d["file_name"].rsplit("/", 1)[-1] for batch in batches for d in batch}
    assert names == {f"{i}.png" for i in range(1, 8)}  # image 8 has no object
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    batches = take(build_train_loader(cfg, start_iter=0), 10)
    assert any(d["file_name"].endswith("/8.png") for batch in batches for d in batch)


def test_building_and_iterating_leaves_the_global_generator_alone(cfg):
    torch.manual_seed(0)
    expected = torch.rand(())
    torch.manual_seed(0)
    take(build_train_loader(cfg, start_iter=0), 2)
    assert torch.equal(torch.rand(()), expected)


def test_negative_seed_counts_as_zero(cfg):
    cfg.SEED = -1
    first = take(build_train_loader(cfg, start_iter=0), 2)
    cfg.SEED = 0
    assert_same(take(build_train_loader(cfg, start_iter=0), 2), first)


def test_other_names(cfg):
    loader = build_train_loader(cfg, start_iter=0, dataset_names=["pets", "pets"])
    assert len(loader.dataset) == 14


def test_classification(make_cfg, toys):
    cfg = make_cfg(toys.declaration, train=["toys"])
    cfg.INPUT.CLASSIFICATION.CROP_SIZE = 16
    cfg.INPUT.CLASSIFICATION.RESIZE_SIZE = 20
    register_datasets(cfg)
    whole = take(build_train_loader(cfg, start_iter=0), 4)
    assert whole[0][0]["image"].shape == (3, 16, 16)
    assert sorted(d["label"] for batch in whole[:2] for d in batch) == [0] * 4 + [1] * 4
    cfg.DATALOADER.NUM_WORKERS = 2
    assert_same(take(build_train_loader(cfg, start_iter=2), 2), whole[2:])


def test_images_are_shared_out_evenly(cfg, monkeypatch):
    monkeypatch.setattr(comm, "get_world_size", lambda: 3)
    with pytest.raises(ValueError, match="IMS_PER_BATCH 4: .* multiple of .* processes, 3"):
        build_train_loader(cfg, start_iter=0)
    cfg.SOLVER.IMS_PER_BATCH = 0
    with pytest.raises(ValueError, match="IMS_PER_BATCH 0: expected a positive"):
        build_train_loader(cfg, start_iter=0)


def test_refusals(cfg, toys):
    cfg.DATASETS.REGISTER = [*cfg.DATASETS.REGISTER, toys.declaration]
    register_datasets(cfg, ["toys"])
    with pytest.raises(ValueError, match="cannot be mixed"):
        build_train_loader(cfg, start_iter=0, dataset_names=["pets", "toys"])
    with pytest.raises(ValueError, match="DATASETS.TRAIN"):
        build_train_loader(cfg, start_iter=0, dataset_names=[])
    cfg.DATALOADER.SAMPLER_TRAIN = "RepeatFactorTrainingSampler"
    with pytest.raises(ValueError, match="SAMPLER_TRAIN.*RepeatFactor"):
        build_train_loader(cfg, start_iter=0)
