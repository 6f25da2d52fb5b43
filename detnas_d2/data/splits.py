"""Search splits: two disjoint, seeded halves of a training set.

Scores that choose an architecture come from ``<name>@search_val``, the supernet learns from
``<name>@search_train`` (DetNAS, section 4.1), so that the test set stays untouched. ``<name>`` may
be a union, ``a+b``: one choice from the images of several data sets together.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from detectron2.data import MetadataCatalog

from detnas_d2.data.catalog import install
from detnas_d2.data.coco_file import read_coco
from detnas_d2.data.derived import derived_folder, source_state
from detnas_d2.data.image_folder import list_files, write_listing
from detnas_d2.data.report import DatasetError
from detnas_d2.data.sources import (
    CocoSource,
    FolderSource,
    Source,
    VocSource,
    source_of_metadata,
)
from detnas_d2.data.union import parts_of
from detnas_d2.data.voc import load_voc, write_view
from detnas_d2.files import write_json

logger = logging.getLogger(__name__)

SEARCH_TRAIN, SEARCH_VAL = HALVES = ("search_train", "search_val")

_VERSION = 1


@dataclass(frozen=True)
class SplitSettings:
    """``size`` images go to search_val, or the share ``fraction`` where that is not 0."""

    size: int = 5000
    fraction: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.fraction < 1:
            raise DatasetError(
                f"DATASETS.SEARCH_SPLIT.FRACTION must be in [0, 1), got {self.fraction}"
            )
        if not self.fraction and self.size < 1:
            raise DatasetError(f"DATASETS.SEARCH_SPLIT.SIZE must be positive, got {self.size}")

    def val_size(self, source: str, num_images: int) -> int:
        """Images in search_val of a source of ``num_images``."""
        size = max(1, round(self.fraction * num_images)) if self.fraction else self.size
        if size >= num_images:
            raise DatasetError(
                f"DATASETS.SEARCH_SPLIT asks for {size} images of '{source}', which has "
                f"{num_images}; nothing would be left to train on"
            )
        return size


def parent_of(name: str) -> str:
    """The data set, or the union "a+b", that a search split is carved from; other names stay.

    Raises:
        DatasetError: what follows "@" is not the name of a half.
    """
    parent, at, half = name.rpartition("@")
    if not at:
        return name
    if half not in HALVES or not parent:
        raise DatasetError(
            f"'{name}': a search split is written <name>@{HALVES[0]} or <name>@{HALVES[1]}"
        )
    return parent


def overlap(one: str, other: str) -> bool:
    """Whether two data sets share images, as far as their names tell.

    Halves of one data set or union do not; halves of different splits of the same images may.
    """
    parents = parent_of(one), parent_of(other)
    if parents[0] == parents[1]:
        return one == other or one in parents or other in parents
    return not set(parts_of(parents[0])).isdisjoint(parts_of(parents[1]))


def choose(keys: Iterable[str], size: int, seed: int) -> set[str]:
    """``size`` of the keys, in the order of SHA-256 of seed and key.

    No library's generator is involved, and the order of the keys does not matter: the choice is
    the same on every machine and version, and a larger one contains a smaller one.
    """
    return set(
        sorted(keys, key=lambda key: hashlib.sha256(f"{seed}:{key}".encode()).digest())[:size]
    )


def register_search_splits(parent: str, settings: SplitSettings, cache_dir: str) -> None:
    """Registers both halves of a registered data set, in its own format.

    Their files lie in a folder below ``cache_dir`` named by the source's files and the settings;
    they are reused as long as those stay the same. All processes must call this.
    """
    source = source_of_metadata(parent)
    if source is None:
        kind = MetadataCatalog.get(parent).get("evaluator_type")
        raise DatasetError(
            f"'{parent}' cannot be split: its format {kind!r} is none of COCO's, PASCAL VOC's "
            "or an image folder"
        )
    splitters = {CocoSource: _CocoSplitter, VocSource: _VocSplitter, FolderSource: _Splitter}
    splitter = splitters[type(source)](parent, source, settings)
    key = [_VERSION, parent, *source_state(source), vars(settings)]
    folder = derived_folder(cache_dir, "search_splits", parent, key, splitter.write)
    extra = MetadataCatalog.get(parent).as_dict()
    extra.pop("name")
    for half in HALVES:
        install(f"{parent}@{half}", _half_source(source, folder, half), extra=extra)


def _half_source(source: Source, folder: str, half: str) -> Source:
    path = os.path.join(folder, f"{half}.json")
    if isinstance(source, CocoSource):
        return replace(source, annotations=path)
    if isinstance(source, FolderSource):
        return replace(source, listing=path)
    return replace(source, root=os.path.join(folder, "voc"), split=half)


class _Splitter:
    """Splits an image folder; the base of the other formats."""

    def __init__(self, parent: str, source: Source, settings: SplitSettings) -> None:
        self.parent = parent
        self.source = source
        self.settings = settings

    def write(self, folder: str) -> None:
        files = list_files(self.source)
        classes = tuple(MetadataCatalog.get(self.parent).thing_classes)
        for half, chosen in self.halves([path for path, _ in files]).items():
            part = [item for item in files if item[0] in chosen]
            path = os.path.join(folder, f"{half}.json")
            write_listing(path, classes, part, self.info(half, [p for p, _ in files], len(part)))

    def halves(self, keys: list[str]) -> dict[str, set[str]]:
        """Image keys of each half."""
        size = self.settings.val_size(self.parent, len(keys))
        val = choose(keys, size, self.settings.seed)
        logger.info(
            "Splitting '%s': %d images for search, %d for training",
            self.parent,
            size,
            len(keys) - size,
        )
        return dict(zip(HALVES, (set(keys) - val, val), strict=True))

    def info(self, half: str, keys: list[str], size: int) -> dict[str, Any]:
        """What a person needs to know about a half, or to make it again."""
        listed = "\n".join(sorted(keys)).encode()
        return {
            "description": f"{half} of {self.parent}",
            "source": self.parent,
            "half": half,
            "num_images": size,
            "seed": self.settings.seed,
            "source_num_images": len(keys),
            "source_sha256": hashlib.sha256(listed).hexdigest(),
        }


class _CocoSplitter(_Splitter):
    def write(self, folder: str) -> None:
        data = read_coco(self.source.annotations)
        self.write_halves(folder, data, self.halves([str(image["id"]) for image in data["images"]]))

    def write_halves(self, folder: str, data: dict[str, Any], halves: dict[str, set[str]]) -> None:
        """Writes COCO JSON files; an image's key is its id as text."""
        keys = [str(image["id"]) for image in data["images"]]
        for half, chosen in halves.items():
            part = {key: value for key, value in data.items() if key != "info"}
            part["info"] = self.info(half, keys, len(chosen))
            part["images"] = [i for i in data["images"] if str(i["id"]) in chosen]
            part["annotations"] = [a for a in data["annotations"] if str(a["image_id"]) in chosen]
            write_json(os.path.join(folder, f"{half}.json"), part)


