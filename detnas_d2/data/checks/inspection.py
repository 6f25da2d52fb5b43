"""Result of the check of any format, and the checks on boxes that formats share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from detnas_d2.data.checks.report import Problem
from detnas_d2.data.datasets.sources import Source

# Pixels that a box may reach beyond the image: rounding, hasty drawing, and VOC files that count
# from 0. Detectron2 clips such boxes in training; what lies further out speaks of another image.
_MARGIN = 3.0
# Pixels below which a side counts as none; Detectron2 drops what is left of it after resizing.
_SMALLEST = 1e-3
# Whole numbers from here on have no float.
_LARGEST = 2**1000


@dataclass(frozen=True)
class Targets:
    """Targets that a model learns besides boxes; a check demands these fields, and no others.

    Attributes:
        masks: MODEL.MASK_ON.
        polygons: INPUT.MASK_FORMAT is "polygon", which holds no run-length encodings.
        keypoints: points per object, 0 without MODEL.KEYPOINT_ON.
    """

    masks: bool = False
    polygons: bool = False
    keypoints: int = 0


BOXES_ONLY = Targets()


@dataclass(frozen=True)
class ImageEntry:
    """An image that is left for use.

    Attributes:
        key: what splits of the dataset know it by.
        file: path of the image.
        width, height: in pixels, as the image is read.
        boxes: (class, width, height) of its objects, in pixels; without crowd regions.
    """

    key: str
    file: str
    width: int
    height: int
    boxes: list[tuple[str, float, float]]


def _no_entries() -> Iterator[ImageEntry]:
    return iter(())


@dataclass
class Inspection:
    """Result of reading a dataset once.

    Attributes:
        classes: class names in the order of the labels.
        num_images, num_annotations: what is left without the problems.
        num_crowd: how many of the annotations are crowd regions, which nothing learns from.
        tracked: (folder, relative paths): the files and folders this result depends on.
        category_ids: COCO's category ids in the order of the labels, after cleaning.
        fixes: what a cleaned copy has to amend besides leaving problems out.
        notes: what a person should know about data that are used as they are.
        contents: image file -> its ``ImageHeader.content``.
        entries: iterates over the images that are left, of formats with boxes.
        write_clean: writes a cleaned copy into an empty folder, returns it as a source whose
            paths are relative to that folder where they lie in it.
    """

    classes: tuple[str, ...]
    write_clean: Callable[[str], Source]
    problems: list[Problem] = field(default_factory=list)
    num_images: int = 0
    num_annotations: int = 0
    num_crowd: int = 0
    tracked: list[tuple[str, list[str]]] = field(default_factory=list)
    category_ids: list[int] = field(default_factory=list)
    fixes: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    contents: dict[str, str] = field(default_factory=dict)
    entries: Callable[[], Iterator[ImageEntry]] = _no_entries


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value of a JSON or XML file is a finite number."""
    if type(value) is int:
        return abs(value) < _LARGEST
    return type(value) is float and math.isfinite(value)


def box_problem(
    x0: float, y0: float, x1: float, y1: float, width: float, height: float
) -> tuple[str, str] | None:
    """(kind, message) if a box from (x0, y0) to (x1, y1), pixels from 0, does not fit its image."""
    if x1 - x0 < _SMALLEST or y1 - y0 < _SMALLEST:
        return "empty_box", f"the box is {x1 - x0:g} x {y1 - y0:g} pixels"
    inside = x0 < width and y0 < height and x1 > 0 and y1 > 0  # some of it
    if not inside or min(x0, y0) < -_MARGIN or x1 > width + _MARGIN or y1 > height + _MARGIN:
        return (
            "box_outside",
            f"the box ({x0:g}, {y0:g}) to ({x1:g}, {y1:g}) leaves the image of "
            f"{width:g} x {height:g} pixels",
        )
    return None
