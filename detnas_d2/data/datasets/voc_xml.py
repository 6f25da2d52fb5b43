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
from functools import lru_cache
from typing import NamedTuple

EDGES = ("xmin", "ymin", "xmax", "ymax")

_DECLARED = re.compile(rb"\s*<\?xml[^>]*?encoding\s*=\s*[\"']([A-Za-z][A-Za-z0-9._-]*)[\"']")
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (b"<\0?\0", "utf-16-le"),
    (b"\0<\0?", "utf-16-be"),
)
_REMEMBERED = 1 << 13  # texts of numbers: most are in many files
_FLAGS = {
    **dict.fromkeys(("1", "true", "yes", "y", "t"), 1),
    **dict.fromkeys(("0", "false", "no", "n", "f", "", "unspecified"), 0),
}


class BrokenXml(ValueError):
    """A file that is no VOC annotation; the text says why."""


class VocObject(NamedTuple):
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
    with open(path, "rb", buffering=0) as file:
        data = file.read()
    text, plain = _decode(data)
    try:
        root = ET.fromstring(text)
    except (ET.ParseError, ValueError) as error:
        raise BrokenXml(str(error)) from error
    if "xmlns" in text or "<xml:" in text or "<!ENTITY" in text:  # else no tag has a namespace
        for item in root.iter():
            if isinstance(item.tag, str) and item.tag.startswith("{"):
                item.tag = item.tag.rpartition("}")[2]
                plain = False
    if root.tag != "annotation":
        raise BrokenXml(f"the outermost element is <{root.tag}>, expected <annotation>")
    return root, plain


def _decode(data: bytes) -> tuple[str, bool]:
    """The text, and whether it is UTF-8 and says nothing else."""
    encoding = ""
    if not data.startswith(b"<a"):
        encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "")
    if not encoding:
        declared = _DECLARED.match(data)
        encoding = declared[1].decode() if declared else "utf-8"
        if declared and re.match(
            r"(utf|ucs|iso-10646-ucs)[-_]?(16|32|2|4)", encoding, re.IGNORECASE
        ):
            raise BrokenXml(f"the encoding {encoding} is declared, but the file is in another")
    try:
        plain = encoding == "utf-8" or codecs.lookup(encoding).name in ("utf-8", "ascii")
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


def texts_below(item: ET.Element, tag: str, keys: Sequence[str]) -> list[str | None]:
    """Texts of the elements tag/key, the first of each key; None where there is none."""
    parents = item.findall(tag)
    if len(parents) == 1:
        return [parents[0].findtext(key) for key in keys]
    return [item.findtext(f"{tag}/{key}") for key in keys]


def read_object(item: ET.Element) -> VocObject:
    """Reads an <object>; flags may be written 0 and 1, True and False, yes and no.

    Raises:
        BrokenXml: naming the field.
    """
    texts = texts_below(item, "bndbox", EDGES)
    (xmin, plain0), (ymin, plain1), (xmax, plain2), (ymax, plain3) = map(_position, texts)
    if xmin is None or ymin is None or xmax is None or ymax is None:
        raise BrokenXml(f"bndbox must hold numbers {', '.join(EDGES)}: {texts}")
    written, pose = item.findtext("name") or "", item.findtext("pose") or ""
    flag = item.findtext("difficult")
    difficult, plain4 = _flag(flag)
    if difficult is None:
        raise BrokenXml(f"difficult must be 0 or 1, got {flag!r}")
    # Not used by any metric; some tools keep a share of the object here.
    truncated, plain5 = _flag(item.findtext("truncated"))
    name = written.strip()
    plain = plain0 and plain1 and plain2 and plain3 and plain4 and plain5
    plain = plain and bool(pose) and name == written
    pose = pose.strip() or "Unspecified"
    return VocObject(name, pose, truncated or 0, difficult, (xmin, ymin, xmax, ymax), plain)


@lru_cache(maxsize=_REMEMBERED)
def _position(text: str | None) -> tuple[float | None, bool]:
    """The number that a field holds, and whether Detectron2 reads it from there, rounded."""
    value = number(text)
    return value, value is not None and (text or "").strip() == str(round(value))


@lru_cache(maxsize=_REMEMBERED)
def _flag(text: str | None) -> tuple[int | None, bool]:
    """The flag that a field holds, and whether Detectron2 reads it from there, or no flag as 0."""
    word = (text or "").strip()
    flag = _FLAGS.get(word.lower())
    if flag is None and (value := number(word)) in (0, 1):
        flag = int(value)
    return flag, word == str(flag or 0)


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
