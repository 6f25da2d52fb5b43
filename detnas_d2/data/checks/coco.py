"""Checks and cleans COCO-format annotations."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

from detnas_d2.data.checks.coco_fields import (
    amend_keypoints,
    amend_segmentation,
    crowd_flag,
    distinct,
    identifier,
    is_plain,
    known_identifier,
    shortened,
)
from detnas_d2.data.checks.coco_images import CocoImages
from detnas_d2.data.checks.inspection import (
    BOXES_ONLY,
    ImageEntry,
    Inspection,
    Targets,
    box_problem,
    is_number,
)
from detnas_d2.data.checks.report import DatasetError, Problem
from detnas_d2.data.datasets.coco import CocoFile, category_names, read_file
from detnas_d2.data.datasets.sources import CocoSource
from detnas_d2.utils.io import write_json

CLEANED_FILE = "annotations.json"


def inspect_coco(
    source: CocoSource,
    decode: bool = False,
    tolerate: frozenset[str] = frozenset(),
    targets: Targets = BOXES_ONLY,
) -> Inspection:
    """Reads annotations and image headers; problems of a kind in ``tolerate`` are kept for use."""
    return _CocoInspector(source, decode, tolerate, targets).run()


class _CocoInspector:
    """Checks of what Detectron2's loader and pycocotools read, in the types they need."""

    def __init__(
        self, source: CocoSource, decode: bool, tolerate: frozenset[str], targets: Targets
    ) -> None:
        self.source = source
        self.decode = decode
        self.tolerate = tolerate
        self.targets = targets
        self.file: CocoFile = read_file(source.annotations)
        self.names = category_names(self.file)
        self.result = Inspection(
            source.classes or tuple(self.names.values()), self._write_clean, notes=self.file.notes
        )
        self.result.entries = self._entries
        self.result.fixes |= self.file.fixes
        self.amended: Counter[str] = Counter()
        self.category_ids = self._category_ids()
        self.images = CocoImages(source.images, self._problem)
        self.annotations: list[dict[str, Any]] = []

    def _category_ids(self) -> dict[int | str, int]:
        """Id in the file -> id in the cleaned copy; ids keep their values where they can."""
        classes = self.result.classes
        if classes != tuple(self.names.values()):
            positions = {name: i for i, name in enumerate(classes, start=1)}
            self.result.fixes.add("classes ordered as declared")
            self.result.category_ids = list(positions.values())
            return {i: positions[n] for i, n in self.names.items() if n in positions}
        ids = {i: int(i) for i in self.names if is_plain(i)}
        if not all(map(is_plain, self.names)):
            ids = {i: position for position, i in enumerate(self.names, start=1)}
            self.result.fixes.add("category ids renumbered from 1")
        self.result.category_ids = list(ids.values())
        return ids

    def run(self) -> Inspection:
        self.images.check(self.file.images, self.decode)
        for position, annotation in enumerate(self.file.annotations):
            self._check_annotation(position, annotation)
        self._refuse_shares_of_the_image()
        identifiers = [a["id"] for a in self.annotations]
        # COCOeval takes a detection matched to annotation 0 for unmatched.
        if not all(is_plain(i) and i for i in identifiers) or not distinct(identifiers):
            self.result.fixes.add("annotation ids renumbered from 1")
        self.result.fixes |= self.images.fixes
        self.result.fixes |= {f"{what} ({n} annotations)" for what, n in self.amended.items()}
        self.result.notes += self.images.notes
        self.result.num_images = len(self.images.kept)
        self.result.num_annotations = len(self.annotations)
        self.result.num_crowd = sum(a["iscrowd"] for a in self.annotations)
        self.result.contents = self.images.contents
        self.result.tracked = [
            (os.path.dirname(self.source.annotations), [os.path.basename(self.source.annotations)]),
            (self.source.images, self.images.files),
        ]
        return self.result

    def _problem(self, kind: str, entry: str, message: str, file: str = "") -> bool:
        """Notes a problem; returns whether the entry has to go."""
        self.result.problems.append(Problem(kind, file or self.source.annotations, entry, message))
        return kind not in self.tolerate

    def _check_annotation(self, position: int, annotation: Any) -> None:
        if not isinstance(annotation, dict):
            message = f"a mapping expected, got {shortened(annotation)}"
            self._problem("broken_annotation", f"annotations[{position}]", message)
            return
        found = self._reference_problem(annotation)
        if found is not None:
            self._annotation_problem(position, annotation, *found)
            return
        image = self.images.kept.get(known_identifier(annotation["image_id"]))
        found = self._box_problem(annotation, image)
        if found is not None and self._annotation_problem(position, annotation, *found):
            return
        if image is None:
            return  # it was left out
        amended, message = self._amended(annotation, image)
        if message:
            self._annotation_problem(position, annotation, "broken_annotation", message)
            return
        self.annotations.append(amended)

    def _annotation_problem(
        self, position: int, annotation: dict[str, Any], kind: str, message: str
    ) -> bool:
        entry = f"annotations[{position}] (id {shortened(annotation.get('id'))})"
        return self._problem(kind, entry, message)

    def _reference_problem(self, annotation: dict[str, Any]) -> tuple[str, str] | None:
        """Faults of the ids of the image and of the category."""
        image, category = annotation.get("image_id"), annotation.get("category_id")
        plain = type(image) is type(category) is int  # as nearly always
        if plain and image in self.images.kept and category in self.category_ids:
            return None
        for key in ("image_id", "category_id"):
            if identifier(annotation.get(key)) is None:
                value = shortened(annotation.get(key))
                return "broken_annotation", f"'{key}' must be a number or a text, got {value}"
        image = known_identifier(annotation["image_id"])
        category = known_identifier(annotation["category_id"])
        if image not in self.images.ids:
            hint = _other_type(image, self.images.ids)
            return "absent_image", f"image_id {shortened(image)} is not in 'images'{hint}"
        if category not in self.category_ids:
            label = f"'{self.names[category]}'" if category in self.names else repr(category)
            hint = _other_type(category, self.names)
            names = list(self.result.classes)
            return "unknown_class", f"category {label} is not one of {names}{hint}"
        return None

    def _box_problem(
        self, annotation: dict[str, Any], image: dict[str, Any] | None
    ) -> tuple[str, str] | None:
        box = annotation.get("bbox")
        if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
            message = f"'bbox' must be [x, y, width, height], got {shortened(box)}"
            return "broken_annotation", message
        if annotation.get("ignore"):
            return "broken_annotation", "'ignore' is not supported by Detectron2"
        if image is None:
            return None
        x, y, w, h = box
        return box_problem(x, y, x + w, y + h, image["width"], image["height"])

    def _amended(
        self, annotation: dict[str, Any], image: dict[str, Any]
    ) -> tuple[dict[str, Any], str]:
        """The annotation as its readers need it, and why it cannot be used or ""."""
        changes: dict[str, Any] = {}
        for key in ("image_id", "category_id"):
            if isinstance(annotation[key], float):
                changes[key] = int(annotation[key])
                self.amended[f"'{key}' written as a whole number"] += 1
        crowd, area = annotation.get("iscrowd"), annotation.get("area")
        if type(crowd) is not int or crowd not in (0, 1):
            changes["iscrowd"] = crowd_flag(crowd)
            if changes["iscrowd"] is None:
                return annotation, f"'iscrowd' must be 0 or 1, got {shortened(crowd)}"
            self.amended["'iscrowd' written as 0 or 1"] += 1
        if not is_number(area) or area < 0:
            changes["area"] = annotation["bbox"][2] * annotation["bbox"][3]
            self.amended["'area' taken from the box"] += 1
        if "id" not in annotation:
            changes["id"] = None
        if changes:
            annotation = {**annotation, **changes}
        for key, amend in (("segmentation", amend_segmentation), ("keypoints", amend_keypoints)):
            if key not in annotation and not self.targets.masks and not self.targets.keypoints:
                continue
            changes, message = amend(annotation, image, self.targets)
            if message:
                return annotation, message
            if changes:
                verb = "left out" if changes.get(key, "") is None else "amended"
                self.amended[f"'{key}' {verb}"] += 1
                annotation = {k: v for k, v in {**annotation, **changes}.items() if v is not None}
        return annotation, ""

    def _refuse_shares_of_the_image(self) -> None:
        """Boxes of tools that count in shares of the image, not in pixels, fit every image."""
        boxes = [annotation["bbox"] for annotation in self.annotations]
        if boxes and all(x + w <= 1 and y + h <= 1 for x, y, w, h in boxes):
            raise DatasetError(
                f"[broken_annotation] {self.source.annotations}: no box reaches beyond the first "
                f"pixel, e.g. {boxes[0]}; 'bbox' counts in pixels, not in shares of the image"
            )

    def _names_of_keypoints(self) -> dict[str, list[str]]:
        """Class -> the names of its key points in the file, by which mirrored ones are swapped."""
        if not self.targets.keypoints:
            return {}
        found = {}
        for category in self.file.categories:
            name, points = (
                self.names.get(known_identifier(category["id"])),
                category.get("keypoints"),
            )
            if name and isinstance(points, list) and all(isinstance(p, str) for p in points):
                found[name] = points
        return found

    def _entries(self) -> Iterator[ImageEntry]:
        boxes: dict[int | str, list[tuple[str, float, float]]] = {i: [] for i in self.images.kept}
        for item in self.annotations:
            if not item["iscrowd"]:
                label = self.names[known_identifier(item["category_id"])]
                boxes[known_identifier(item["image_id"])].append((label, *item["bbox"][2:]))
        for key, image in self.images.kept.items():
            path = os.path.join(self.source.images, image["file_name"])
            size = image["width"], image["height"]
            yield ImageEntry(image["file_name"], path, *size, boxes[key])

    def _write_clean(self, folder: str) -> CocoSource:
        """Writes the fields that somebody reads, of which each was checked."""
        image_ids = self.images.new_ids()
        renumber = "annotation ids renumbered from 1" in self.result.fixes
        fields = ["bbox", *["segmentation"] * self.targets.masks]
        fields += ["keypoints", "num_keypoints"] * (self.targets.keypoints > 0)
        annotations = [
            {
                "id": i if renumber else a["id"],
                "image_id": image_ids[a["image_id"]],
                "category_id": self.category_ids[a["category_id"]],
                "iscrowd": a["iscrowd"],
                "area": a["area"],
                **{key: a[key] for key in fields},
            }
            for i, a in enumerate(self.annotations, start=1)
        ]
        points = self._names_of_keypoints()
        categories = [
            {"id": i, "name": name, **({"keypoints": points[name]} if name in points else {})}
            for i, name in zip(self.result.category_ids, self.result.classes, strict=True)
        ]
        data = {
            "info": {"description": f"cleaned copy of {self.source.annotations}"},
            "images": self.images.entries(image_ids),
            "annotations": annotations,
            "categories": categories,
        }
        write_json(os.path.join(folder, CLEANED_FILE), data)
        return CocoSource(CLEANED_FILE, os.path.abspath(self.source.images))


def _other_type(value: int | str, known: Any) -> str:
    """A hint where an id is there as a text instead of a number, or the other way round."""
    other: int | str | None = str(value) if isinstance(value, int) else None
    if isinstance(value, str) and value.isdecimal() and len(value) < 20:
        other = int(value)
    if other is None or other not in known:
        return ""
    return f" (but {other!r}, a {'text' if isinstance(other, str) else 'number'}, is)"
