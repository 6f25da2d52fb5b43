"""Reads, checks and normalises PASCAL VOC folders.

Detectron2's VOC evaluation reads the XML files itself, expects integers in every field,
".jpg" images and names without blanks, and remembers each path it has read. Folders that differ
get a view: a new folder of links, with those XML files rewritten that need it.
"""

from __future__ import annotations

import os
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from detectron2.structures import BoxMode

from detnas_d2.data.image_check import IMAGE_EXTENSIONS, ImageHeader, read_headers
from detnas_d2.data.inspection import Inspection, box_problem, is_number
from detnas_d2.data.report import DatasetError, Problem
from detnas_d2.data.sources import VocSource
from detnas_d2.files import link_file, write_text

_EDGES = ("xmin", "ymin", "xmax", "ymax")


def split_file(root: str, split: str) -> str:
    """The file that lists the images of a split."""
    return os.path.join(root, "ImageSets", "Main", f"{split}.txt")


def read_split(source: VocSource) -> list[str]:
    """The image ids of the split, in the order of its file."""
    path = split_file(source.root, source.split)
    try:
        with open(path, encoding="utf-8") as file:
            ids = [line.strip() for line in file if line.strip()]
    except OSError as error:
        raise DatasetError(f"[missing_annotation_file] {path}: {error.strerror}") from error
    if not ids:
        raise DatasetError(f"[broken_annotation_file] {path}: the split is empty")
    return ids


def load_voc(source: VocSource) -> list[dict[str, Any]]:
    """Detectron2's dicts of a normal folder, as ``load_voc_instances`` makes them.

    Boxes: XYXY_ABS with 1 subtracted from xmin and ymin. Unlike Detectron2 0.6 it runs with
    current NumPy and reads splits of one image.
    """
    dicts = []
    for image_id in read_split(source):
        path = os.path.join(source.root, "Annotations", f"{image_id}.xml")
        tree = ET.parse(path)
        objects = []
        for item in tree.findall("object"):
            box = [float(item.findtext(f"bndbox/{edge}")) for edge in _EDGES]
            name = item.findtext("name")
            if name not in source.classes:
                raise DatasetError(f"{path}: class {name!r} is not one of {list(source.classes)}")
            objects.append(
                {
                    "category_id": source.classes.index(name),
                    "bbox": [box[0] - 1.0, box[1] - 1.0, box[2], box[3]],
                    "bbox_mode": BoxMode.XYXY_ABS,
                }
            )
        dicts.append(
            {
                "file_name": os.path.join(source.root, "JPEGImages", f"{image_id}.jpg"),
                "image_id": image_id,
                "height": int(tree.findtext("size/height")),
                "width": int(tree.findtext("size/width")),
                "annotations": objects,
            }
        )
    return dicts


@dataclass
class _Record:
    """One image: ``tree`` None until its XML is read, ``normal`` whether that can stay."""

    image_id: str
    image: str
    xml: str
    tree: ET.ElementTree | None = None
    normal: bool = True
    dropped: list[ET.Element] = field(default_factory=list)


def inspect_voc(
    source: VocSource, decode: bool = False, tolerate: frozenset[str] = frozenset()
) -> Inspection:
    """Reads XML files and image headers; problems of a kind in ``tolerate`` are kept for use."""
    return _VocInspector(source, tolerate).run(decode)


