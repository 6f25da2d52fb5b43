"""Malformed annotations and images of COCO format, and what has to come of each.

A case changes a dataset of four images (64 x 48 pixels) with one object each. ``expected`` is the
number of objects that training gets, or what the error must say beside the file.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

NAN, INFINITY = float("nan"), float("inf")
_ABSENT = object()


@dataclass(frozen=True)
class Case:
    """``files`` gets the dataset's folder, in which ``a.json`` and ``images`` lie."""

    title: str
    expected: int | str
    files: Callable[[Path], None]


CASES: list[Case] = []


def pixels(width: int = 64, height: int = 48, seed: int = 0) -> Image.Image:
    random = np.random.RandomState(seed)
    return Image.fromarray(random.randint(0, 255, (height, width, 3), dtype=np.uint8))


def annotations() -> dict[str, Any]:
    data: dict[str, Any] = {"images": [], "annotations": []}
    data["categories"] = [{"id": i + 1, "name": name} for i, name in enumerate("abc")]
    for i in range(1, 5):
        data["images"].append({"id": i, "file_name": f"{i}.png", "width": 64, "height": 48})
        data["annotations"].append(
            {
                "id": i,
                "image_id": i,
                "category_id": i % 3 + 1,
                "bbox": [5, 5, 20, 20],
                "area": 400,
                "iscrowd": 0,
                "segmentation": [[5, 5, 25, 5, 25, 25]],
            }
        )
    return data


def write(folder: Path, data: Any) -> None:
    (folder / "a.json").write_text(json.dumps(data))


def base(folder: Path) -> None:
    """The whole dataset without a fault, and an image beside its folder of images."""
    (folder / "images").mkdir(parents=True)
    for i in range(1, 5):
        pixels(seed=i).save(folder / "images" / f"{i}.png")
    pixels().save(folder / "outside.png")
    write(folder, annotations())


def changed(title: str, expected: int | str, change: Callable[[dict[str, Any]], Any]) -> None:
    def files(folder: Path) -> None:
        data = annotations()
        change(data)
        write(folder, data)

    CASES.append(Case(title, expected, files))


def at(title: str, expected: int | str, *path_and_value: Any) -> None:
    *path, key, value = path_and_value

    def change(data: Any) -> None:
        for step in path:
            data = data[step]
        if value is _ABSENT:
            del data[key]
        else:
            data[key] = value

    changed(title, expected, change)


def raw(title: str, expected: int | str, content: bytes) -> None:
    CASES.append(Case(title, expected, lambda folder: (folder / "a.json").write_bytes(content)))


# --- the file -------------------------------------------------------------------------------------

_FILE = r"\[broken_annotation_file\] "
raw("not JSON", _FILE, b"hello")
raw("truncated JSON", _FILE, b'{"images": [{"id": 1')
raw("empty file", _FILE, b"")
raw("top is a list", "'images'", b"[]")
raw("null", "'images'", b"null")
raw("a number", "'images'", b"7")
raw("deep nesting", _FILE, b"[" * 200_000)
raw("number of 100,000 digits", _FILE, b'{"images": [{"id": ' + b"9" * 100_000 + b"}]}")
raw("UTF-16", 4, json.dumps(annotations()).encode("utf-16"))
raw("UTF-8 with a BOM", 4, b"\xef\xbb\xbf" + json.dumps(annotations()).encode())
raw("invalid UTF-8", _FILE, b'{"images": ["\xff\xfe"]}')
raw("a pickle", _FILE, b"\x80\x04\x95")
raw("null bytes behind the end", _FILE, json.dumps(annotations()).encode() + b"\0" * 10)
raw("a comment", _FILE, b"// mine\n" + json.dumps(annotations()).encode())
raw("two documents", _FILE, json.dumps(annotations()).encode() * 2)

for key in ("images", "annotations", "categories"):
    at(f"{key} null", f"'{key}'", key, None)
    at(f"{key} a mapping", f"'{key}'", key, {"a": 1})
    at(f"{key} a text", f"'{key}'", key, "x")
at("images absent", "'images'", "images", _ABSENT)
at("categories absent", "'categories'", "categories", _ABSENT)
at("annotations absent", "no object to learn from", "annotations", _ABSENT)
at("images empty", "annotations.0", "images", [])
at("annotations empty", "no object to learn from", "annotations", [])
at("categories empty", "'categories' is empty", "categories", [])
at("extra key __class__", 4, "__class__", "os.system")
at("NaN in a field that nobody reads", 4, "annotations", 0, "score", NAN)
at("1e400 in a field that nobody reads", 4, "annotations", 0, "score", INFINITY)

