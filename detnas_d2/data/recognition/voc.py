"""PASCAL VOC: XML files in VOC's folders, in other folders, or beside images."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from detnas_d2.data.datasets.sources import VocSource
from detnas_d2.data.recognition.layout import (
    ROLES,
    TEST,
    TRAIN,
    VAL,
    WHOLE,
    Found,
    Layout,
    folder_role,
    largest,
    sample,
)
from detnas_d2.data.recognition.tree import Tree

EXPECTED = "PASCAL VOC (.xml with <annotation>, in Annotations or beside images)"

_LISTS = os.path.join("ImageSets", "Main")
_HEAD = re.compile(rb"<(?:\w+:)?annotation[\s>]")
_PEEKED = 3  # files of a folder
# Lists of VOC's own, by role, the preferred one first.
_SPLITS = {TRAIN: ("trainval", "train"), VAL: ("val", "valid"), TEST: ("test",)}


def find_voc(tree: Tree, reasons: list[str]) -> Layout | None:
    """``reasons`` gets a line for every folder that nearly is one."""
    folders: dict[str, list[str]] = {}
    for path in tree.annotation_files(".xml"):
        folders.setdefault(os.path.dirname(path), []).append(path)
    folders = {f: paths for f, paths in folders.items() if _are_annotations(tree, paths)}
    if not folders:
        return None
    listed = [f for f in tree.folders if f"{os.sep}{f}".endswith(f"{os.sep}{_LISTS}")]
    roots = [f[: -len(_LISTS)].rstrip(os.sep) for f in listed]
    files = {root: _below(folders, os.path.join(root, "Annotations")) for root in roots}
    numbers = [(root or ".", len(paths)) for root, paths in files.items() if paths]
    if numbers:
        best, note = largest(numbers, "files", "")
        root = "" if best == "." else best
        layout = _with_lists(tree, root, files[root], reasons)
        if layout is not None:
            layout.notes += [note] if note else []
            return layout
    return _without_lists(tree, folders, reasons)


def _are_annotations(tree: Tree, paths: list[str]) -> bool:
    for path in paths[:_PEEKED]:
        with open(tree.path(path), "rb") as file:
            if _HEAD.search(file.read(1024).replace(b"\0", b"")):  # also UTF-16
                return True
    return False


def _with_lists(tree: Tree, root: str, xml: list[str], reasons: list[str]) -> Layout | None:
    """A folder in VOC's layout, with its lists."""
    annotations = os.path.join(root, "Annotations")
    images = _images_of(tree, xml, annotations)
    if images is None:
        reasons.append(f"{annotations}: VOC's XML, but no image of the same name is there")
        return None
    lists_folder = os.path.join(root, _LISTS)
    lists = {os.path.splitext(n)[0] for n in tree.folders[lists_folder] if n.endswith(".txt")}
    lists = {name for name in lists if os.path.getsize(tree.path(f"{lists_folder}/{name}.txt"))}
    chosen = {r: next((n for n in names if n in lists), "") for r, names in _SPLITS.items()}
    notes = []
    if chosen[TRAIN] == "trainval":
        if chosen[TEST]:  # val is a part of trainval
            chosen[VAL] = ""
        elif "train" in lists and chosen[VAL]:
            chosen[TRAIN] = "train"
    if not any(chosen.values()):
        others = sorted(
            name for name in lists if not re.search(r"_(train|val|trainval|test)$", name)
        )
        if not others:
            reasons.append(f"{lists_folder}: no list of images in it")
            return None
        chosen[WHOLE] = "default" if "default" in others else others[0]
        if len(others) > 1:
            notes.append(
                f"the images are those of {chosen[WHOLE]}.txt in {lists_folder}, of {others}"
            )
    roles = {}
    for role, split in chosen.items():
        if split:
            source = _source(tree, root, annotations, images, split)
            roles[role] = Found(source, f"{lists_folder}/{split}.txt")
    return Layout("voc", "PASCAL VOC with ImageSets", roles, notes)


def _without_lists(tree: Tree, folders: dict[str, list[str]], reasons: list[str]) -> Layout | None:
    """Folders of XML files, whose roles are in their names."""
    by_role: dict[str, list[str]] = {}
    for folder in folders:
        by_role.setdefault(folder_role(folder), []).append(folder)
    if TRAIN in by_role:
        by_role.pop(WHOLE, None)
    roles: dict[str, Found] = {}
    notes = []
    beside = True
    for role, mine in sorted(by_role.items(), key=lambda item: ROLES.index(item[0])):
        annotations, note = os.path.commonpath(mine), ""
        if any(_is_below(f, annotations) for f in folders if f not in mine):
            annotations, note = largest([(f, len(folders[f])) for f in mine], "files", role)
        notes += [note] if note else []
        images = _images_of(tree, _below({f: folders[f] for f in mine}, annotations), annotations)
        if images is None:
            place = annotations or tree.root
            reasons.append(f"{place}: VOC's XML, but no image of the same name is there")
            continue
        beside = beside and images == annotations
        root = os.path.commonpath([annotations, images])
        source = _source(tree, root, annotations, images, "")
        roles[role] = Found(source, annotations or ".")
    text = "PASCAL VOC, XML beside images" if beside else "PASCAL VOC without ImageSets"
    return Layout("voc", text, roles, notes) if roles else None


def _below(folders: Mapping[str, list[str]], top: str) -> list[str]:
    """The files in ``top`` and below it."""
    return [path for folder, paths in folders.items() if _is_below(folder, top) for path in paths]


def _is_below(folder: str, top: str) -> bool:
    return not top or folder == top or folder.startswith(top + os.sep)


def _images_of(tree: Tree, xml: list[str], annotations: str) -> str | None:
    """The folder in which images lie as their XML files do in ``annotations``."""
    hits: dict[str, int] = {}
    for path in sample(xml):
        wanted = os.path.splitext(os.path.relpath(path, annotations or "."))[0]
        for image in tree.images_by_stem.get(os.path.basename(wanted), ()):
            stem = os.path.splitext(image)[0]
            if stem == wanted:
                hits[""] = hits.get("", 0) + 1
            elif stem.endswith(os.sep + wanted):
                base = stem[: -len(wanted) - 1]
                hits[base] = hits.get(base, 0) + 1
    role = folder_role(annotations)
    ranked = sorted(hits, key=lambda f: (-hits[f], f != annotations, folder_role(f) != role, f))
    return ranked[0] if ranked else None


def _source(tree: Tree, root: str, annotations: str, images: str, split: str) -> VocSource:
    relative = [os.path.relpath(folder or ".", root or ".") for folder in (images, annotations)]
    place = tree.path(root).rstrip(os.sep)
    return VocSource(place, split, (), images=relative[0], annotations=relative[1])
