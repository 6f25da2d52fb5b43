"""Boxes from text formats, row by row, as COCO JSON: the checks and the writing that they share."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from detnas_d2.data.checks.coco import CLEANED_FILE
from detnas_d2.data.checks.image_check import (
    ImageHeader,
    read_headers,
    size_read,
    turned_note,
)
from detnas_d2.data.checks.inspection import ImageEntry, Inspection, box_problem
from detnas_d2.data.checks.report import Problem
from detnas_d2.data.datasets.sources import CocoSource
from detnas_d2.utils.io import write_json

CONVERTED = "converted to COCO JSON"


class BoxRow(NamedTuple):
    """One box of a file.

    Attributes:
        file, entry: where it stands, e.g. "line 3".
        box: left, top, right, bottom; in pixels, or with ``shares`` in shares of the image.
        size: width and height that the row gives its image, if it does.
    """

    file: str
    entry: str
    label: str
    box: tuple[float, float, float, float]
    shares: bool = False
    size: tuple[float, float] | None = None


class BoxInspector:
    """Checks images and their rows, and writes what is left as COCO JSON.

    Args:
        root: folder that the names of images start at.
        problems: those found while reading.
    """

    def __init__(
        self,
        root: str,
        classes: Sequence[str],
        problems: Sequence[Problem] = (),
        tolerate: frozenset[str] = frozenset(),
    ) -> None:
        self.root = os.path.abspath(root)
        self.tolerate = tolerate
        self._numbers = {name: number for number, name in enumerate(classes, start=1)}
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        self.turned: list[str] = []
        self.result = Inspection(tuple(classes), self._write_clean, list(problems))
        self.result.entries = self._entries
        self.result.fixes.add(CONVERTED)
        self.result.category_ids = list(range(1, len(classes) + 1))

    def inspect(self, rows: dict[str, list[BoxRow]], decode: bool) -> Inspection:
        """``rows``: of every image, by its path below the root; an image may have none."""
        paths = [os.path.join(self.root, name) for name in rows]
        headers = read_headers(paths, decode)
        for (name, boxes), path, header in zip(rows.items(), paths, headers, strict=True):
            if self._image(name, path, header, boxes):
                for row in boxes:
                    self._row(row, header)
        self.result.num_images = len(self.images)
        self.result.num_annotations = len(self.annotations)
        self.result.notes += [turned_note(self.turned)] if self.turned else []
        return self.result

    def _problem(self, kind: str, file: str, entry: str, message: str) -> bool:
        """Notes a problem; returns whether the entry has to go."""
        self.result.problems.append(Problem(kind, file, entry, message))
        return kind not in self.tolerate

    def _image(self, name: str, path: str, header: ImageHeader, boxes: list[BoxRow]) -> bool:
        if header.kind and self._problem(header.kind, path, "", header.message):
            return False
        size = (header.width, header.height)
        for row in boxes:
            if row.size is not None and row.size != size:
                read = size_read(path, header, row.size)
                message = f"width, height {row.size[0]:g} x {row.size[1]:g}, but {read}"
                if self._problem("size_mismatch", row.file, row.entry, message):
                    return False
        self.result.contents[path] = header.content
        if header.orientation != 1:
            self.turned.append(name)
        number = len(self.images) + 1
        image = {"id": number, "file_name": name, "width": size[0], "height": size[1]}
        self.images.append(image)
        return True

    def _row(self, row: BoxRow, header: ImageHeader) -> None:
        width, height = header.width, header.height
        x0, y0, x1, y1 = row.box
        if row.shares:
            x0, x1, y0, y1 = x0 * width, x1 * width, y0 * height, y1 * height
        number = self._numbers.get(row.label)
        if number is not None:
            problem = box_problem(x0, y0, x1, y1, width, height)
        else:
            text = f"class {row.label!r} is not one of {list(self.result.classes)}"
            problem = "unknown_class", text
        if problem is not None and self._problem(problem[0], row.file, row.entry, problem[1]):
            return
        box = [x0, y0, x1 - x0, y1 - y0]
        self.annotations.append(
            {
                "id": len(self.annotations) + 1,
                "image_id": len(self.images),
                "category_id": number,
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": 0,
            }
        )

    def _entries(self) -> Iterator[ImageEntry]:
        boxes: list[list[tuple[str, float, float]]] = [[] for _ in self.images]
        for item in self.annotations:
            label = self.result.classes[item["category_id"] - 1]
            boxes[item["image_id"] - 1].append((label, *item["bbox"][2:]))
        for image, found in zip(self.images, boxes, strict=True):
            name = image["file_name"]
            path = os.path.join(self.root, name)
            yield ImageEntry(name, path, image["width"], image["height"], found)

    def _write_clean(self, folder: str) -> CocoSource:
        categories = [{"id": i, "name": n} for i, n in enumerate(self.result.classes, start=1)]
        data = {"images": self.images, "annotations": self.annotations, "categories": categories}
        write_json(os.path.join(folder, CLEANED_FILE), data)
        return CocoSource(CLEANED_FILE, self.root)