# --- categories -----------------------------------------------------------------------------------

for title, value in (("null", None), ("a list", ["a"]), ("empty", ""), ("a boolean", True)):
    at(f"category name {title}", r"categories\[0\]: 'name'", "categories", 0, "name", value)
for title, value in (("null", None), ("a list", [1]), ("a mapping", {}), ("1.5", 1.5)):
    at(f"category id {title}", r"categories\[0\]: 'id'", "categories", 0, "id", value)
at("category id absent", r"categories\[0\]: 'id'", "categories", 0, {"name": "a"})
at("category a text", r"categories\[0\]", "categories", 0, "a")
at("category null", r"categories\[0\]", "categories", 0, None)
at("category id twice", r"categories\[1\]: the id 1 occurs twice", "categories", 1, "id", 1)
at("category name twice", "'a' occurs twice", "categories", 1, "name", "a")
at("category id of another type", r"categories\[1\]: the id 2", "categories", 0, "id", "x")
at("category name a number", 4, "categories", 0, "name", 7)
at("category name with a slash", 4, "categories", 0, "name", "../x")
at("category name of 10,000 characters", 4, "categories", 0, "name", "x" * 10_000)
at("category name of unusual characters", 4, "categories", 0, "name", "\u732b\U0001f600\u202e")
changed(
    "a root category named like a class",
    4,
    lambda d: d["categories"].insert(0, {"id": 0, "name": "a", "supercategory": "none"}),
)


def _texts(data: dict[str, Any]) -> None:
    for entry, key in ((c, "id") for c in data["categories"]):
        entry[key] = f"c{entry[key]}"
    for annotation in data["annotations"]:
        annotation["category_id"] = f"c{annotation['category_id']}"


changed("category ids that are texts", 4, _texts)

# --- images ---------------------------------------------------------------------------------------

_ENTRY = r"images\[0\]"
for title, value in (("null", None), ("1.5", 1.5), ("a boolean", True), ("a list", [1])):
    at(f"image id {title}", _ENTRY, "images", 0, "id", value)
at("image id NaN", _ENTRY, "images", 0, "id", NAN)
at("image id absent", _ENTRY, "images", 0, "id", _ABSENT)
at("image id a text", r"annotations\[0\] .*image_id 1 is not", "images", 0, "id", "one")
at("image id 2**70", r"annotations\[0\] .*image_id 1 is not", "images", 0, "id", 2**70)
at("image id 1.0", 4, "images", 0, "id", 1.0)
at("image id of two images", r"images\[0\].*several files", "images", 0, "id", 2)
changed("an image twice", "occurs twice", lambda d: d["images"].append({**d["images"][0]}))
at("image a text", _ENTRY, "images", 0, "x")
at("image null", _ENTRY, "images", 0, None)
for title, value in (("a number", 5), ("null", None), ("empty", ""), ("a list", ["1.png"])):
    at(f"file_name {title}", _ENTRY, "images", 0, "file_name", value)
at("file_name absent", _ENTRY, "images", 0, "file_name", _ABSENT)
_DEEP = "../" * 12
for title, value in (
    ("/etc/passwd", "/etc/passwd"),
    ("../../etc/passwd", _DEEP + "etc/passwd"),
    ("with a null byte", "a\0b.png"),
    ("of 5,000 characters", "x" * 5000),
    ("a folder", "."),
    ("/dev/zero", "/dev/zero"),
    ("with a newline", "1\n.png"),
    ("a lone surrogate", "\ud800.png"),
    ("of another machine", "http://127.0.0.1:1/x.png"),
):
    at(f"file_name {title}", r"\[(missing|unreadable)_image\]", "images", 0, "file_name", value)
at("file_name ../outside.png, an image", 4, "images", 0, "file_name", "../outside.png")
for title, value in (("65", 65), ("a text", "64"), ("null", None), ("0", 0), ("10**9", 10**9)):
    at(f"width {title}", r"images\[0\] \(id 1\): width", "images", 0, "width", value)
at("width NaN", r"images\[0\] \(id 1\): width", "images", 0, "width", NAN)
at("width 64.0", 4, "images", 0, "width", 64.0)
changed("no sizes", 4, lambda d: [i.pop(k) for i in d["images"] for k in ("width", "height")])

# --- annotations ----------------------------------------------------------------------------------

