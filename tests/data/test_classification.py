"""Classification input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.data.detection_utils import read_image
from PIL import Image

from detnas_d2.data import ClassificationMapper
from detnas_d2.data.loaders.classification import read_rgb, rows_of_one_tensor


@pytest.fixture
def cfg(make_cfg):
    cfg = make_cfg()
    cfg.INPUT.CLASSIFICATION.CROP_SIZE = 16
    cfg.INPUT.CLASSIFICATION.RESIZE_SIZE = 20
    return cfg


@pytest.fixture
def blue(tmp_path):
    """60 x 20: columns 0-19 black, 20-39 blue, 40-59 white."""
    pixels = np.zeros((20, 60, 3), dtype=np.uint8)
    pixels[:, 20:40, 2] = 255
    pixels[:, 40:] = 255
    Image.fromarray(pixels).save(tmp_path / "blue.png")
    return {"file_name": str(tmp_path / "blue.png"), "label": 3, "image_id": "blue"}


def test_evaluation_takes_the_center(cfg, blue):
    result = ClassificationMapper(cfg, False)(blue)
    assert result["label"] == 3
    assert result["image"].dtype == torch.uint8
    assert result["image"].shape == (3, 16, 16)
    # The shorter side is 20 already: columns 22 to 37, blue first in BGR.
    assert result["image"].float().mean(dim=(1, 2)).tolist() == [255, 0, 0]
    cfg.INPUT.FORMAT = "RGB"
    image = ClassificationMapper(cfg, False)(blue)["image"]
    assert image.float().mean(dim=(1, 2)).tolist() == [0, 0, 255]


def test_image_in_memory(cfg, blue):
    with Image.open(blue["file_name"]) as image:
        bgr = np.asarray(image)[..., ::-1].copy()
    record = {"image": bgr, "label": 3}
    mapper = ClassificationMapper(cfg, False)
    assert torch.equal(mapper(record)["image"], mapper(blue)["image"])
    assert record["image"] is bgr


def test_training_is_random_and_seeded_by_torch(cfg, blue):
    mapper = ClassificationMapper(cfg, True)
    torch.manual_seed(1)
    first, second = mapper(blue)["image"], mapper(blue)["image"]
    assert first.shape == (3, 16, 16)
    assert not torch.equal(first, second)
    torch.manual_seed(1)
    assert torch.equal(mapper(blue)["image"], first)


def test_each_augmentation_can_be_turned_off(cfg, blue):
    cfg.INPUT.CLASSIFICATION.COLOR_JITTER = 0.0
    cfg.INPUT.CLASSIFICATION.MIN_SCALE = 1.0
    mapper = ClassificationMapper(cfg, True)
    # No crop of a 60 x 20 image has the whole area and a ratio in [3/4, 4/3]: the middle is taken.
    flipped = set()
    for seed in range(8):
        torch.manual_seed(seed)
        image = mapper(blue)["image"]
        assert image[1].float().mean() < 60
        flipped.add(bool(image[1, :, 0].float().mean() > image[1, :, -1].float().mean()))
    assert flipped == {True, False}
    cfg.INPUT.CLASSIFICATION.HFLIP = False
    mapper = ClassificationMapper(cfg, True)
    torch.manual_seed(0)
    first = mapper(blue)["image"]
    assert all(torch.equal(mapper(blue)["image"], first) for _ in range(5))


def test_sizes_must_fit(cfg):
    cfg.INPUT.CLASSIFICATION.RESIZE_SIZE = 10
    with pytest.raises(ValueError, match=r"RESIZE_SIZE \(10\).*CROP_SIZE \(16\)"):
        ClassificationMapper(cfg, False)


def test_defaults_are_those_of_the_released_code(make_cfg):
    settings = make_cfg().INPUT.CLASSIFICATION
    assert (settings.CROP_SIZE, settings.RESIZE_SIZE, settings.COLOR_JITTER) == (224, 256, 0.4)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK", "turned"])
def test_pixels_are_those_that_detectron2_reads(tmp_path, mode):
    pixels = np.random.RandomState(0).randint(0, 256, (5, 7, 3), dtype=np.uint8)
    exif = Image.Exif()
    if mode == "turned":
        exif[0x0112] = 6
    image = Image.fromarray(pixels).convert("RGB" if mode == "turned" else mode)
    file = str(tmp_path / ("image.png" if mode in ("P", "RGBA") else "image.jpg"))
    image.save(file, exif=exif)
    expected = read_image(file, format="RGB")
    assert np.array_equal(np.asarray(read_rgb(file)), expected)
    assert expected.shape == ((7, 5, 3) if mode == "turned" else (5, 7, 3))


def test_a_batch_is_one_tensor(cfg, blue):
    mapper = ClassificationMapper(cfg, True)
    samples = [mapper(blue) for _ in range(3)]
    batch = rows_of_one_tensor(samples)
    for row, sample in zip(batch, samples, strict=True):
        assert torch.equal(row["image"], sample["image"])
        assert {**row, "image": None} == {**sample, "image": None}
    starts = [row["image"].storage_offset() for row in batch]
    assert starts == [0, 768, 1536]
    assert len({row["image"].untyped_storage().data_ptr() for row in batch}) == 1
