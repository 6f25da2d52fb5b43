"""Reads YOLO datasets: data.yaml, images, and a label file of the same name for each image.

A line of a label file holds the class's number and then centre and size of a box (4 numbers), or
the corners of a polygon (6 or more), or with ``kpt_shape`` a box and key points; all in shares of
the image. Polygons become the boxes around them, key points are passed over. The label file lies in
"labels" where the image lies in "images"; an image without one has no object.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from functools import partial
from typing import Any

import yaml

from detnas_d2.data.checks.box_rows import BoxInspector, BoxRow
from detnas_d2.data.checks.image_check import IMAGE_EXTENSIONS
from detnas_d2.data.checks.inspection import Inspection
from detnas_d2.data.checks.many_files import read_each
from detnas_d2.data.checks.report import DatasetError, Problem
from detnas_d2.data.datasets.sources import YoloSource, resolve_path

NAMES_ALONE = ("classes.txt", "obj.names", "_darknet.labels")
"""Lists of classes of LabelImg and Label Studio, of CVAT, and of Roboflow's Darknet export."""

_NOTHING = ("", "null", "~", "None")


def inspect_yolo(
    source: YoloSource, decode: bool = False, tolerate: frozenset[str] = frozenset()
) -> Inspection:
    """Reads label files and image headers; problems of a kind in ``tolerate`` are kept for use.

    Raises:
        DatasetError: data.yaml cannot be used, or no image or no label file is found.
    """
    data = read_yaml(source.data)
    names = class_names(data, source.data)
    images, tracked = images_of(source, data)
    labels = {image: label_file(image) for image in images}
    if not any(map(os.path.isfile, labels.values())):
        raise DatasetError(
            f"[missing_annotation_file] {source.data}: none of the {len(images)} images of "
            f"'{source.split}' has a label file, e.g. {next(iter(labels.values()))}"
        )
    problems: list[Problem] = []
    root = os.path.commonpath(list({os.path.dirname(image) for image in images}))
    start = len(os.path.join(root, ""))
    rows = {}
    read = partial(_read_labels, names=names, key_points=bool(data.get("kpt_shape")))
    for image, (boxes, faults) in zip(
        images, read_each(read, list(labels.values()), "labels"), strict=True
    ):
        rows[image[start:]] = boxes
        problems += faults
    inspector = BoxInspector(root, source.classes or names, problems, tolerate)
    result = inspector.inspect(rows, decode)
    result.tracked = [("", [*tracked, *images, *labels.values()])]
    return result