_PLACE = r"a\.json, annotations\[0\]"
for title, value in (
    ("NaN", [NAN, 1, 2, 3]),
    ("Infinity", [1, 1, INFINITY, 3]),
    ("of negative size", [5, 5, -3, 4]),
    ("of no size", [5, 5, 0, 4]),
    ("of 1e-9", [5, 5, 1e-9, 1e-9]),
    ("outside", [500, 500, 20, 20]),
    ("just outside", [64, 5, 2, 5]),
    ("much larger than the image", [-50, -50, 200, 200]),
    ("of texts", ["1", "1", "5", "5"]),
    ("of 3 numbers", [1, 1, 5]),
    ("of 5 numbers", [1, 1, 5, 5, 30]),
    ("null", None),
    ("empty", []),
    ("a mapping", {"x": 1}),
    ("of booleans", [True] * 4),
    ("1e300", [0, 0, 1e300, 1e300]),
    ("10**400", [0, 0, 10**400, 5]),
):
    at(f"bbox {title}", _PLACE, "annotations", 0, "bbox", value)
at("bbox absent", _PLACE, "annotations", 0, "bbox", _ABSENT)
at("bbox 3 pixels outside", 4, "annotations", 0, "bbox", [-3, -3, 70, 54])
changed(
    "bbox shares of the image",
    "no box reaches beyond the first pixel",
    lambda d: [a.update(bbox=[0.1, 0.1, 0.3, 0.3]) for a in d["annotations"]],
)
for key in ("category_id", "image_id"):
    values = (("unknown", 99), ("a text", "a"), ("null", None), ("a list", [1]), ("1.5", 1.5))
    for title, value in values:
        at(f"{key} {title}", _PLACE, "annotations", 0, key, value)
    at(f"{key} absent", _PLACE, "annotations", 0, key, _ABSENT)
at("image_id 1.0", 4, "annotations", 0, "image_id", 1.0)
at("category_id 1.0", 4, "annotations", 0, "category_id", 1.0)
for title, value in (("a text", "x"), ("null", None), ("a list", [1]), ("a number", 3)):
    at(f"annotation {title}", _PLACE, "annotations", 0, value)
for title, value in (("twice", 2), ("a text", "x"), ("a list", [1]), ("0", 0), ("2**60", 2**60)):
    at(f"annotation id {title}", 4, "annotations", 0, "id", value)
at("annotation id absent", 4, "annotations", 0, "id", _ABSENT)
for title, value in (("yes", "yes"), ("7", 7), ("a list", [0]), ("NaN", NAN)):
    at(f"iscrowd {title}", _PLACE, "annotations", 0, "iscrowd", value)
for title, value in (("null", None), ("'0'", "0"), ("false", False), ("0.0", 0.0)):
    at(f"iscrowd {title}", 4, "annotations", 0, "iscrowd", value)
at("iscrowd '1'", 3, "annotations", 0, "iscrowd", "1")
changed(
    "all crowd",
    "no object to learn from: its 4 annotations are crowd regions",
    lambda d: [a.update(iscrowd=1) for a in d["annotations"]],
)
for title, value in (("NaN", NAN), ("a text", "big"), ("-4", -4), ("null", None), ("[]", [])):
    at(f"area {title}", 4, "annotations", 0, "area", value)
at("area absent", 4, "annotations", 0, "area", _ABSENT)
at("ignore 1", _PLACE, "annotations", 0, "ignore", 1)
for title, value in (
    ("of 3 numbers", [[1, 2, 3]]),
    ("of an odd number", [[1, 2, 3, 4, 5, 6, 7]]),
    ("of nothing", [[]]),
    ("a flat list", [5, 5, 25, 5, 25, 25]),
    ("points", [[[5, 5], [25, 5], [25, 25]]]),
    ("of NaN", [[NAN] * 6]),
    ("a text", "x"),
    ("null", None),
    ("a number", 5),
    ("a broken encoding", {"size": [1, 1], "counts": "~~~"}),
    ("a list of runs without a size", {"counts": [1, 2]}),
    ("a mapping", {}),
):
    at(f"segmentation {title}", 4, "annotations", 0, "segmentation", value)
for title, value in (("2 numbers", [1, 2]), ("texts", ["a"]), ("a text", "x"), ("null", None)):
    at(f"keypoints {title}", 4, "annotations", 0, "keypoints", value)

# --- image files ----------------------------------------------------------------------------------


