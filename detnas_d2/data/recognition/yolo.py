"""YOLO: a data.yaml, or a list of classes, and the images of each part."""

from __future__ import annotations

import os

from detnas_d2.data.checks.report import DatasetError
from detnas_d2.data.checks.yolo import (
    NAMES_ALONE,
    class_names,
    images_of,
    label_file,
    read_yaml,
)
from detnas_d2.data.datasets.sources import YoloSource
from detnas_d2.data.recognition.layout import TEST, TRAIN, VAL, Found, Layout, folder_role
from detnas_d2.data.recognition.tree import Tree

EXPECTED = "YOLO (data.yaml with 'names' and 'train', beside images and labels)"

# Key of data.yaml -> role.
_KEYS = {"train": TRAIN, "val": VAL, "valid": VAL, "test": TEST}
_USUAL = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")


def find_yolo(tree: Tree, reasons: list[str]) -> Layout | None:
    """``reasons`` gets a line for every file that nearly is one."""
    files, before = {}, len(reasons)
    for path in tree.annotation_files(".yaml", ".yml"):
        named = os.path.basename(path).lower() in _USUAL or path == tree.only
        try:
            data = read_yaml(tree.path(path))
        except DatasetError as error:  # a YAML of any other kind
            reasons += [str(error)] * named
            continue
        parts = [key for key in _KEYS if key in data]
        if "names" in data and parts:
            files[path] = data
        elif named:
            missing = "'train'" if "names" in data else "'names', the list of classes"
            reasons.append(f"{path}: a data.yaml of YOLO needs {missing}; write it")
    usual = [path for path in files if os.path.basename(path).lower() in _USUAL]
    layouts = []
    for path in usual or files:
        layout = _layout(tree, path, files[path], reasons)
        if layout is not None:
            layouts.append((path, layout))
    if not layouts:
        return _with_names_alone(tree, reasons, hint=len(reasons) == before)
    (best, found), *others = sorted(layouts, key=lambda item: (item[0].count(os.sep), item[0]))
    if others:
        left = ", ".join(path for path, _ in others)
        found.notes.append(f"{best} is read, as the one highest up; left out: {left}")
    return found


def _with_names_alone(tree: Tree, reasons: list[str], *, hint: bool) -> Layout | None:
    """A folder without a data.yaml; ``hint``: a line may tell that one is missing."""
    layout = Layout("yolo", "YOLO without data.yaml", {})
    for path in sorted(tree.annotation_files(*NAMES_ALONE), key=lambda p: (p.count(os.sep), p)):
        if os.path.basename(path) not in NAMES_ALONE:
            continue
        try:
            data = read_yaml(tree.path(path))
        except DatasetError as error:
            reasons.append(str(error))
            continue
        found = _layout(tree, path, data, reasons)
        role = folder_role(os.path.dirname(path))
        if found is not None:
            named = {role or r: f for r, f in found.roles.items()}  # one list in each part's folder
            layout.roles = {**named, **layout.roles}
    if not layout.roles:
        reasons += _labels_alone(tree) if hint else []
        return None
    return layout


def _layout(tree: Tree, path: str, data: dict, reasons: list[str]) -> Layout | None:
    file, layout = tree.path(path), Layout("yolo", "YOLO", {})
    try:
        class_names(data, file)
    except DatasetError as error:
        reasons.append(str(error))
        return None
    for key, role in _KEYS.items():
        if key not in data or role in layout.roles:
            continue
        source = YoloSource(file, key)
        try:
            images, _ = images_of(source, data)
        except DatasetError as error:
            reasons.append(str(error))
            layout.notes.append(f"'{key}' of {path} is left out: {error}")
            continue
        if not any(os.path.isfile(label_file(image)) for image in images):
            example = os.path.relpath(label_file(images[0]), tree.root)
            text = f"none of its {len(images)} images has a label file, e.g. {example}"
            reasons.append(f"'{key}' of {path}: {text}")
            layout.notes.append(f"'{key}' of {path} is left out: {text}")
            continue
        layout.roles[role] = Found(source, f"{path}, {key}")
    # Nothing else is trained on in the place of what is named for that.
    complete = TRAIN in layout.roles or not data.get("train")
    return layout if layout.roles and complete else None


def _labels_alone(tree: Tree) -> list[str]:
    """A line about label files, beside images or in "labels", without names of classes."""
    texts = (path for path in tree.with_extension(".txt") if _is_label(tree, path))
    path = "" if tree.only else next(texts, "")
    if not path:
        return []
    return [
        f"{os.path.join(os.path.dirname(path), '*.txt')} look like YOLO's, without a data.yaml or "
        "classes.txt that names the classes; write a data.yaml: {train: images, names: [...]}"
    ]


def _is_label(tree: Tree, path: str) -> bool:
    if "labels" in os.path.dirname(path).split(os.sep):
        return True
    stem = os.path.splitext(path)[0]
    same = tree.images_by_stem.get(os.path.basename(stem), ())
    return any(os.path.splitext(image)[0] == stem for image in same)
