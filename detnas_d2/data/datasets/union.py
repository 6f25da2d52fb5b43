"""Datasets joined to one under the name "a+b", e.g. to carve one search split from all of them.

DetNAS (section 4.1) scores candidates on 5,000 random images of VOC's trainval of 2007 and 2012
together: one choice from the union, not one from each.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from detnas_d2.data.checks.report import DatasetError
from detnas_d2.data.datasets.catalog import install, known_source
from detnas_d2.data.datasets.coco import category_names, read_file
from detnas_d2.data.datasets.derived import derived_folder, source_state
from detnas_d2.data.datasets.image_folder import (
    LISTING_FILE,
    class_names,
    list_files,
    write_listing,
)
from detnas_d2.data.datasets.sources import (
    CocoSource,
    FolderSource,
    RegisteredSource,
    VocSource,
    source_to_json,
)
from detnas_d2.data.datasets.voc import load_voc
from detnas_d2.data.datasets.voc_view import write_view
from detnas_d2.utils.io import write_json

JOINT = "+"
_VERSION = 1
_ANNOTATIONS = "annotations.json"
_VOC_SPLIT = "union"


def parts_of(name: str) -> tuple[str, ...]:
    """The datasets that a name without a search split's half stands for."""
    if name in DatasetCatalog and not MetadataCatalog.get(name).get("union_of"):
        return (name,)  # also one that was registered by hand under such a name
    return tuple(name.split(JOINT))


def register_union(name: str, cache_dir: str) -> None:
    """Registers the union of registered datasets of one format, in that format.

    Classes are matched by name and take the first dataset's order, as does VOC's year. Image ids
    stay as they are where no two datasets share one. All processes must call this.

    Raises:
        DatasetError: formats or class names differ, or an image file is in two datasets (it could
            be trained on in one half of a split and scored on in the other).
    """
    parts = parts_of(name)
    sources = {part: known_source(part, f"joined to '{name}'") for part in parts}
    if len(sources) < len(parts):
        raise DatasetError(f"'{name}' names a dataset twice")
    kinds = {part: source_to_json(source)["format"] for part, source in sources.items()}
    if len(set(kinds.values())) > 1:
        raise DatasetError(f"'{name}' joins datasets of different formats: {kinds}")
    join = _JOINS[type(sources[parts[0]])]
    key = [_VERSION, [[part, source_state(source)] for part, source in sources.items()]]
    folder = derived_folder(
        cache_dir, "unions", name, key, lambda place: join(place, sources, name)
    )
    source = _joined_source(folder, sources)
    extra = {**MetadataCatalog.get(parts[0]).as_dict(), "union_of": list(parts)}
    classes = tuple(extra["thing_classes"]) if extra.get("thing_classes") else None
    for own in ("name", "thing_classes", "thing_dataset_id_to_contiguous_id"):
        extra.pop(own, None)
    if isinstance(source, CocoSource):
        classes = tuple(category_names(read_file(source.annotations)).values())
        extra["thing_dataset_id_to_contiguous_id"] = {i + 1: i for i in range(len(classes))}
    install(name, source, classes, extra)


def _joined_source(folder: str, sources: dict[str, RegisteredSource]) -> RegisteredSource:
    first, *others = sources.values()  # all of one format
    if isinstance(first, VocSource):
        return replace(first, root=folder, split=_VOC_SPLIT)
    if isinstance(first, CocoSource):
        images = [first.images, *(s.images for s in others if isinstance(s, CocoSource))]
        return CocoSource(os.path.join(folder, _ANNOTATIONS), _common(images))
    roots = [first.root, *(s.root for s in others if isinstance(s, FolderSource))]
    return FolderSource(_common(roots), class_names(first), os.path.join(folder, LISTING_FILE))


def _common(folders: Sequence[str]) -> str:
    return os.path.commonpath([os.path.abspath(folder) for folder in folders])


def _check_classes(name: str, lists: Mapping[str, Sequence[str]]) -> None:
    first, *others = lists
    for other in others:
        if sorted(lists[first]) != sorted(lists[other]):
            raise DatasetError(
                f"'{name}': the classes of '{first}' are {list(lists[first])}, those of '{other}' "
                f"{list(lists[other])}; a union needs the same names"
            )