class _VocSplitter(_CocoSplitter):
    """A VOC folder of links for Detectron2's evaluation, and COCO JSON to look at."""

    def write(self, folder: str) -> None:
        dicts = load_voc(self.source)
        halves = self.halves([d["image_id"] for d in dicts])
        self.write_halves(folder, _voc_as_coco(dicts, self.source.classes), halves)
        self._warn_of_absent_classes([d for d in dicts if d["image_id"] in halves[SEARCH_VAL]])
        splits = {
            half: [d["image_id"] for d in dicts if d["image_id"] in chosen]
            for half, chosen in halves.items()
        }
        annotations = os.path.join(self.source.root, "Annotations")
        entries = [
            (d["image_id"], d["file_name"], os.path.join(annotations, f"{d['image_id']}.xml"))
            for d in dicts
        ]
        write_view(os.path.join(folder, "voc"), splits, entries)

    def _warn_of_absent_classes(self, dicts: Sequence[dict[str, Any]]) -> None:
        present = {item["category_id"] for record in dicts for item in record["annotations"]}
        absent = [name for i, name in enumerate(self.source.classes) if i not in present]
        if absent:
            logger.warning(
                "'%s@%s' has no object of %s: Detectron2's VOC evaluation gives nan for them and "
                "for the mean; choose a larger DATASETS.SEARCH_SPLIT",
                self.parent,
                SEARCH_VAL,
                absent,
            )


def _voc_as_coco(dicts: Sequence[dict[str, Any]], classes: Sequence[str]) -> dict[str, Any]:
    images, annotations = [], []
    for record in dicts:
        images.append(
            {
                "id": record["image_id"],
                "file_name": os.path.basename(record["file_name"]),
                "width": record["width"],
                "height": record["height"],
            }
        )
        for item in record["annotations"]:
            x0, y0, x1, y1 = item["bbox"]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": record["image_id"],
                    "category_id": item["category_id"] + 1,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0),
                    "iscrowd": 0,
                }
            )
    categories = [{"id": i, "name": name} for i, name in enumerate(classes, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}
