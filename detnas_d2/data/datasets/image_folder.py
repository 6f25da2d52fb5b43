"""Reads and checks classification folders: one sub-folder of images per class."""

from __future__ import annotations

import json
import os
from typing import Any

from detnas_d2.data.checks.image_check import IMAGE_EXTENSIONS, read_headers
from detnas_d2.data.checks.inspection import Inspection
from detnas_d2.data.checks.report import DatasetError, Problem
from detnas_d2.data.datasets.sources import FolderSource
from detnas_d2.utils.io import write_json

LISTING_FILE = "files.json"


def class_names(source: FolderSource) -> tuple[str, ...]:
    """The declared classes, or the sorted names of the sub-folders."""
    if source.classes is not None:
        return source.classes
    try:
        with os.scandir(source.root) as entries:
            names = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    except OSError as error:
        raise DatasetError(f"[missing_image] {source.root}: {error.strerror}") from error
    if not names:
        raise DatasetError(f"[empty_class] {source.root}: no folder of a class in it")
    return tuple(names)


def list_files(source: FolderSource) -> list[tuple[str, int]]:
    """(path relative to the root, label) of every image, sorted by class and path."""
    if source.listing is not None:
        with open(source.listing, encoding="utf-8") as file:
            return [(path, label) for path, label in json.load(file)["files"]]
    files = []
    for label, name in enumerate(class_names(source)):
        found = []
        for folder, _, names in os.walk(os.path.join(source.root, name)):
            relative = os.path.relpath(folder, source.root)
            found += [
                os.path.join(relative, item)
                for item in names
                if item.lower().endswith(IMAGE_EXTENSIONS)
            ]
        files += [(path, label) for path in sorted(found)]
    return files


def write_listing(
    path: str, classes: tuple[str, ...], files: list[tuple[str, int]], info: dict[str, Any]
) -> None:
    """Writes what ``FolderSource.listing`` reads."""
    write_json(path, {"info": info, "classes": classes, "files": files})


def load_image_folder(source: FolderSource) -> list[dict[str, Any]]:
    """Dicts with ``file_name``, ``label`` and ``image_id`` (the path below the root)."""
    return [
        {"file_name": os.path.join(source.root, path), "label": label, "image_id": path}
        for path, label in list_files(source)
    ]


def inspect_image_folder(
    source: FolderSource, decode: bool = False, tolerate: frozenset[str] = frozenset()
) -> Inspection:
    """Reads image headers; there are no boxes, whose problems ``tolerate`` could name."""
    classes = class_names(source)
    files = list_files(source)
    problems: list[Problem] = []
    if source.listing is None:
        found = class_names(FolderSource(source.root))
        for name in sorted(set(found) - set(classes)):
            message = f"the folder is not one of the classes {list(classes)}"
            problems.append(Problem("unknown_class", os.path.join(source.root, name), "", message))
        used = {label for _, label in files}
        for label, name in enumerate(classes):
            if label not in used:
                folder = os.path.join(source.root, name)
                problems.append(Problem("empty_class", folder, "", "no image of this class"))
    kept, contents = [], {}
    headers = read_headers([os.path.join(source.root, path) for path, _ in files], decode)
    for (path, label), header in zip(files, headers, strict=True):
        full = os.path.join(source.root, path)
        if header.kind:
            problems.append(Problem(header.kind, full, "", header.message))
            continue
        kept.append((path, label))
        contents[full] = header.content

    def write_clean(folder: str) -> FolderSource:
        info = {"source": source.root, "left_out": len(files) - len(kept)}
        write_listing(os.path.join(folder, LISTING_FILE), classes, kept, info)
        return FolderSource(os.path.abspath(source.root), classes, LISTING_FILE)

    folders = {os.path.dirname(path) for path, _ in files} | set(classes) | {"."}
    tracked = [(source.root, sorted(folders) + [path for path, _ in files])]
    return Inspection(
        classes,
        write_clean,
        problems,
        num_images=len(kept),
        num_annotations=len(kept),
        tracked=tracked,
        contents=contents,
    )
