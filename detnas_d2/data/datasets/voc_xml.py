"""Annotation files of PASCAL VOC: one reading of what XML allows, one way of writing.

Detectron2's evaluator opens them as text in UTF-8 and converts fields with ``int``; ElementTree
follows the encoding that a file declares. A file that the two read differently is written again.
"""

from __future__ import annotations

import codecs
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass

EDGES = ("xmin", "ymin", "xmax", "ymax")

_DECLARED = re.compile(rb"\s*<\?xml[^>]*?encoding\s*=\s*[\"']([A-Za-z][A-Za-z0-9._-]*)[\"']")
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (b"<\0?\0", "utf-16-le"),
    (b"\0<\0?", "utf-16-be"),
)
_TRUE, _FALSE = ("1", "true", "yes", "y", "t"), ("0", "false", "no", "n", "f", "", "unspecified")


class BrokenXml(ValueError):
    """A file that is no VOC annotation; the text says why."""


@dataclass(frozen=True)
class VocObject:
    """One object: ``box`` xmin, ymin, xmax, ymax, inclusive pixels that count from 1.

    ``plain`` tells whether Detectron2 reads the same from the file.
    """

    name: str
    pose: str
    truncated: int
    difficult: int
    box: tuple[float, float, float, float]
    plain: bool


def read_xml(path: str) -> tuple[ET.Element, bool]:
    """The root element without namespaces, and whether Detectron2 reads the file as it is.

    Raises:
        OSError: the file cannot be read.
        BrokenXml: its encoding or its content is wrong.
    """
    with open(path, "rb") as file:
        data = file.read()
    text, plain = _decode(data)
    try:
        root = ET.fromstring(text)
    except (ET.ParseError, ValueError) as error:
        raise BrokenXml(str(error)) from error
    for item in root.iter():
        if isinstance(item.tag, str) and item.tag.startswith("{"):
            item.tag = item.tag.rpartition("}")[2]
            plain = False
    if root.tag != "annotation":
        raise BrokenXml(f"the outermost element is <{root.tag}>, expected <annotation>")
    return root, plain


def _decode(data: bytes) -> tuple[str, bool]:
    """The text, and whether it is UTF-8 and says nothing else."""
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "")
    if not encoding:
        declared = _DECLARED.match(data)
        encoding = declared[1].decode() if declared else "utf-8"
        if re.match(r"(utf|ucs|iso-10646-ucs)[-_]?(16|32|2|4)", encoding, re.IGNORECASE):
            raise BrokenXml(f"the encoding {encoding} is declared, but the file is in another")
    try:
        plain = codecs.lookup(encoding).name in ("utf-8", "ascii")
        return data.decode(encoding), plain
    except (LookupError, UnicodeError) as error:
        raise BrokenXml(f"not readable in the encoding {encoding}: {error}") from error


def number(text: str | None) -> float | None:
    """The finite number that a field holds, None for anything else."""
    try:
        value = float(text) if text is not None else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def read_object(item: ET.Element) -> VocObject:
    """Reads an <object>; flags may be written 0 and 1, True and False, yes and no.

    Raises:
        BrokenXml: naming the field.
    """
    texts = [item.findtext(f"bndbox/{edge}") for edge in EDGES]
    box = [value for value in map(number, texts) if value is not None]
    if len(box) < len(EDGES):
        raise BrokenXml(f"bndbox must hold numbers {', '.join(EDGES)}: {texts}")
    name, pose = item.findtext("name") or "", item.findtext("pose") or ""
    difficult = _flag(item.findtext("difficult"))
    if difficult is None:
        raise BrokenXml(f"difficult must be 0 or 1, got {item.findtext('difficult')!r}")
    # Not used by any metric; some tools keep a share of the object here.
    truncated = _flag(item.findtext("truncated")) or 0
    written = [name, item.findtext("truncated"), item.findtext("difficult"), *texts]
    wanted = [name.strip(), truncated, difficult, *(round(value) for value in box)]
    plain = bool(pose) and all(map(_plain, written, wanted))
    pose = pose.strip() or "Unspecified"
    xmin, ymin, xmax, ymax = box
    return VocObject(name.strip(), pose, truncated, difficult, (xmin, ymin, xmax, ymax), plain)


def _plain(text: str | None, value: object) -> bool:
    """Whether Detectron2 reads ``value`` from a field."""
    return text == value if isinstance(value, str) else (text or "").strip() == str(value)


def _flag(text: str | None) -> int | None:
    word = (text or "").strip().lower()
    if word in _TRUE or word in _FALSE:
        return int(word in _TRUE)
    value = number(word)
    return int(value) if value in (0, 1) else None


def write_annotation(width: int, height: int, objects: Sequence[VocObject]) -> str:
    """XML with the fields that Detectron2 reads, coordinates rounded to integers."""
    root = ET.Element("annotation")
    size = ET.SubElement(root, "size")
    for key, value in (("width", width), ("height", height), ("depth", 3)):
        ET.SubElement(size, key).text = str(value)
    for found in objects:
        item = ET.SubElement(root, "object")
        for key in ("name", "pose", "truncated", "difficult"):
            ET.SubElement(item, key).text = str(getattr(found, key))
        box = ET.SubElement(item, "bndbox")
        for edge, position in zip(EDGES, found.box, strict=True):
            ET.SubElement(box, edge).text = str(round(position))
    return ET.tostring(root, encoding="unicode")
