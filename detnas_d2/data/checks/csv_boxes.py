"""Reads boxes from CSV as TensorFlow's object detection tools write them, one row per box.

The first line names the columns filename, class, xmin, ymin, xmax and ymax (pixels from 0; right
and bottom edges are outside the box), optionally width and height of the image, in any order. A row
without class and box stands for an image without objects.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterator

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
    """Names of the images of a file, whatever else its rows hold.

    Raises:
        DatasetError: as :func:`inspect_csv`.
    """
    columns, rows = _table(path)
    place = columns.index("filename")
    names = (values[place].strip() for _, values in rows if len(values) == len(columns))
    found = [name for name in dict.fromkeys(names) if name and "\0" not in name]
    if not found:
        raise _nothing(path)
    return found


def _read(path: str) -> tuple[dict[str, list[BoxRow]], list[Problem]]:
    columns, table = _table(path)
    rows: dict[str, list[BoxRow]] = {}
    problems: list[Problem] = []
    for entry, values in table:
        try:
            name, row = _row(columns, values, path, entry)
        except ValueError as error:
            problems.append(Problem("broken_annotation", path, entry, str(error)))
            continue
        boxes = rows.setdefault(name, [])
        if row is not None:
            boxes.append(row)
    if not rows and not problems:
        raise _nothing(path)
    return rows, problems


def _nothing(path: str) -> DatasetError:
    return DatasetError(f"[broken_annotation_file] {path}: no row below the columns' names")


def _table(path: str) -> tuple[list[str], Iterator[tuple[str, list[str]]]]:
    """(Names of the columns, place and values of each row below them)."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            lines = file.read()
    except OSError as error:
        raise DatasetError(f"[missing_annotation_file] {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"[broken_annotation_file] {path}: not UTF-8 ({error})") from error
    header = lines.split("\n", 1)[0]
    delimiter = max(_DELIMITERS, key=header.count)
    rows = _rows(lines.splitlines(keepends=True), delimiter, path)
    columns = [name.strip().lower() for name in next(rows, ("", []))[1]]
    missing = [name for name in COLUMNS if name not in columns]
    if missing or len(set(columns)) < len(columns):
        raise DatasetError(
            f"[broken_annotation_file] {path}, line 1: expected the columns {','.join(COLUMNS)} "
            f"(and width,height), got {header.strip()!r}"
        )
    return columns, ((place, values) for place, values in rows if values)


def _rows(lines: list[str], delimiter: str, path: str) -> Iterator[tuple[str, list[str]]]:
    """Place and values of each row; an empty line has no values."""
    reader, place = csv.reader(lines, delimiter=delimiter, strict=True), ""
    try:
        for values in reader:
            place = f"line {reader.line_num}"
            yield place, values
    except csv.Error as error:
        where = f"{path}, after {place}" if place else f"{path}, line 1"
        raise DatasetError(f"[broken_annotation_file] {where}: {error}") from error


def _row(columns: list[str], values: list[str], path: str, entry: str) -> tuple[str, BoxRow | None]:
    """Image and box of a row; None for an image without objects."""
    if len(values) != len(columns):
        raise ValueError("the number of columns is not that of the first line")
    texts = dict(zip(columns, map(str.strip, values), strict=True))
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