def _check_files(name: str, files: dict[str, list[str]]) -> None:
    owners: dict[str, str] = {}
    for part, paths in files.items():
        for path in paths:
            real = os.path.realpath(path)
            if owners.setdefault(real, part) != part:
                raise DatasetError(
                    f"'{name}': {real} belongs to '{owners[real]}' and to '{part}'; the halves of "
                    "a split would share it"
                )


def _join_coco(folder: str, sources: dict[str, CocoSource], name: str) -> None:
    data = {part: read_file(source.annotations) for part, source in sources.items()}
    names = {part: category_names(content) for part, content in data.items()}
    _check_classes(name, {part: list(found.values()) for part, found in names.items()})
    paths = {
        part: [os.path.join(sources[part].images, i["file_name"]) for i in content.images]
        for part, content in data.items()
    }
    _check_files(name, paths)
    classes = list(next(iter(names.values())).values())
    numbers = {label: number for number, label in enumerate(classes, start=1)}
    root = _common([source.images for source in sources.values()])
    ids = Counter(image["id"] for content in data.values() for image in content.images)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for part, content in data.items():
        new_ids = {}
        for image, path in zip(content.images, paths[part], strict=True):
            number = image["id"] if max(ids.values()) == 1 else len(images) + 1
            new_ids[image["id"]] = number
            place = os.path.relpath(os.path.abspath(path), root)
            images.append({**image, "id": number, "file_name": place})
        for position, annotation in enumerate(content.annotations):
            if annotation["image_id"] not in new_ids:
                raise DatasetError(
                    f"[absent_image] {sources[part].annotations}, annotations[{position}]: no "
                    f"image has the id {annotation['image_id']!r}"
                )
            change = {
                "id": len(annotations) + 1,
                "image_id": new_ids[annotation["image_id"]],
                "category_id": numbers[names[part][annotation["category_id"]]],
            }
            annotations.append({**annotation, **change})
    joined: dict[str, Any] = {"info": {"description": name}, "images": images}
    joined["annotations"] = annotations
    joined["categories"] = [{"id": i, "name": label} for label, i in numbers.items()]
    write_json(os.path.join(folder, _ANNOTATIONS), joined)


def _join_voc(folder: str, sources: dict[str, VocSource], name: str) -> None:
    _check_classes(name, {part: source.classes for part, source in sources.items()})
    dicts = {part: load_voc(source) for part, source in sources.items()}
    _check_files(name, {p: [d["file_name"] for d in records] for p, records in dicts.items()})
    ids = Counter(record["image_id"] for records in dicts.values() for record in records)
    entries = []
    for position, (part, records) in enumerate(dicts.items(), start=1):
        for record in records:
            image_id = record["image_id"]
            xml = os.path.join(sources[part].root, "Annotations", f"{image_id}.xml")
            new_id = image_id if ids[image_id] == 1 else f"{image_id}.{position}"
            while new_id != image_id and new_id in ids:
                new_id += "_"
            entries.append((new_id, record["file_name"], xml))
    write_view(folder, {_VOC_SPLIT: [new_id for new_id, _, _ in entries]}, entries)


def _join_folders(folder: str, sources: dict[str, FolderSource], name: str) -> None:
    classes = {part: class_names(source) for part, source in sources.items()}
    _check_classes(name, classes)
    listed = {part: list_files(source) for part, source in sources.items()}
    paths = {
        part: [os.path.join(sources[part].root, path) for path, _ in items]
        for part, items in listed.items()
    }
    _check_files(name, paths)
    first = next(iter(classes.values()))
    root = _common([source.root for source in sources.values()])
    files = [
        (os.path.relpath(os.path.abspath(path), root), first.index(classes[part][label]))
        for part, items in listed.items()
        for path, (_, label) in zip(paths[part], items, strict=True)
    ]
    write_listing(os.path.join(folder, LISTING_FILE), first, files, {"description": name})


_JOINS: dict[type[RegisteredSource], Callable[..., None]] = {
    CocoSource: _join_coco,
    VocSource: _join_voc,
    FolderSource: _join_folders,
}