def image(title: str, expected: int | str, make: Callable[[Path], Any]) -> None:
    """``make`` writes 1.png anew; the size in the annotations is the file's."""

    def files(folder: Path) -> None:
        path = folder / "images" / "1.png"
        path.unlink()
        make(path)
        if path.is_file():
            data = annotations()
            try:
                limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
                with Image.open(path) as opened:
                    data["images"][0] |= dict(zip(("width", "height"), opened.size, strict=True))
            except Exception:  # no image
                pass
            finally:
                Image.MAX_IMAGE_PIXELS = limit
            write(folder, data)

    CASES.append(Case(f"image: {title}", expected, files))


def encoded(format: str, image: Image.Image | None = None, **options: Any) -> bytes:
    buffer = io.BytesIO()
    (image or pixels()).save(buffer, format, **options)
    return buffer.getvalue()


def content(title: str, expected: int | str, make: Callable[[], bytes]) -> None:
    image(title, expected, lambda path: path.write_bytes(make()))


def chunk(kind: bytes, data: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + checksum


def empty_png(width: int, height: int) -> bytes:
    """A PNG of 1 bit a pixel, all black: a file some thousand times smaller than its pixels."""
    row = b"\0" * (1 + (width + 7) // 8)
    packer = zlib.compressobj(9)
    data = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def _oriented(format: str, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(format, exif=exif)


_UNREADABLE = r"\[unreadable_image\] .*1\.png: "
_MISSING = r"\[missing_image\] .*1\.png: "
content("zero bytes", _UNREADABLE, lambda: b"")
content("text", _UNREADABLE, lambda: b"hello")
content("SVG", _UNREADABLE, lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>")
content("EPS", _UNREADABLE, lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 48\n(x) run\n")
content("only the PNG's header", _UNREADABLE, lambda: encoded("PNG")[:33])
for format in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"):
    content(
        f"{format} cut to half", _UNREADABLE, lambda f=format: encoded(f)[: -len(encoded(f)) // 2]
    )
    content(f"{format} named .png", 4, lambda f=format: encoded(f))
content("PNG without its last 100 bytes", _UNREADABLE, lambda: encoded("PNG")[:-100])
content("PNG without its end, but with all pixels", 4, lambda: encoded("PNG")[:-12])
content("JPEG without its last 20 bytes", _UNREADABLE, lambda: encoded("JPEG")[:-20])
content("bytes behind the PNG's end", 4, lambda: encoded("PNG") + b"\0" * 9999)
content("bytes behind the JPEG's end", 4, lambda: encoded("JPEG") + b"\0" * 9999)
content("900 million pixels", _UNREADABLE, lambda: empty_png(30_000, 30_000))
image(
    "16 bits, grey",
    r"\[deep_image\] .*1\.png: ",
    lambda p: Image.fromarray(np.full((48, 64), 40_000, dtype=np.uint16)).save(p),
)
content(
    "floats",
    r"\[deep_image\] .*1\.png: ",
    lambda: encoded("TIFF", Image.fromarray(np.ones((48, 64), dtype=np.float32))),
)
for mode in ("L", "1", "P", "LA", "RGBA"):
    content(f"mode {mode}", 4, lambda m=mode: encoded("PNG", pixels().convert(m)))
content("CMYK", 4, lambda: encoded("JPEG", pixels().convert("CMYK")))
content("1 x 1 pixel", _PLACE, lambda: encoded("PNG", pixels(1, 1)))
content("1 x 5000 pixels", _PLACE, lambda: encoded("PNG", pixels(1, 5000)))
for format in ("JPEG", "PNG", "WEBP"):
    content(
        f"{format}, EXIF orientation 6",
        "an EXIF orientation of 6",
        lambda f=format: _oriented(f, 6),
    )
    content(f"{format}, EXIF orientation 3", 4, lambda f=format: _oriented(f, 3))
    content(f"{format}, EXIF orientation 99", 4, lambda f=format: _oriented(f, 99))
content("TIFF, orientation 6", "turned twice", lambda: _oriented("TIFF", 6))
image("link to /etc/passwd", _UNREADABLE, lambda p: p.symlink_to("/etc/passwd"))
image("link to an image outside", 4, lambda p: p.symlink_to(p.parents[1] / "outside.png"))
image("dangling link", _MISSING, lambda p: p.symlink_to("/nowhere"))
image("link to itself", _MISSING, lambda p: p.symlink_to(p))
image("a pipe", _MISSING, lambda p: os.mkfifo(p))
image("a folder", _MISSING, lambda p: p.mkdir())
image("the folder of images absent", _MISSING, lambda p: shutil.rmtree(p.parent))
