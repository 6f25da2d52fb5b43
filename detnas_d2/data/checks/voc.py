"""Checks PASCAL VOC folders, also those of another layout, and brings them into the strict one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from detnas_d2.data.checks.image_check import (
    IMAGE_EXTENSIONS,
    ImageHeader,
    read_headers,
    size_read,
    turned_note,
)
from detnas_d2.data.checks.inspection import ImageEntry, Inspection, box_problem
from detnas_d2.data.checks.many_files import read_each
from detnas_d2.data.checks.report import DatasetError, Problem
from detnas_d2.data.datasets.sources import VocSource
from detnas_d2.data.datasets.voc_lists import Finder, Listed, id_problem, read_list, split_file
from detnas_d2.data.datasets.voc_view import write_view
from detnas_d2.data.datasets.voc_xml import (
    BrokenXml,
    VocObject,
    number,
    read_object,
    read_xml,
    texts_below,
    write_annotation,
)

NORMALISED = ("VOC files normalised", "VOC split file normalised", "VOC split file made")
"""Fixes that make a folder one in VOC's own layout."""

_ALL = "all"  # the split of a view of a folder without split files


@dataclass
class _Record:
    """One image: ``plain`` whether Detectron2 can read its files as they are."""

    image_id: str
    image: str
    xml: str
    plain: bool = True
    size: tuple[int, int] = (0, 0)
    objects: list[VocObject] = field(default_factory=list)


class _File(NamedTuple):
    """What an XML file holds.

    Attributes:
        plain: whether Detectron2 reads the file as it is, its fields aside.
        size: texts of width and height.
        objects: a text says why one cannot be read.
    """

    plain: bool
    size: list[str | None]
    objects: list[VocObject | str]


def inspect_voc(
    source: VocSource, decode: bool = False, tolerate: frozenset[str] = frozenset()
) -> Inspection:
    """Reads XML files and image headers; problems of a kind in ``tolerate`` are kept for use.

    Of a source without classes every name counts; the result has them in alphabetical order.
    """
    return _VocInspector(source, tolerate).run(decode)


