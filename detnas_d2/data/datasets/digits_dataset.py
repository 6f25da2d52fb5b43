"""The demo's datasets: scenes of digits (detection) and single digits (classification)."""

from __future__ import annotations

import logging
import os
import zlib
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from numpy.random import RandomState
from PIL import Image

from detnas_d2.data.checks.report import DatasetError
from detnas_d2.data.datasets.catalog import install
from detnas_d2.data.datasets.digits import NUM_CLASSES, draw_patch, draw_scene, load_digits
from detnas_d2.data.datasets.sources import CocoSource
from detnas_d2.utils.comm import local_main_first
from detnas_d2.utils.io import digest, new_directory, write_json

logger = logging.getLogger(__name__)

_SCENES = {"digits_scenes_train": "train", "digits_scenes_val": "val", "digits_scenes_test": "test"}
_PATCHES = {"digits_train": "train", "digits_val": "val", "digits_test": "test"}
DIGITS_NAMES = (*_SCENES, *_PATCHES)

# Raise it when the drawing changes: old files are then left alone.
_VERSION = 2
_SMALLEST_SCENE, _SMALLEST_PATCH = 64, 16


@dataclass(frozen=True)
class DigitsSettings:
    """Sides in pixels, numbers of images; see DATASETS.DIGITS."""

    scene_size: int = 128
    num_train: int = 600
    num_val: int = 150
    num_test: int = 150
    patch_size: int = 40
    patches_per_digit: int = 4

    def __post_init__(self) -> None:
        if self.scene_size < _SMALLEST_SCENE or self.patch_size < _SMALLEST_PATCH:
            raise DatasetError(
                f"DATASETS.DIGITS: SCENE_SIZE must be at least {_SMALLEST_SCENE} and PATCH_SIZE "
                f"{_SMALLEST_PATCH} pixels, got {self.scene_size} and {self.patch_size}"
            )
        if min(self.num_train, self.num_val, self.num_test, self.patches_per_digit) < 1:
            raise DatasetError(
                "DATASETS.DIGITS: NUM_TRAIN, NUM_VAL, NUM_TEST and PATCHES_PER_DIGIT must be "
                "positive"
            )


def register_digits(name: str, settings: DigitsSettings, cache_dir: str) -> None:
    """Draws the images of one of DIGITS_NAMES where that is still to do, and registers it.

    All processes must call this.
    """
    key = digest([_VERSION, name, astuple(settings)])
    folder = os.path.abspath(os.path.join(cache_dir, "digits", f"{name}-v{_VERSION}-{key}"))
    write = _write_scenes if name in _SCENES else _write_patches
    local_main_first(lambda: _write_once(folder, name, settings, write))
    classes = tuple(str(label) for label in range(NUM_CLASSES))
    if name in _SCENES:
        source = CocoSource(
            os.path.join(folder, "annotations.json"), os.path.join(folder, "images"), classes
        )
        mapping = {label + 1: label for label in range(NUM_CLASSES)}
        install(name, source, extra={"thing_dataset_id_to_contiguous_id": mapping})
    else:
        _install_patches(name, folder, list(classes))


def _write_once(folder: str, name: str, settings: DigitsSettings, write: Any) -> None:
    if not os.path.isdir(folder):
        logger.info("Drawing the images of '%s' into %s", name, folder)
        with new_directory(folder) as temporary:
            write(temporary, name, settings)


def _write_scenes(folder: str, name: str, settings: DigitsSettings) -> None:
    part = _SCENES[name]
    digits = load_digits(part)
    random = RandomState(zlib.crc32(name.encode()))
    os.makedirs(os.path.join(folder, "images"))
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    counts = {"train": settings.num_train, "val": settings.num_val, "test": settings.num_test}
    for image_id in range(1, counts[part] + 1):
        pixels, objects = draw_scene(digits, settings.scene_size, random)
        file_name = f"{image_id:06d}.png"
        Image.fromarray(pixels).save(os.path.join(folder, "images", file_name), compress_level=1)
        height, width = pixels.shape[:2]
        images.append({"id": image_id, "file_name": file_name, "height": height, "width": width})
        for box, label in objects:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": label + 1,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                }
            )
    data = {
        "info": {"description": f"{name}: scenes of scikit-learn's digits", "version": _VERSION},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i + 1, "name": str(i)} for i in range(NUM_CLASSES)],
    }
    write_json(os.path.join(folder, "annotations.json"), data)


def _write_patches(folder: str, name: str, settings: DigitsSettings) -> None:
    part = _PATCHES[name]
    digits = load_digits(part)
    random = RandomState(zlib.crc32(name.encode()))
    repeats = settings.patches_per_digit if part == "train" else 1
    labels = np.repeat(digits.labels, repeats)
    images = [
        draw_patch(digit, settings.patch_size, random)
        for digit in np.repeat(digits.images, repeats, axis=0)
    ]
    np.save(os.path.join(folder, "images.npy"), np.stack(images), allow_pickle=False)
    np.save(os.path.join(folder, "labels.npy"), labels, allow_pickle=False)


def _install_patches(name: str, folder: str, classes: list[str]) -> None:
    def load() -> list[dict[str, Any]]:
        images = np.load(os.path.join(folder, "images.npy"), allow_pickle=False)
        labels = np.load(os.path.join(folder, "labels.npy"), allow_pickle=False)
        return [
            {
                "image": np.ascontiguousarray(image[..., ::-1]),  # RGB -> BGR
                "label": int(label),
                "image_id": index,
            }
            for index, (image, label) in enumerate(zip(images, labels, strict=True))
        ]

    if name in DatasetCatalog:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(thing_classes=classes, evaluator_type="image_classification")
