"""Loaders that read from the image cache load the same."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.structures import Instances

from detnas_d2.data import (
    build_calibration_batches,
    build_test_loader,
    cached_loaders,
    register_datasets,
)


def same(a: Any, b: Any) -> bool:
    """Deep equality, bit by bit."""
    if isinstance(a, Instances):
        return a.image_size == b.image_size and same(a.get_fields(), b.get_fields())
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.stride() == b.stride() and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if hasattr(a, "tensor"):
        return same(a.tensor, b.tensor)
    if hasattr(a, "polygons"):
        return same([[torch.tensor(p) for p in m] for m in a.polygons],
                    [[torch.tensor(p) for p in m] for m in b.polygons])  # fmt: skip
    return a == b


def loaders(cfg: CfgNode, test: str, train: str) -> tuple:
    return build_test_loader(cfg, test), build_calibration_batches(cfg, train, 5, 2, seed=1)


def no_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any image that is decoded from here on is an error."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("an image was decoded")

    monkeypatch.setattr("PIL.Image.open", refuse)


@pytest.fixture
def cfg(make_cfg, coco):
    for annotation in coco.data["annotations"]:
        x, y, w, h = annotation["bbox"]
        annotation["segmentation"] = [[x, y, x + w, y, x + w, y + h]]
    coco.data["annotations"][3]["iscrowd"] = 0
    coco.save()
    cfg = make_cfg(coco.declaration, train=["pets"], test=["pets"])
    register_datasets(cfg)
    return cfg


@pytest.mark.parametrize(("masks", "workers"), [("", 0), ("", 1), ("polygon", 0), ("bitmask", 0)])
def test_detection(
    cfg: CfgNode, tmp_path: Path, masks: str, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg.MODEL.MASK_ON, cfg.INPUT.MASK_FORMAT = bool(masks), masks or "polygon"
    cfg.DATALOADER.NUM_WORKERS = workers
    plain = loaders(cfg, "pets", "pets")
    expected = [list(part) for part in plain]
    cached = cached_loaders(*plain, folder=str(tmp_path / "out"), gib=1)
    no_decoding(monkeypatch)
    assert same([list(part) for part in cached], expected)
    record = expected[1][0][0]
    assert min(record["image"].shape[1:]) == 32
    assert record["instances"].has("gt_masks") == bool(masks)
    assert cached[1].batch_ids == plain[1].batch_ids
    again = cached_loaders(*loaders(cfg, "pets", "pets"), folder=str(tmp_path / "out"), gib=1)
    assert same([list(part) for part in again], expected)


def test_unknown_heights_and_no_resizing(cfg: CfgNode, tmp_path: Path, monkeypatch) -> None:
    cfg.INPUT.MIN_SIZE_TEST = 0
    plain = loaders(cfg, "pets", "pets")
    expected = [list(part) for part in plain]
    cached = cached_loaders(*plain, folder=str(tmp_path), gib=1)
    no_decoding(monkeypatch)
    found = [list(part) for part in cached]
    assert same(found, expected)
    mapper = cached[0].dataset.mapper
    sample = {k: v for k, v in plain[0].dataset.samples[0].items() if k not in ("height", "width")}
    assert (mapper(sample)["height"], mapper(sample)["width"]) == (30, 40)


def test_classification(make_cfg, toys, tmp_path: Path, monkeypatch) -> None:
    cfg = make_cfg(toys.declaration)
    cfg.INPUT.CLASSIFICATION.CROP_SIZE = 16
    cfg.INPUT.CLASSIFICATION.RESIZE_SIZE = 20
    register_datasets(cfg, ["toys"])
    plain = loaders(cfg, "toys", "toys")
    expected = [list(part) for part in plain]
    cached = cached_loaders(*plain, folder=str(tmp_path), gib=1)
    no_decoding(monkeypatch)
    assert same([list(part) for part in cached], expected)


def images_of(batches: Iterable[list[dict]]) -> list[torch.Tensor]:
    return [record["image"] for batch in batches for record in batch]


def test_beyond_the_limit_images_are_decoded(cfg: CfgNode, tmp_path: Path) -> None:
    plain = loaders(cfg, "pets", "pets")
    cached = cached_loaders(*plain, folder=str(tmp_path), gib=10000 / 2**30)
    assert len(cached[0].dataset.mapper._cache) == 2
    assert same(images_of(cached[0]), images_of(plain[0]))
    assert same(images_of(cached[1]), images_of(plain[1]))


def test_stale_and_damaged_caches(
    cfg: CfgNode, tmp_path: Path, write_image, touch, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "out" / "images.cache"

    def check(warning: str) -> None:
        caplog.clear()
        plain = loaders(cfg, "pets", "pets")
        cached = cached_loaders(*plain, folder=str(file.parent), gib=1)
        assert same([list(p) for p in cached], [list(p) for p in plain])
        assert warning in caplog.text and ("built again" in caplog.text) == bool(warning)

    check("")
    check("")
    content = bytearray(file.read_bytes())
    content[7] ^= 1
    file.write_bytes(content)
    touch(file)
    check("changed since it was written; it is built again")
    file.write_bytes(content[:-9])
    check("cut off or changed")
    cfg.INPUT.MIN_SIZE_TEST = 24
    check("other images, preprocessing")
    cfg.INPUT.FORMAT = "RGB"
    check("other images, preprocessing")
    write_image(tmp_path / "pets" / "3.png", 40, 30, seed=99)
    touch(tmp_path / "pets" / "3.png")
    check("other images, preprocessing")
    check("")


def test_damage_while_open_costs_the_decoding(cfg: CfgNode, tmp_path: Path, touch, caplog) -> None:
    plain = loaders(cfg, "pets", "pets")
    cached = cached_loaders(*plain, folder=str(tmp_path), gib=1)
    with open(tmp_path / "images.cache", "r+b") as file:
        file.write(b"\0" * 20)
    touch(tmp_path / "images.cache")
    assert same(list(cached[0]), list(plain[0]))
    assert caplog.text.count("was written; what cannot be read from it is decoded") == 1


def test_without_a_cache(cfg: CfgNode, tmp_path: Path, caplog) -> None:
    plain = loaders(cfg, "pets", "pets")
    assert cached_loaders(*plain, folder=str(tmp_path), gib=0) == plain
    with pytest.raises(ValueError, match="SEARCH.IMAGE_CACHE_GIB must not be negative, got -1"):
        cached_loaders(*plain, folder=str(tmp_path), gib=-1)
    (tmp_path / "file").touch()
    assert cached_loaders(*plain, folder=str(tmp_path / "file"), gib=1) == plain
    assert "No image cache" in caplog.text
    random = plain[1].with_dataset(plain[1].dataset.with_mapper(lambda sample: sample))
    caplog.clear()
    assert cached_loaders(plain[0], random, folder=str(tmp_path), gib=1)[1] is random
    assert "not only resized" in caplog.text
