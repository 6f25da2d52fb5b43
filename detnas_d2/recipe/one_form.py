"""The datasets of a run in one form, so that its figures do not depend on the user's format."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.structures import BoxMode

from detnas_d2.config.tools import base_config
from detnas_d2.data import register_datasets
from detnas_d2.data.datasets.registration import CACHE_FOLDER
from detnas_d2.recipe.inputs import Data
from detnas_d2.recipe.places import FOLDER
from detnas_d2.utils.io import write_json

_DIGITS = 2
"""Of boxes, in pixels: shares of an image, as YOLO writes them, then give the edges back that they
were made of."""

_GIVEN = "-given"


def registered(data: Data, output: str) -> CfgNode:
    """Registers and checks the datasets; bad entries are dropped. Returns a config of them."""
    cfg = base_config()
    cfg.DATASETS.REGISTER = [dict(declaration) for declaration in data.declarations]
    cfg.DATASETS.INVALID = "drop"
    cfg.DATASETS.CACHE_DIR = os.path.join(output, CACHE_FOLDER)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (data.train,), (data.test,)
    register_datasets(cfg, [data.val] if data.val else [])
    return cfg


def file_of(output: str, name: str) -> str:
    """The COCO file of a dataset of a run."""
    return os.path.join(output, FOLDER, "data", f"{name}.json")


def in_one_form(data: Data, output: str, like: str = "") -> Data:
    """The same datasets as COCO files beside the run's configs, of boxes alone.

    Images are in the order of their names, boxes in that of their classes and edges, numbers are
    given anew; whatever format the data had, equal images and boxes become equal files. "source_id"
    keeps the name of an image in the user's format.

    Args:
        like: file of training images of another run, "" for none. The same classes get their order
            there, and images of the same names their numbers, by which those that score candidates
            are drawn.

    Raises:
        DatasetError: bad data, or nothing to learn from.
    """
    given = _renamed(data)
    with _untold():
        registered(given, output)
    named, numbers = _order_of(like) if os.path.isfile(like) else ((), {})
    classes = named if set(named) == set(data.classes) else tuple(data.classes)
    labels = [classes.index(name) for name in data.classes]
    declarations = []
    for name in filter(None, (data.train, data.val, data.test)):
        file = file_of(output, name)
        known = numbers if name == data.train else {}
        content, images = _coco(DatasetCatalog.get(name + _GIVEN), classes, labels, known)
        write_json(file, content)
        declaration = {"NAME": name, "FORMAT": "coco", "IMAGES": images, "ANNOTATIONS": file}
        declarations.append({**declaration, "CLASSES": list(classes)})
    return replace(data, declarations=declarations, classes=classes)


@contextlib.contextmanager
def _untold() -> Iterator[None]:
    """Within the block the check of data warns of nothing, as what it finds is told elsewhere."""
    logger = logging.getLogger("detnas_d2.data")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _order_of(file: str) -> tuple[tuple[str, ...], dict[str, list[int]]]:
    """Classes of a file that :func:`in_one_form` wrote, and names without extensions -> numbers of
    images.
    """
    with open(file, encoding="utf-8") as text:
        content = json.load(text)
    numbers: dict[str, list[int]] = {}
    for image in content["images"]:
        numbers.setdefault(os.path.splitext(image["file_name"])[0], []).append(image["id"])
    return tuple(category["name"] for category in content["categories"]), numbers


def _renamed(data: Data) -> Data:
    """The user's datasets under other names than those of the files that are made of them."""
    declarations = []
    for declaration in data.declarations:
        entry = {**declaration, "NAME": declaration["NAME"] + _GIVEN}
        if "SPLITS" in entry:
            entry["SPLITS"] = {name + _GIVEN: share for name, share in entry["SPLITS"].items()}
        declarations.append(entry)
    train, test = data.train + _GIVEN, data.test + _GIVEN
    return replace(
        data, declarations=declarations, train=train, test=test, val=data.val and data.val + _GIVEN
    )


def _coco(
    records: Sequence[Mapping[str, Any]],
    classes: Sequence[str],
    labels: Sequence[int],
    numbers: Mapping[str, list[int]],
) -> tuple[dict[str, Any], str]:
    """Contents of a COCO file, and the folder that its names start at.

    Args:
        labels: of ``classes``, by those of the records.
        numbers: of images, by their names without extensions. Others get higher ones.
    """
    # A view of the user's folder, if there is one, is below data_cache, which may be deleted.
    files = [os.path.realpath(record["file_name"]) for record in records]
    if len(set(files)) < len(files):  # the user has links to one image
        files = [os.path.abspath(record["file_name"]) for record in records]
    root = os.path.commonpath([os.path.dirname(file) for file in files])
    named = {os.path.relpath(file, root): r for file, r in zip(files, records, strict=True)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    stems = {os.path.splitext(name)[0] for name in named}
    there = {stem: list(known) for stem, known in numbers.items() if stem in stems}
    new = itertools.count(max(itertools.chain(*there.values()), default=0) + 1)
    for name in sorted(named, key=os.path.splitext):
        known = there.get(os.path.splitext(name)[0])
        number = known.pop(0) if known else next(new)
        record = named[name]
        size = {"width": record["width"], "height": record["height"]}
        source = {"source_id": record["image_id"]}
        images.append({"id": number, "file_name": name, **size, **source})
        for label, x, y, width, height, crowd in sorted(
            _values(annotation, labels) for annotation in record["annotations"]
        ):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": label + 1,
                    "bbox": [x, y, width, height],
                    "area": round(width * height, 2 * _DIGITS),
                    "iscrowd": crowd,
                }
            )
    categories = [{"id": i, "name": name} for i, name in enumerate(classes, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}, root


def _values(annotation: Mapping[str, Any], labels: Sequence[int]) -> tuple[Any, ...]:
    """Class, left, top, width, height, crowd."""
    box = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)
    # 0.0 is added against a -0.0.
    left, top, right, bottom = (round(float(edge), _DIGITS) + 0.0 for edge in box)
    size = round(right - left, _DIGITS), round(bottom - top, _DIGITS)
    return labels[annotation["category_id"]], left, top, *size, annotation.get("iscrowd", 0)
