"""Checks and cleans COCO-format annotations."""

from __future__ import annotations

import json
import os
from typing import Any

from detnas_d2.data.image_check import ImageHeader, read_headers
from detnas_d2.data.inspection import Inspection, box_problem, is_number
from detnas_d2.data.report import DatasetError, Problem
from detnas_d2.data.sources import CocoSource
from detnas_d2.files import write_json

CLEANED_FILE = "annotations.json"


def read_coco(path: str) -> dict[str, Any]:
    """The content of an annotation file; "annotations" is empty where there is none.

    Raises:
        DatasetError: the file is absent, no JSON, or not of COCO's layout.
    """
    try:
        with open(path, encoding="utf-8") as file:
            data = json.load(file)
    except OSError as error:
        raise DatasetError(f"[missing_annotation_file] {path}: {error.strerror}") from error
    except ValueError as error:  # broken JSON or broken UTF-8
        raise DatasetError(f"[broken_annotation_file] {path}: {error}") from error
    for key in ("images", "categories"):
        if not isinstance(data, dict) or not isinstance(data.get(key), list):
            raise DatasetError(
                f"[broken_annotation_file] {path}: COCO format needs a list '{key}' at the top"
            )
    data.setdefault("annotations", [])
    return data


def category_names(data: dict[str, Any], path: str) -> dict[int, str]:
    """Category id -> name, ordered by id."""
    names: dict[int, str] = {}
    for position, category in enumerate(data["categories"]):
        place = f"[broken_annotation_file] {path}, categories[{position}]"
        if not isinstance(category, dict) or "id" not in category or "name" not in category:
            raise DatasetError(f"{place}: 'id' and 'name' expected, got {category!r}")
        if category["id"] in names or category["name"] in names.values():
            raise DatasetError(f"{place}: {category!r} occurs twice")
        names[category["id"]] = category["name"]
    if not names:
        raise DatasetError(f"[broken_annotation_file] {path}: 'categories' is empty")
    return dict(sorted(names.items()))


def inspect_coco(
    source: CocoSource, decode: bool = False, tolerate: frozenset[str] = frozenset()
) -> Inspection:
    """Reads annotations and image headers; problems of a kind in ``tolerate`` are kept for use."""
    return _CocoInspector(source, decode, tolerate).run()


