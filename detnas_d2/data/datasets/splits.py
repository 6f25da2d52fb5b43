"""Search splits: two disjoint, seeded halves of a training set.

Scores that choose an architecture come from ``<name>@search_val``, the supernet learns from
``<name>@search_train`` (DetNAS, section 4.1), so that the test set stays untouched. ``<name>`` may
be a union, ``a+b``: one choice from the images of several datasets together.
"""

from __future__ import annotations

import hashlib
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Generic, TypeVar

from detectron2.data import DatasetCatalog, MetadataCatalog

from detnas_d2.data.checks.report import DatasetError
from detnas_d2.data.datasets.catalog import install, known_source
from detnas_d2.data.datasets.coco import read_coco
from detnas_d2.data.datasets.cuts import HALVES, SEARCH_VAL, Parts, Shares, SplitSettings
from detnas_d2.data.datasets.derived import derived_folder, source_state
from detnas_d2.data.datasets.image_folder import list_files, write_listing
from detnas_d2.data.datasets.sources import (
    CocoSource,
    FolderSource,
    RegisteredSource,
    VocSource,
)
from detnas_d2.data.datasets.union import parts_of
from detnas_d2.data.datasets.voc import load_voc
from detnas_d2.data.datasets.voc_view import write_view
from detnas_d2.utils.io import file_name_of, write_json

logger = logging.getLogger(__name__)

S = TypeVar("S", bound=RegisteredSource)

_VERSION = 2


def parent_of(name: str) -> str:
    """The dataset, or the union "a+b", that a search split is carved from; other names stay.

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
    """Whether two datasets share images, as far as their names tell.

    Halves of one dataset or union do not, nor do parts that SPLITS makes of one; halves of
    different splits of the same images may.
    """
    parents = parent_of(one), parent_of(other)
    if parents[0] == parents[1]:
        return one == other or one in parents or other in parents
    return any(
        a == b or whole_of(a) == b or a == whole_of(b)
        for a in parts_of(parents[0])
        for b in parts_of(parents[1])
    )


def whole_of(name: str) -> str:
    """The dataset that a part of it was made from, or the name itself."""
    return MetadataCatalog.get(name).get("part_of", name) if name in DatasetCatalog else name


def register_search_splits(parent: str, settings: SplitSettings, cache_dir: str) -> None:
    """Registers both halves of a registered dataset, in its own format.

    Their files lie in a folder below ``cache_dir`` named by the source's files and the settings;
    they are reused as long as those stay the same. All processes must call this.
    """
    register_parts(parent, settings, {half: f"{parent}@{half}" for half in HALVES}, cache_dir)


def register_shares(parent: str, shares: Shares, cache_dir: str) -> None:
    """Registers the named parts of a registered dataset, like :func:`register_search_splits`.

    Raises:
        DatasetError: a part has the name of another dataset, or no image.
    """
    for name, _ in shares.parts:
        if name in DatasetCatalog and whole_of(name) != parent:
            raise DatasetError(f"SPLITS of '{parent}': '{name}' is the name of another dataset")
    register_parts(parent, shares, {name: name for name, _ in shares.parts}, cache_dir)


def register_parts(parent: str, settings: Parts, names: dict[str, str], cache_dir: str) -> None:
    """``names``: part -> the name that it is registered under."""
    source = known_source(parent, "split")
    splitter: _Splitter[Any]
    if isinstance(source, CocoSource):
        splitter = _CocoSplitter(parent, source, settings)
    elif isinstance(source, VocSource):
        splitter = _VocSplitter(parent, source, settings)
    else:
        splitter = _FolderSplitter(parent, source, settings)
    key = [_VERSION, parent, *source_state(source), vars(settings)]
    folder = derived_folder(cache_dir, settings.folder, parent, key, splitter.write)
    extra = MetadataCatalog.get(parent).as_dict()
    extra.pop("name")
    if not isinstance(settings, SplitSettings):
        extra["part_of"] = parent
    for half, name in names.items():
        install(name, _half_source(source, folder, file_name_of(half)), extra=extra)


def _half_source(source: RegisteredSource, folder: str, half: str) -> RegisteredSource:
    path = os.path.join(folder, f"{half}.json")
    if isinstance(source, CocoSource):
        return replace(source, annotations=path)
    if isinstance(source, FolderSource):
        return replace(source, listing=path)
    return replace(source, root=os.path.join(folder, "voc"), split=half)


class _Splitter(ABC, Generic[S]):
    """The halves of a dataset; a subclass writes them."""

    def __init__(self, parent: str, source: S, settings: Parts) -> None:
        self.parent = parent
        self.source = source
        self.settings = settings

    @abstractmethod
    def write(self, folder: str) -> None:
        """Writes both halves into ``folder``."""

    def halves(self, keys: list[str]) -> dict[str, set[str]]:
        """Image keys of each half."""
        halves = self.settings.cut(self.parent, keys)
        sizes = ", ".join(f"{len(chosen)} in {half}" for half, chosen in halves.items())
        logger.info("Splitting '%s': images %s", self.parent, sizes)
        return {file_name_of(half): chosen for half, chosen in halves.items()}

    def info(self, half: str, keys: list[str], size: int) -> dict[str, Any]:
        """Record of a half for a person to read, or to make it again."""
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

    def write_halves(self, folder: str, data: dict[str, Any], halves: dict[str, set[str]]) -> None:
        """Writes COCO JSON files; an image's key is its id as text."""
        keys = [str(image["id"]) for image in data["images"]]
        for half, chosen in halves.items():
            part = {key: value for key, value in data.items() if key != "info"}
            part["info"] = self.info(half, keys, len(chosen))
            part["images"] = [i for i in data["images"] if str(i["id"]) in chosen]
            part["annotations"] = [a for a in data["annotations"] if str(a["image_id"]) in chosen]
            write_json(os.path.join(folder, f"{half}.json"), part)


class _FolderSplitter(_Splitter[FolderSource]):
    def write(self, folder: str) -> None:
        files = list_files(self.source)
        classes = tuple(MetadataCatalog.get(self.parent).thing_classes)
        for half, chosen in self.halves([path for path, _ in files]).items():
            part = [item for item in files if item[0] in chosen]
            path = os.path.join(folder, f"{half}.json")
            write_listing(path, classes, part, self.info(half, [p for p, _ in files], len(part)))


class _CocoSplitter(_Splitter[CocoSource]):
    def write(self, folder: str) -> None:
        data = read_coco(self.source.annotations)
        if isinstance(self.settings, SplitSettings):
            keys = {str(image["id"]): str(image["id"]) for image in data["images"]}
        else:  # ids may change as the data grow
            keys = {str(image["id"]): image["file_name"] for image in data["images"]}
        halves = {
            half: {image_id for image_id, key in keys.items() if key in chosen}
            for half, chosen in self.halves(list(keys.values())).items()
        }
        self.write_halves(folder, data, halves)


class _VocSplitter(_Splitter[VocSource]):
    """A VOC folder of links for Detectron2's evaluation, and COCO JSON to look at."""

    def write(self, folder: str) -> None:
        dicts = load_voc(self.source)
        halves = self.halves([d["image_id"] for d in dicts])
        self.write_halves(folder, _voc_as_coco(dicts, self.source.classes), halves)
        if SEARCH_VAL in halves:
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
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
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
