"""Reads boxes from CSV as TensorFlow's object detection tools write them, one row per box.

The first line names the columns filename, class, xmin, ymin, xmax and ymax (pixels from 0; right
and bottom edges are outside the box), optionally width and height of the image, in any order. A row
without class and box stands for an image without objects.
"""

from __future__ import annotations

import csv
import math
import os

from detnas_d2.data.checks.box_rows import BoxInspector, BoxRow
from detnas_d2.data.checks.inspection import Inspection
from detnas_d2.data.checks.report import DatasetError, Problem
from detnas_d2.data.datasets.sources import CsvSource

_EDGES = ("xmin", "ymin", "xmax", "ymax")
COLUMNS = ("filename", "class", *_EDGES)
"""Columns that a file must have."""
_DELIMITERS = (",", ";", "\t")


def inspect_csv(
    source: CsvSource, decode: bool = False, tolerate: frozenset[str] = frozenset()
) -> Inspection:
    """Reads the rows and image headers; problems of a kind in ``tolerate`` are kept for use.

    Raises:
        DatasetError: the file is absent, not UTF-8, or its columns are others.
    """
    rows, problems = _read(source.annotations)
    found = sorted({row.label for boxes in rows.values() for row in boxes})
    inspector = BoxInspector(source.images, source.classes or found, problems, tolerate)
    result = inspector.inspect(rows, decode)
    folder, name = os.path.split(source.annotations)
    result.tracked = [(folder, [name]), (source.images, list(rows))]
    return result


def image_names(path: str) -> list[str]:
    """Names of the images of a file.

    Raises:
        DatasetError: as :func:`inspect_csv`.
    """
    return list(_read(path)[0])


def _read(path: str) -> tuple[dict[str, list[BoxRow]], list[Problem]]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            lines = file.read()
    except OSError as error:
        raise DatasetError(f"[missing_annotation_file] {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"[broken_annotation_file] {path}: not UTF-8 ({error})") from error
    header = lines.split("\n", 1)[0]
    delimiter = max(_DELIMITERS, key=header.count)
    reader = csv.DictReader(lines.splitlines(keepends=True), delimiter=delimiter, strict=True)
    columns = [(name or "").strip().lower() for name in reader.fieldnames or ()]
    missing = [name for name in COLUMNS if name not in columns]
    if missing or len(set(columns)) < len(columns):
        raise DatasetError(
            f"[broken_annotation_file] {path}, line 1: expected the columns {','.join(COLUMNS)} "
            f"(and width,height), got {header.strip()!r}"
        )
    reader.fieldnames = columns
    rows: dict[str, list[BoxRow]] = {}
    problems: list[Problem] = []
    try:
        for values in reader:
            entry = f"line {reader.line_num}"
            try:
                name, row = _row(values, path, entry)
            except ValueError as error:
                problems.append(Problem("broken_annotation", path, entry, str(error)))
                continue
            boxes = rows.setdefault(name, [])
            if row is not None:
                boxes.append(row)
    except csv.Error as error:
        place = f"{path}, after line {reader.line_num}"
        raise DatasetError(f"[broken_annotation_file] {place}: {error}") from error
    if not rows and not problems:
        raise DatasetError(f"[broken_annotation_file] {path}: no row below the columns' names")
    return rows, problems


def _row(values: dict, path: str, entry: str) -> tuple[str, BoxRow | None]:
    """Image and box of a row; None for an image without objects."""
    if None in values or None in values.values():
        raise ValueError("the number of columns is not that of the first line")
    texts = {key: text.strip() for key, text in values.items()}
    name = texts["filename"]
    if not name or "\0" in name:
        raise ValueError(f"filename is {name!r}")
    if not texts["class"] and not any(texts[edge] for edge in _EDGES):
        return name, None
    if not texts["class"]:
        raise ValueError("class is empty")
    left, top, right, bottom = (_number(texts[edge], edge) for edge in _EDGES)
    box = left, top, right, bottom
    size = None
    if texts.get("width") and texts.get("height"):
        size = _number(texts["width"], "width"), _number(texts["height"], "height")
    # Annotation tools write 0 where they did not know.
    return name, BoxRow(path, entry, texts["class"], box, size=size if size and all(size) else None)


def _number(text: str, column: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{column} must be a number, got {text!r}")
    return value