class _CocoInspector:
    def __init__(self, source: CocoSource, decode: bool, tolerate: frozenset[str]) -> None:
        self.source = source
        self.decode = decode
        self.tolerate = tolerate
        self.data = read_coco(source.annotations)
        names = category_names(self.data, source.annotations)
        classes = source.classes or tuple(names.values())
        self.result = Inspection(classes, self._write_clean)
        # Category ids keep their values unless the declared classes say otherwise.
        self.category_ids = {i: i for i in names}
        if classes != tuple(names.values()):
            positions = {name: i + 1 for i, name in enumerate(classes)}
            self.category_ids = {i: positions[n] for i, n in names.items() if n in positions}
            self.result.fixes.add("classes ordered as declared")
            self.result.category_ids = list(positions.values())
        else:
            self.result.category_ids = list(names)
        self.names = names
        self.images: dict[Any, dict[str, Any]] = {}
        self.all_ids: set[Any] = set()
        self.annotations: list[dict[str, Any]] = []

    def run(self) -> Inspection:
        self._check_images()
        for position, annotation in enumerate(self.data["annotations"]):
            self._check_annotation(position, annotation)
        self._refuse_shares_of_the_image()
        identifiers = [a.get("id") for a in self.annotations]
        # COCOeval takes a detection matched to annotation 0 for unmatched.
        if None in identifiers or 0 in identifiers or len(set(identifiers)) < len(identifiers):
            self.result.fixes.add("annotation ids renumbered from 1")
        self.result.num_images = len(self.images)
        self.result.num_annotations = len(self.annotations)
        return self.result

    def _problem(self, kind: str, entry: str, message: str, file: str = "") -> bool:
        """Notes a problem; returns whether the entry has to go."""
        self.result.problems.append(Problem(kind, file or self.source.annotations, entry, message))
        return kind not in self.tolerate

    def _check_images(self) -> None:
        entries = []
        for position, image in enumerate(self.data["images"]):
            place = f"images[{position}]"
            if (
                not isinstance(image, dict)
                or not isinstance(image.get("file_name"), str)
                or not isinstance(image.get("id"), (int, str))
            ):
                self._problem(
                    "broken_image_entry", place, f"'id' and 'file_name' expected, got {image!r}"
                )
            elif image["id"] in self.all_ids:
                self._problem("duplicate_image_id", place, f"image id {image['id']!r} occurs twice")
            else:
                self.all_ids.add(image["id"])
                entries.append((place, image))
        files = [image["file_name"] for _, image in entries]
        self.result.tracked = [
            (os.path.dirname(self.source.annotations), [os.path.basename(self.source.annotations)]),
            (self.source.images, files),
        ]
        headers = read_headers([os.path.join(self.source.images, f) for f in files], self.decode)
        for (place, image), header in zip(entries, headers, strict=True):
            kept = self._check_image(place, image, header)
            if kept is not None:
                self.images[kept["id"]] = kept

    def _check_image(
        self, place: str, image: dict[str, Any], header: ImageHeader
    ) -> dict[str, Any] | None:
        path = os.path.join(self.source.images, image["file_name"])
        entry = f"{place} (id {image['id']!r})"
        if header.kind:
            if self._problem(header.kind, "", f"{header.message} ({entry})", path):
                return None
            return image
        stated = (image.get("width"), image.get("height"))
        if stated == (None, None):
            self.result.fixes.add("image sizes filled in")
            return {**image, "width": header.width, "height": header.height}
        if stated != (header.width, header.height) and self._problem(
            "size_mismatch",
            entry,
            f"width, height {stated[0]!r} x {stated[1]!r}, but {path} has "
            f"{header.width} x {header.height}",
        ):
            return None
        return image

    def _check_annotation(self, position: int, annotation: Any) -> None:
        if not isinstance(annotation, dict):
            self._problem("broken_annotation", f"annotations[{position}]", f"got {annotation!r}")
            return
        entry = f"annotations[{position}] (id {annotation.get('id')!r})"
        found = self._annotation_problem(annotation)
        if found is not None and self._problem(found[0], entry, found[1]):
            return
        if annotation["image_id"] not in self.images:
            return  # its image was left out
        x, y, w, h = annotation["bbox"]
        if "area" not in annotation or "iscrowd" not in annotation:
            self.result.fixes.add("'area' and 'iscrowd' filled in")
            annotation = {"area": w * h, "iscrowd": 0, **annotation}
        self.annotations.append(annotation)

    def _annotation_problem(self, annotation: dict[str, Any]) -> tuple[str, str] | None:
        image_id, category = annotation.get("image_id"), annotation.get("category_id")
        if image_id not in self.all_ids:
            return "absent_image", f"image_id {image_id!r} is not in 'images'"
        if category not in self.category_ids:
            label = f"'{self.names[category]}'" if category in self.names else repr(category)
            return "unknown_class", f"category {label} is not one of {list(self.result.classes)}"
        box = annotation.get("bbox")
        if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
            return "broken_annotation", f"'bbox' must be [x, y, width, height], got {box!r}"
        if annotation.get("ignore"):
            return "broken_annotation", "'ignore' is not supported by Detectron2"
        image = self.images.get(image_id)
        if image is None:
            return None
        x, y, w, h = box
        return box_problem(x, y, x + w, y + h, image["width"], image["height"])

    def _refuse_shares_of_the_image(self) -> None:
        """Boxes of tools that count in shares of the image, not in pixels, fit every image."""
        boxes = [annotation["bbox"] for annotation in self.annotations]
        if boxes and all(x + w <= 1 and y + h <= 1 for x, y, w, h in boxes):
            raise DatasetError(
                f"[broken_annotation] {self.source.annotations}: no box reaches beyond the first "
                f"pixel, e.g. {boxes[0]}; 'bbox' counts in pixels, not in shares of the image"
            )

    def _write_clean(self, folder: str) -> CocoSource:
        data = {k: v for k, v in self.data.items() if k not in ("images", "annotations")}
        data["images"] = list(self.images.values())
        data["annotations"] = [
            {**a, "category_id": self.category_ids[a["category_id"]]} for a in self.annotations
        ]
        if "annotation ids renumbered from 1" in self.result.fixes:
            data["annotations"] = [
                {**a, "id": i} for i, a in enumerate(data["annotations"], start=1)
            ]
        if "classes ordered as declared" in self.result.fixes:
            data["categories"] = [
                {"id": i, "name": name} for i, name in enumerate(self.result.classes, start=1)
            ]
        write_json(os.path.join(folder, CLEANED_FILE), data)
        return CocoSource(CLEANED_FILE, os.path.abspath(self.source.images))
