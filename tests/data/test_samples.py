"""Errors of samples name the file, in whatever process they arise."""

from __future__ import annotations

import re

import pytest

from detnas_d2.data import (
    build_calibration_batches,
    build_test_loader,
    build_train_loader,
    cached_loaders,
    register_datasets,
)
from detnas_d2.data.loaders.samples import SampleError


@pytest.fixture
def broken_cfg(make_cfg, coco, request):
    """An image goes bad after the check."""
    cfg = make_cfg(coco.declaration, train=["pets"], test=["pets"])
    register_datasets(cfg)
    path = coco.root / "pets" / "3.png"
    path.write_bytes(path.read_bytes()[:-300])
    cfg.DATALOADER.NUM_WORKERS = request.param
    return cfg


def loaders(cfg, folder):
    test = build_test_loader(cfg, "pets")
    calibration = build_calibration_batches(cfg, "pets", 8, 2, 0)
    return {
        "train": lambda: [
            batch for batch, _ in zip(build_train_loader(cfg, start_iter=0), "123", strict=False)
        ],
        "test": lambda: list(test),
        "calibration": lambda: list(calibration),
        "cache": lambda: cached_loaders(test, calibration, folder=str(folder), gib=1),
    }


@pytest.mark.parametrize("broken_cfg", [0, 1], indirect=True)
@pytest.mark.parametrize("kind", ["train", "test", "calibration", "cache"])
def test_a_bad_image_is_named(broken_cfg, tmp_path, kind):
    read = loaders(broken_cfg, tmp_path)[kind]
    with pytest.raises(SampleError) as caught:
        read()
    line = (
        rf"{re.escape(str(tmp_path))}/pets/3\.png: OSError: image file is truncated.*DECODE_CHECK.*"
    )
    assert re.fullmatch(line, str(caught.value))


def test_other_errors_of_a_mapper_are_not_about_the_file():
    from detnas_d2.data.loaders.samples import map_sample

    def mapper(sample):
        raise KeyError("label")

    with pytest.raises(SampleError, match=r"^image id 7: KeyError: 'label'$"):
        map_sample(mapper, {"image_id": 7})