class _VocInspector:
    def __init__(self, source: VocSource, tolerate: frozenset[str]) -> None:
        self.source = source
        self.tolerate = tolerate
        self.images = Finder(_folder(source.root, source.images), IMAGE_EXTENSIONS)
        self.annotations = Finder(_folder(source.root, source.annotations), (".xml",))
        self.strict_images = os.path.join(source.root, "JPEGImages", "")
        self.strict_annotations = os.path.join(source.root, "Annotations", "")
        self.kept: list[_Record] = []
        self.turned: list[str] = []
        self.result = Inspection(source.classes, self._write_clean, entries=self._entries)

    def run(self, decode: bool) -> Inspection:
        if not os.path.isdir(self.images.folder):
            raise DatasetError(
                f"[missing_image] {self.images.folder}: no such folder; VOC keeps its images there "
                "(key IMAGES names another one)"
            )
        list_file, listed = self._listed()
        records: dict[str, _Record] = {}
        for item in listed:
            if item.problem:
                self._problem("broken_image_entry", list_file, item.place, item.problem)
            elif item.image_id in records:
                self._problem(
                    "duplicate_image_id", list_file, item.place, f"{item.image_id} occurs twice"
                )
            else:
                records[item.image_id] = self._record(item.image_id)
        headers = read_headers([r.image for r in records.values()], decode)
        files = read_each(_read_file, [r.xml for r in records.values()], "annotations")
        for record, header, file in zip(records.values(), headers, files, strict=True):
            self._check(record, header, file)
        # The folders too: a missing image may come back under another extension.
        folders = [*self.images.folders, *self.annotations.folders]
        paths = [list_file, *folders, *(p for r in records.values() for p in (r.image, r.xml))]
        self.result.tracked = [(self.source.root, _relative(paths, self.source.root))]
        self.result.num_images = len(self.kept)
        self.result.notes += [turned_note(self.turned)] if self.turned else []
        if not self.source.classes:
            found = {item.name for record in self.kept for item in record.objects}
            self.result.classes = tuple(sorted(found))
        return self.result

    def _listed(self) -> tuple[str, list[Listed]]:
        """The file, or without one the folder, that lists the images, and what it lists."""
        if self.source.split:
            path = split_file(self.source.root, self.source.split)
            listed, plain = read_list(path, self.annotations.has)
            if not plain or self.source.split.endswith(".txt"):
                self.result.fixes.add(NORMALISED[1])
            return path, listed
        self.result.fixes.add(NORMALISED[2])
        splits = Finder(os.path.dirname(split_file(self.source.root, "x")), (".txt",)).all()
        if splits:
            raise DatasetError(
                f"{self.source.root} has split files: set SPLIT to one of {splits[:10]}, lest "
                "images of a test set are trained on"
            )
        ids = self.annotations.all()
        if not ids:
            raise DatasetError(
                f"[missing_annotation_file] {self.annotations.folder}: no .xml file in this folder"
            )
        return self.annotations.folder, [Listed(i, f"{i}.xml", id_problem(i)) for i in ids]

    def _record(self, image_id: str) -> _Record:
        record = _Record(image_id, self.images.find(image_id), self.annotations.find(image_id))
        strict = f"{self.strict_images}{image_id}.jpg", f"{self.strict_annotations}{image_id}.xml"
        record.plain = (record.image, record.xml) == strict and len(image_id.split()) == 1
        return record

    def _problem(self, kind: str, file: str, entry: str, message: str) -> bool:
        """Notes a problem; returns whether the entry has to go."""
        self.result.problems.append(Problem(kind, file, entry, message))
        return kind not in self.tolerate

    def _check(self, record: _Record, header: ImageHeader, file: _File | Problem) -> None:
        if header.kind and self._problem(header.kind, record.image, "", header.message):
            return
        if isinstance(file, Problem):
            self.result.problems.append(file)
            return
        record.plain = record.plain and file.plain
        if not self._check_size(record, file.size, header):
            return
        for position, found in enumerate(file.objects, start=1):
            if isinstance(found, str):
                problem: tuple[str, str] | None = ("broken_annotation", found)
            else:
                problem = self._object_problem(found, header)
            if problem is not None:
                entry = f"object {position}"
                if self._problem(problem[0], record.xml, entry, problem[1]):
                    record.plain = False
                    continue
            if not isinstance(found, str):
                record.plain = record.plain and found.plain
                record.objects.append(found)
        if not record.plain:
            self.result.fixes.add(NORMALISED[0])
        self.result.num_annotations += len(record.objects)
        if header.orientation != 1:
            self.turned.append(record.image_id)
        self.kept.append(record)
        self.result.contents[record.image] = header.content

    def _check_size(self, record: _Record, texts: list[str | None], header: ImageHeader) -> bool:
        """Compares the sizes of file and image; returns whether the image can be used."""
        record.size = (header.width, header.height)
        size = [number(text) for text in texts]
        if not size[0] or not size[1]:  # annotation tools write 0 where they did not know
            record.plain = False
        elif tuple(size) != record.size and self._problem(
            "size_mismatch",
            record.xml,
            "size",
            f"{size[0]:g} x {size[1]:g}, but {size_read(record.image, header, (size[0], size[1]))}",
        ):
            return False
        if [text and text.strip() for text in texts] != [str(side) for side in record.size]:
            record.plain = False
        return True

    def _object_problem(self, found: VocObject, header: ImageHeader) -> tuple[str, str] | None:
        if not self.source.classes and not found.name:
            return "unknown_class", "the object has no name"
        if self.source.classes and found.name not in self.source.classes:
            classes = list(self.source.classes)
            return "unknown_class", f"class {found.name!r} is not one of {classes}"
        x0, y0, x1, y1 = found.box
        # Inclusive pixels from 1: xmin == xmax could mean one pixel, but is what a click leaves.
        if x1 <= x0 or y1 <= y0:
            return "empty_box", f"({x0:g}, {y0:g}) to ({x1:g}, {y1:g})"
        return box_problem(x0 - 1, y0 - 1, x1, y1, header.width, header.height)

    def _entries(self) -> Iterator[ImageEntry]:
        names = _plain_names([record.image_id for record in self.kept])
        for record in self.kept:
            boxes = [
                (item.name, item.box[2] - item.box[0] + 1, item.box[3] - item.box[1] + 1)
                for item in record.objects
            ]
            yield ImageEntry(names[record.image_id], record.image, *record.size, boxes)

    def _write_clean(self, folder: str) -> VocSource:
        split = os.path.splitext(os.path.basename(self.source.split))[0] or _ALL
        if not self.source.split.endswith(".txt"):
            split = self.source.split or _ALL
        names = _plain_names([record.image_id for record in self.kept])
        entries = [
            (
                names[record.image_id],
                record.image,
                record.xml if record.plain else write_annotation(*record.size, record.objects),
            )
            for record in self.kept
        ]
        write_view(folder, {split: list(names.values())}, entries)
        return VocSource("", split, self.source.classes, self.source.year)


def _read_file(path: str) -> _File | Problem:
    try:
        root, plain = read_xml(path)
    except OSError as error:
        return Problem("missing_annotation_file", path, "", str(error.strerror))
    except BrokenXml as error:
        return Problem("broken_annotation_file", path, "", str(error))
    objects: list[VocObject | str] = []
    for item in root.findall("object"):
        try:
            objects.append(read_object(item))
        except BrokenXml as error:
            objects.append(str(error))
    return _File(plain, texts_below(root, "size", ("width", "height")), objects)


def _folder(root: str, name: str) -> str:
    return os.path.normpath(os.path.join(root, name))


def _relative(paths: list[str], root: str) -> list[str]:
    """``os.path.relpath`` of each, which are in few folders."""
    starts: dict[str, str] = {}
    found = []
    for path in paths:
        folder, name = os.path.split(path)
        if name in ("", ".", ".."):
            found.append(os.path.relpath(path, root))
            continue
        if folder not in starts:
            relative = os.path.relpath(folder or ".", root)
            starts[folder] = "" if relative == "." else os.path.join(relative, "")
        found.append(starts[folder] + name)
    return found


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
