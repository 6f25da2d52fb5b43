"""Malformed datasets of PASCAL VOC's format, and what has to come of each.

Four images (64 x 48 pixels) with one object each; see :mod:`annotation_cases` for a case.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.campaigns.annotation_cases import Case, pixels

CASES: list[Case] = []

_OBJECT = (
    "<object><name>a</name><pose>x</pose><truncated>0</truncated><difficult>0</difficult>"
    "<bndbox><xmin>5</xmin><ymin>5</ymin><xmax>30</xmax><ymax>30</ymax></bndbox></object>"
)
_SIZE = "<size><width>64</width><height>48</height><depth>3</depth></size>"
_XML = f"<annotation><filename>1.jpg</filename>{_SIZE}{_OBJECT}</annotation>"


def base(folder: Path) -> None:
    """The whole dataset without a fault."""
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    for i in range(1, 5):
        pixels(seed=i).save(folder / "JPEGImages" / f"{i}.jpg")
        content = _XML.replace("1.jpg", f"{i}.jpg").replace(">a<", f">{'abca'[i - 1]}<")
        (folder / "Annotations" / f"{i}.xml").write_text(content)
    (folder / "ImageSets/Main/train.txt").write_text("1\n2\n3\n4\n")


def case(title: str, expected: int | str, files: Callable[[Path], Any]) -> None:
    CASES.append(Case(title, expected, files))


def xml(title: str, expected: int | str, content: str | bytes) -> None:
    data = content if isinstance(content, bytes) else content.encode()
    path = "Annotations/1.xml"
    case(f"XML {title}", expected, lambda folder: (folder / path).write_bytes(data))


def replaced(title: str, expected: int | str, old: str, new: str) -> None:
    assert old in _XML
    xml(title, expected, _XML.replace(old, new))


def split(title: str, expected: int | str, content: str | bytes) -> None:
    data = content if isinstance(content, bytes) else content.encode()
    path = "ImageSets/Main/train.txt"
    case(f"split {title}", expected, lambda folder: (folder / path).write_bytes(data))


_FILE = r"Annotations/1\.xml"
_LAUGHS = "".join(f"<!ENTITY a{i} '{f'&a{i - 1};' * 10}'>" for i in range(1, 10))
_LAUGHS = f"<!DOCTYPE l [<!ENTITY a0 'lol'>{_LAUGHS}]>"
xml("billion laughs", _FILE, _LAUGHS + _XML.replace("<name>a<", "<name>&a9;<"))
_LONG = f"<!DOCTYPE l [<!ENTITY a '{'x' * 200_000}'>]>"
xml("quadratic blow-up", _FILE, _LONG + _XML.replace("<name>a<", f"<name>{'&a;' * 20_000}<"))
_SYSTEM = "<!DOCTYPE l [<!ENTITY e SYSTEM 'file:///etc/passwd'>]>"
xml("external entity", _FILE, _SYSTEM + _XML.replace("<name>a<", "<name>&e;<"))
xml("external DTD, unused", 4, "<!DOCTYPE l SYSTEM 'http://127.0.0.1:9/x.dtd'>" + _XML)
xml("empty", _FILE, "")
xml("not XML", _FILE, "hello")
xml("not closed", _FILE, _XML.replace("</annotation>", ""))
xml("binary", _FILE, b"\x00\x01\x02")
xml("invalid UTF-8", _FILE, _XML.replace("1.jpg", "\xe9.jpg").encode("latin-1"))
xml("depth 100,000", _FILE, "<a>" * 100_000 + "</a>" * 100_000)
xml("UTF-16", 4, _XML.encode("utf-16"))
xml("with a BOM", 4, b"\xef\xbb\xbf" + _XML.encode())
_LATIN = "<?xml version='1.0' encoding='ISO-8859-1'?>" + _XML.replace("1.jpg", "caf\xe9.jpg")
xml("ISO-8859-1", 4, _LATIN.encode("latin-1"))
xml("namespace", 4, _XML.replace("<annotation>", "<annotation xmlns='http://x'>"))
_MANY = "".join(
    _OBJECT.replace("xmin>5<", f"xmin>{x}<").replace("ymin>5<", f"ymin>{y}<")
    for x in range(1, 26)
    for y in range(1, 26)
)
xml("625 objects", 628, _XML.replace(_OBJECT, _MANY))
replaced("no object", 3, _OBJECT, "")
replaced("class unknown", _FILE, "<name>a<", "<name>zebra<")
replaced("class ../x", _FILE, "<name>a<", "<name>../x<")
replaced("class absent", _FILE, "<name>a</name>", "")
replaced("class empty", _FILE, "<name>a<", "<name><")
_BOX = _OBJECT[_OBJECT.index("<bndbox>") : _OBJECT.index("</object>")]
replaced("box absent", _FILE, _BOX, "")
for text in ("five", "nan", "-inf", "-500", "", "9999"):
    replaced(f"xmin {text!r}", _FILE, "<xmin>5<", f"<xmin>{text}<")
for text in ("1e400", "1", "5", "9999"):
    replaced(f"xmax {text!r}", _FILE, "<xmax>30<", f"<xmax>{text}<")
replaced("xmin 5.7", 4, "<xmin>5<", "<xmin>5.7<")
replaced("3 pixels outside", 4, "<xmin>5<", "<xmin>-2<")
replaced("width 0", 4, "<width>64<", "<width>0<")
replaced("width wrong", _FILE, "<width>64<", "<width>63<")
replaced("width a text", 4, "<width>64<", "<width>w<")
replaced("no size", 4, _SIZE, "")
replaced("difficult 1", 4, "<difficult>0<", "<difficult>1<")
replaced("difficult True", 4, "<difficult>0<", "<difficult>True<")
replaced("difficult maybe", _FILE, "<difficult>0<", "<difficult>maybe<")
replaced("difficult 1e9", _FILE, "<difficult>0<", "<difficult>1e9<")
replaced("no pose", 4, "<pose>x</pose>", "")
case("XML absent", _FILE, lambda d: (d / "Annotations/1.xml").unlink())


def _in_place_of_xml(make: Callable[[Path], Any]) -> Callable[[Path], None]:
    def files(folder: Path) -> None:
        path = folder / "Annotations" / "1.xml"
        path.unlink()
        make(path)

    return files


case("XML a folder", _FILE, _in_place_of_xml(lambda p: p.mkdir()))
case("XML a link to /etc/passwd", _FILE, _in_place_of_xml(lambda p: p.symlink_to("/etc/passwd")))
case("XML a link to itself", _FILE, _in_place_of_xml(lambda p: p.symlink_to(p)))

_LIST = r"ImageSets/Main/train\.txt"
split("empty", _LIST, "")
split("binary", _LIST, b"\xff\xfe\x00")
split("with a BOM", 4, b"\xef\xbb\xbf1\n2\n3\n4\n")
split("with Windows' line ends", 4, "1\r\n2\r\n3\r\n4\r\n")
split("with a class's columns", 4, "1 1\n2 -1\n3 1\n4 -1\n")
split("with file names", 4, "1.jpg\n2.jpg\n3.jpg\n4.jpg\n")
split("with an id twice", _LIST, "1\n1\n2\n3\n")
split("with an unknown id", "99", "1\n2\n3\n99\n")
split("with a null byte", _LIST, "1\n2\n3\n4\0\n")
case("split absent", _LIST, lambda d: (d / "ImageSets/Main/train.txt").unlink())
case("ROOT absent", "set", lambda d: shutil.rmtree(d))


def _sub_folder(folder: Path) -> None:
    for name in ("JPEGImages/1.jpg", "Annotations/1.xml"):
        kind, file = name.split("/")
        (folder / kind / "sub").mkdir()
        shutil.move(folder / name, folder / kind / "sub" / file)
    (folder / "Annotations/sub/1.xml").write_text(_XML.replace("<pose>x</pose>", ""))
    (folder / "ImageSets/Main/train.txt").write_text("sub/1\n2\n3\n4\n")


case("split id in a sub-folder, XML to be normalised", 4, _sub_folder)


def _victim(name_of: Callable[[Path], str]) -> Callable[[Path], None]:
    """A split that names files beside the dataset, which nothing may touch."""

    def files(folder: Path) -> None:
        victim = folder.parent / "victim"
        victim.mkdir()
        pixels().save(victim / "pic.jpg")
        (victim / "pic.xml").write_text(_XML.replace("<pose>x</pose>", ""))
        (folder / "ImageSets/Main/train.txt").write_text(f"{name_of(victim)}\n2\n3\n4\n")

    return files


case("split id absolute", _LIST, _victim(lambda victim: f"{victim}/pic"))
case("split id ../../victim/pic", _LIST, _victim(lambda victim: "../../victim/pic"))
case("split id ../../../../../victim/pic", _LIST, _victim(lambda v: "../../../../../victim/pic"))