def read_yaml(path: str) -> dict[str, Any]:
    """Texts, lists and mappings of them: a class called "no" or "1" stays that text.

    A file with a name of NAMES_ALONE stands for a data.yaml: it holds a class a line, and images
    lie in "images" beside it or beside its folder, else with the labels in its own folder.
    """
    if os.path.basename(path) in NAMES_ALONE:
        return _names_alone(path)
    try:
        with open(path, encoding="utf-8-sig") as file:
            data = yaml.BaseLoader(file.read()).get_single_data()
    except OSError as error:
        raise DatasetError(f"[missing_annotation_file] {path}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        text = " ".join(str(error).split())
        raise DatasetError(f"[broken_annotation_file] {path}: {text}") from error
    if not isinstance(data, dict):
        raise DatasetError(f"[broken_annotation_file] {path}: expected a mapping with names")
    return {key: value for key, value in data.items() if value not in _NOTHING}


def _names_alone(path: str) -> dict[str, Any]:
    try:
        names = _lines(path)
    except OSError as error:
        raise DatasetError(f"[missing_annotation_file] {path}: {error.strerror}") from error
    here = os.path.dirname(os.path.abspath(path))
    places = (os.path.join(here, "images"), os.path.join(os.path.dirname(here), "images"))
    images = next(filter(os.path.isdir, places), here)
    parts = {key: os.path.join(images, key) for key in ("train", "val", "test")}
    parts = {key: part for key, part in parts.items() if os.path.isdir(part)}
    return {"names": names, **(parts if "train" in parts else {"train": images})}


def class_names(data: dict[str, Any], path: str) -> list[str]:
    """Class names by their numbers."""
    place = f"[broken_annotation_file] {path}, names"
    names = data.get("names")
    if isinstance(names, dict):
        numbers = [str(number) for number in range(len(names))]
        if set(names) != set(numbers):
            raise DatasetError(f"{place}: expected the numbers 0 to {len(names) - 1} as keys")
        names = [names[number] for number in numbers]
    if not isinstance(names, list) or not names:
        raise DatasetError(f"{place}: expected a list of class names")
    if not all(isinstance(name, str) and name.strip() for name in names):
        raise DatasetError(f"{place}: expected texts as class names")
    if len(set(names)) < len(names):
        raise DatasetError(f"{place}: a class is there twice")
    if str(data.get("nc", len(names))) != str(len(names)):
        raise DatasetError(f"{place}: {len(names)} names, but nc is {data['nc']}")
    return names


def images_of(source: YoloSource, data: dict[str, Any]) -> tuple[list[str], list[str]]:
    """The images of the split, sorted, and the files and folders that list them."""
    places = data.get(source.split)
    places = places if isinstance(places, list) else [places]
    if not all(isinstance(place, str) and place for place in places):
        keys = sorted(key for key in ("train", "val", "test") if data.get(key))
        raise DatasetError(
            f"{source.data}: no images under {source.split!r}; SPLIT may be one of {keys}"
        )
    images: dict[str, None] = {}
    tracked = [source.data]
    for place in places:
        path = _place(source.data, data.get("path"), place)
        tracked.append(path)
        if os.path.isfile(path):
            found = _listed(path)
        else:
            found = []
            for folder, _, names in os.walk(os.path.abspath(path)):
                tracked.append(folder)
                start = os.path.join(folder, "")
                found += [
                    start + name
                    for name in names
                    if name.lower().endswith(IMAGE_EXTENSIONS) and not name.startswith(".")
                ]
        images |= dict.fromkeys(sorted(found))
    if not images:
        raise DatasetError(f"[missing_image] {source.data}, {source.split}: no image in {places}")
    return list(images), list(dict.fromkeys(map(os.path.abspath, tracked)))


def _place(file: str, base: Any, place: str) -> str:
    """Place of a folder or list of data.yaml; exports disagree on what it is relative to."""
    here = os.path.dirname(os.path.abspath(file))
    bases = [os.path.join(here, base), resolve_path(base)] if isinstance(base, str) else []
    # Roboflow writes ../train/images for train/images next to the file.
    forms = [place, place[3:]] if place.startswith("../") else [place]
    candidates = [os.path.join(b, form) for b in (*bases, here) for form in forms]
    for path in candidates:
        if os.path.exists(path):
            return os.path.normpath(path)
    raise DatasetError(f"[missing_image] {file}: {place!r} is not there; looked at {candidates}")


def _listed(path: str) -> list[str]:
    here = os.path.dirname(path)
    return [os.path.abspath(os.path.join(here, line)) for line in _lines(path)]


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8-sig") as file:
            return [line.strip() for line in file if line.strip()]
    except ValueError as error:
        raise DatasetError(f"[broken_annotation_file] {path}: not UTF-8 ({error})") from error


def label_file(image: str) -> str:
    stem = os.path.splitext(image)[0]
    before, middle, after = stem.rpartition(f"{os.sep}images{os.sep}")
    if middle:
        stem = os.path.join(before, "labels", after)
    return f"{stem}.txt"


def _read_labels(
    path: str, names: Sequence[str], key_points: bool
) -> tuple[list[BoxRow], list[Problem]]:
    try:
        with open(path, "rb", buffering=0) as file:
            lines = file.read().decode("utf-8-sig").splitlines()
    except FileNotFoundError:
        return [], []
    except (OSError, ValueError) as error:
        return [], [Problem("broken_annotation_file", path, "", str(error))]
    rows, problems = [], []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            entry = f"line {number}"
            try:
                label, box = _read_line(line.split(), names, key_points)
            except ValueError as error:
                problems.append(Problem("broken_annotation", path, entry, str(error)))
                continue
            rows.append(BoxRow(path, entry, label, box, shares=True))
    return rows, problems


def _read_line(
    texts: list[str], names: Sequence[str], key_points: bool
) -> tuple[str, tuple[float, float, float, float]]:
    """Class and box, in shares of the image."""
    try:
        label, *values = [float(text) for text in texts]
    except ValueError:
        raise ValueError(f"expected numbers, got {' '.join(texts)[:80]!r}") from None
    if not all(map(math.isfinite, (label, *values))):
        raise ValueError(f"expected finite numbers, got {' '.join(texts)[:80]!r}")
    if label != int(label) or not 0 <= label < len(names):
        raise ValueError(f"class {texts[0]} is not one of 0 to {len(names) - 1}")
    if key_points:
        values = values[:4]
    is_box, is_polygon = len(values) == 4, len(values) >= 6 and len(values) % 2 == 0
    if not is_box and not is_polygon:
        raise ValueError(
            f"{len(values)} numbers after the class; expected 4 of a box, or x and y of at least 3 "
            "corners"
        )
    if max(map(abs, values)) > 2:
        raise ValueError("numbers count in shares of the image, from 0 to 1, not in pixels")
    if is_box:
        x, y, width, height = values
        return names[int(label)], (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    xs, ys = values[0::2], values[1::2]
    return names[int(label)], (min(xs), min(ys), max(xs), max(ys))
