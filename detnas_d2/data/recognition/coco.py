"""COCO: JSON files beside, above or below their images."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from detnas_d2.data.checks.report import DatasetError
from detnas_d2.data.datasets.coco import read_coco
from detnas_d2.data.datasets.sources import CocoSource
from detnas_d2.data.recognition.layout import (
    ROLES,
    TEST,
    TRAIN,
    VAL,
    Found,
    Layout,
    folder_role,
    image_folder,
    largest,
    role_of,
)
from detnas_d2.data.recognition.tree import Tree

EXPECTED = "COCO (.json with 'images', 'annotations' and 'categories')"
ROBOFLOW = "_annotations.coco.json"

# The first key of a file, whichever tool wrote it. Files of other kinds are not read to the end.
_HEAD = re.compile(
    r'\s*\{\s*"(info|licenses?|images|annotations|categories|type|videos|contributor)"\s*:'
)
_HEAD_SIZE = 1024
_APART = ({TRAIN, TEST}, {TRAIN, VAL}, {VAL, TEST})
# Beside "instances_*.json" in COCO's own folder.
_OTHER_TASKS = ("captions", "person_keypoints", "panoptic", "stuff", "image_info", "densepose")


@dataclass(frozen=True)
class _File:
    path: str
    images: str
    boxes: int


def find_coco(tree: Tree, reasons: list[str]) -> Layout | None:
    """``reasons`` gets a line for every file that nearly is one.

    Raises:
        DatasetError: the images of a part are gone, and others of the same names would be taken.
    """
    heads = [path for path in tree.annotation_files(".json") if _looks_like(tree.path(path))]
    folders = {os.path.dirname(p) for p in heads if os.path.basename(p).startswith("instances")}
    files: dict[str, list[_File]] = {}
    for path in heads:
        folder, name = os.path.split(path)
        if folder in folders and name.startswith(_OTHER_TASKS):
            continue
        found = _read(tree, path, reasons)
        if found is not None:
            files.setdefault(role_of(path), []).append(found)
    if not files:
        return None
    roles, notes = {}, []
    for role in ROLES:
        if role in files:
            path, note = largest([(f.path, f.boxes) for f in files[role]], "boxes", role)
            chosen = next(f for f in files[role] if f.path == path)
            source = CocoSource(tree.path(path), tree.path(chosen.images).rstrip(os.sep))
            roles[role] = Found(source, path)
            notes += [note] if note else []
    roboflow = all(found.place.endswith(ROBOFLOW) for found in roles.values())
    text = "COCO, as Roboflow exports it" if roboflow else "COCO"
    return Layout("coco", text, roles, notes)


def _looks_like(path: str) -> bool:
    with open(path, "rb") as file:
        head = file.read(_HEAD_SIZE)
    # UTF-16 and a byte order mark: json.loads tells them from the first bytes, so do zeros.
    text = head.replace(b"\0", b"").lstrip(b"\xef\xbb\xbf\xff\xfe").decode("utf-8", "replace")
    return _HEAD.match(text) is not None


def _read(tree: Tree, path: str, reasons: list[str]) -> _File | None:
    try:
        data = read_coco(tree.path(path))
    except DatasetError as error:
        reasons.append(str(error))
        return None
    if not data["annotations"]:
        reasons.append(f"{path}: COCO's layout, but 'annotations' is empty or absent")
        return None
    entries = [image for image in data["images"] if isinstance(image, dict)]
    names = [i["file_name"] for i in entries if isinstance(i.get("file_name"), str)]
    folder, hits, looked = image_folder(tree, names, path)
    if not hits:
        example = f"e.g. {names[0]!r}" if names else "it names none"
        reasons.append(
            f"{path}: COCO's layout, but none of {looked} of its images that were looked for is "
            f"below the folder ({example})"
        )
        return None
    if hits < looked and {folder_role(folder), role_of(path)} in _APART:
        raise DatasetError(
            f"{tree.path(path)}: of {looked} of its images that were looked for {hits} are there, "
            f"and those lie in {folder}, among images of another part that are called alike; put "
            "its own images beside it, or move it out of the folder"
        )
    return _File(path, folder, len(data["annotations"]))