class _VocInspector:
    def __init__(self, source: VocSource, tolerate: frozenset[str]) -> None:
        self.source = source
        self.tolerate = tolerate
        self.kept: list[_Record] = []
        self.result = Inspection(source.classes, self._write_clean)

    def run(self, decode: bool) -> Inspection:
        images = _image_files(os.path.join(self.source.root, "JPEGImages"))
        list_file = split_file(self.source.root, self.source.split)
        records: dict[str, _Record] = {}
        for line, image_id in enumerate(read_split(self.source), start=1):
            if image_id in records:
                self._problem(
                    "duplicate_image_id", list_file, f"line {line}", f"{image_id} occurs twice"
                )
                continue
            image = images.get(image_id, f"{image_id}.jpg")
            records[image_id] = _Record(
                image_id,
                os.path.join(self.source.root, "JPEGImages", image),
                os.path.join(self.source.root, "Annotations", f"{image_id}.xml"),
            )
        headers = read_headers([r.image for r in records.values()], decode)
        for record, header in zip(records.values(), headers, strict=True):
            self._check(record, header)
        paths = [list_file, *(p for r in records.values() for p in (r.image, r.xml))]
        # The folder too: a missing image may come back under another extension.
        relative = [os.path.relpath(p, self.source.root) for p in paths]
        self.result.tracked = [(self.source.root, ["JPEGImages", *relative])]
        self.result.num_images = len(self.kept)
        return self.result

    def _problem(self, kind: str, file: str, entry: str, message: str) -> bool:
        """Notes a problem; returns whether the entry has to go."""
        self.result.problems.append(Problem(kind, file, entry, message))
        return kind not in self.tolerate

    def _check(self, record: _Record, header: ImageHeader) -> None:
        if header.kind and self._problem(header.kind, record.image, "", header.message):
            return
        try:
            record.tree = ET.parse(record.xml)
        except OSError as error:
            self._problem("missing_annotation_file", record.xml, "", str(error.strerror))
            return
        except ET.ParseError as error:
            self._problem("broken_annotation_file", record.xml, "", str(error))
            return
        size = [_number(record.tree.findtext(f"size/{key}")) for key in ("width", "height")]
        if not size[0] or not size[1]:  # annotation tools write 0 where they did not know
            record.normal = False
        elif size != [header.width, header.height] and self._problem(
            "size_mismatch",
            record.xml,
            "size",
            f"{size[0]:g} x {size[1]:g}, but {record.image} has {header.width} x {header.height}",
        ):
            return
        _set_text(record.tree.getroot(), "size/width", str(header.width), record)
        _set_text(record.tree.getroot(), "size/height", str(header.height), record)
        for position, item in enumerate(record.tree.findall("object")):
            found = self._object_problem(item, header)
            entry = f"object {position + 1}"
            if found is not None and self._problem(found[0], record.xml, entry, found[1]):
                record.dropped.append(item)
            else:
                _normalise_object(item, record)
                self.result.num_annotations += 1
        if not record.image.endswith(".jpg") or len(record.image_id.split()) > 1:
            record.normal = False
        if not record.normal:
            self.result.fixes.add("VOC files normalised")
        self.kept.append(record)

    def _object_problem(self, item: ET.Element, header: ImageHeader) -> tuple[str, str] | None:
        name = (item.findtext("name") or "").strip()
        if name not in self.source.classes:
            return "unknown_class", f"class {name!r} is not one of {list(self.source.classes)}"
        texts = [item.findtext(f"bndbox/{edge}") for edge in _EDGES]
        box = [_number(text) for text in texts]
        if None in box:
            return "broken_annotation", f"bndbox must hold numbers {', '.join(_EDGES)}: {texts}"
        x0, y0, x1, y1 = box
        # Inclusive pixels from 1: xmin == xmax could mean one pixel, but is what a click leaves.
        if x1 <= x0 or y1 <= y0:
            return "empty_box", f"({x0:g}, {y0:g}) to ({x1:g}, {y1:g})"
        return box_problem(x0 - 1, y0 - 1, x1, y1, header.width, header.height)

    def _write_clean(self, folder: str) -> VocSource:
        names = _plain_names([record.image_id for record in self.kept])
        entries = [(names[r.image_id], r.image, _cleaned_xml(r)) for r in self.kept]
        write_view(folder, {self.source.split: list(names.values())}, entries)
        return VocSource("", self.source.split, self.source.classes, self.source.year)


def write_view(
    folder: str,
    splits: dict[str, list[str]],
    entries: Iterable[tuple[str, str, str]],
) -> None:
    """Fills a VOC folder.

    Args:
        splits: image ids per split file.
        entries: (id, image file, XML); an XML starting with "<" is content, else a file to link.
    """
    for split, ids in splits.items():
        write_text(split_file(folder, split), "".join(f"{image_id}\n" for image_id in ids))
    for name in ("Annotations", "JPEGImages"):
        os.makedirs(os.path.join(folder, name))
    for image_id, image, xml in entries:
        link_file(image, os.path.join(folder, "JPEGImages", f"{image_id}.jpg"))
        target = os.path.join(folder, "Annotations", f"{image_id}.xml")
        if xml.startswith("<"):
            write_text(target, xml)
        else:
            link_file(xml, target)


def _image_files(folder: str) -> dict[str, str]:
    """Image id -> file name; ".jpg" wins where an id has several."""
    if not os.path.isdir(folder):
        raise DatasetError(f"[missing_image] {folder}: no such folder; VOC keeps its images there")
    found: dict[str, str] = {}
    for name in sorted(os.listdir(folder)):
        stem, extension = os.path.splitext(name)
        if extension.lower() in IMAGE_EXTENSIONS and (stem not in found or extension == ".jpg"):
            found[stem] = name
    return found


def _number(text: str | None) -> float | None:
    try:
        value = float(text) if text is not None else None
    except ValueError:
        return None
    return value if is_number(value) else None


def _set_text(item: ET.Element, path: str, value: str, record: _Record) -> None:
    """Sets the text of a nested element, made where absent; a change marks the record."""
    for tag in path.split("/"):
        child = item.find(tag)
        if child is None:
            child = ET.SubElement(item, tag)
        item = child
    if (item.text or "").strip() != value:
        item.text = value
        record.normal = False


def _normalise_object(item: ET.Element, record: _Record) -> None:
    """Gives an object every field that Detectron2's evaluator reads, as integers."""
    name = item.findtext("name") or ""
    if name != name.strip():
        item.find("name").text = name.strip()
        record.normal = False
    if not item.findtext("pose"):
        _set_text(item, "pose", "Unspecified", record)
    for key in ("truncated", "difficult"):
        flag = _number(item.findtext(key))
        _set_text(item, key, str(int(flag or 0)), record)
    for edge in _EDGES:
        value = _number(item.findtext(f"bndbox/{edge}"))
        _set_text(item, f"bndbox/{edge}", str(round(value)), record)


def _cleaned_xml(record: _Record) -> str:
    if record.normal and not record.dropped:
        return record.xml
    root = record.tree.getroot()
    for item in record.dropped:
        root.remove(item)
    return ET.tostring(root, encoding="unicode")


def _plain_names(ids: list[str]) -> dict[str, str]:
    """Id -> id without blanks, which separate the columns of the evaluator's files."""
    names: dict[str, str] = {}
    taken = {image_id for image_id in ids if len(image_id.split()) == 1}
    for image_id in ids:
        name = image_id
        if len(image_id.split()) > 1:
            name = "_".join(image_id.split())
            while name in taken:
                name += "_"
            taken.add(name)
        names[image_id] = name
    return names
