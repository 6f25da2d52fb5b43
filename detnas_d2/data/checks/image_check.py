"""Reads the headers of many images, and looks whether the files reach their ends."""

from __future__ import annotations

import os
import stat
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

from detnas_d2.data.checks.image_ends import TAIL, is_whole, jpeg_is_whole, png_chunks
from detnas_d2.data.checks.jpeg_header import HEAD, plain_jpeg
from detnas_d2.data.checks.many_files import read_each

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".gif")

_JPEG = (".jpg", ".jpeg")
_ORIENTATION = 0x0112
_TRANSPOSED = (5, 6, 7, 8)
# PNG chunks that may hold an orientation: EXIF, XMP, ImageMagick's "Raw profile type exif".
_METADATA_CHUNKS = frozenset((b"eXIf", b"iTXt", b"tEXt", b"zTXt"))


_NAMED = 3  # files that a note names


@dataclass(frozen=True)
class ImageHeader:
    """Size in pixels as Detectron2 reads the image, or the problem that prevents reading.

    ``orientation`` (1 to 8, as in EXIF) tells how the stored pixels are turned when they are read.
    Files with other ``content`` differ; those with the same are most likely equal.
    """

    width: int = 0
    height: int = 0
    kind: str = ""
    message: str = ""
    orientation: int = 1
    content: str = ""

    @property
    def stored(self) -> tuple[int, int]:
        """Width and height of the pixels in the file, before they are turned."""
        if self.orientation in _TRANSPOSED:
            return self.height, self.width
        return self.width, self.height


def read_header(path: str, decode: bool = False) -> ImageHeader:
    """Opens one image; ``decode`` also reads all of its pixels.

    Without it, they are read only where the file does not reach to the end of its image.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        return ImageHeader(kind="missing_image", message=f"no such image file ({error.strerror})")
    except ValueError as error:  # a name that no file can have
        return ImageHeader(kind="missing_image", message=f"no such image file ({error})")
    if not stat.S_ISREG(status.st_mode):
        return ImageHeader(kind="missing_image", message="no such image file (not a regular file)")
    try:
        if not decode and path.lower().endswith(_JPEG):
            plain = _plain_header(path, status.st_size)
            if plain is not None:
                return plain
        with open(path, "rb") as file, Image.open(file) as image:
            return _header(image, file, status.st_size, decode)
    except Exception as error:  # Pillow's decoders raise many types
        return ImageHeader(kind="unreadable_image", message=unreadable(error, path))


def unreadable(error: Exception, path: str) -> str:
    """Why a file cannot be read as an image, by the error of its decoder."""
    if isinstance(error, UnidentifiedImageError):
        empty = os.path.isfile(path) and not os.path.getsize(path)
        return "the file is empty" if empty else "no image in a format that Pillow reads"
    if isinstance(error, OSError) and error.strerror:  # of the system, not of a decoder
        return error.strerror
    return f"{type(error).__name__}: {error}"


def depth_problem(image: Image.Image) -> str:
    """Reason why Detectron2 cannot show an image of this mode to a network; "" if it can.

    Pillow clips pixels of more than 8 bits at 255, so that most of them become white. What range
    of values counts is for the user to say.
    """
    if not image.mode.startswith(("I", "F")):
        return ""
    return (
        f"its pixels have more than 8 bits (Pillow's mode {image.mode}), and would be cut off at "
        "255, most of them white; convert the file to 8 bits a channel (mogrify -depth 8 FILE, "
        "where its values fill 16 bits)"
    )


def size_read(path: str, header: ImageHeader, stated: tuple[object, object]) -> str:
    """The size of an image of which an annotation states another, and a turn that explains it."""
    width, height = header.width, header.height
    if stated != header.stored:
        return f"{path} has {width} x {height}"
    return (
        f"{path} has an EXIF orientation of {header.orientation}, by which Detectron2 turns it to "
        f"{width} x {height}: state that size and the boxes in the turned image, or remove the "
        "orientation from the file"
    )


def turned_note(names: Sequence[str]) -> str:
    """A note on images that are turned."""
    return (
        f"{len(names)} images are turned as their EXIF orientation says, e.g. "
        f"{', '.join(names[:_NAMED])}: boxes must be those of the turned images"
    )


def _plain_header(path: str, size: int) -> ImageHeader | None:
    """Of a file that Pillow need not open; None of any other."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        head = os.read(descriptor, HEAD)
        tail = os.pread(descriptor, TAIL, max(0, size - TAIL))
    finally:
        os.close(descriptor)
    found = plain_jpeg(head)
    if found is None or not jpeg_is_whole(found.pixels, size, tail):
        return None
    return ImageHeader(found.width, found.height, content=_content(size, tail))


def _content(size: int, tail: bytes) -> str:
    return f"{size}-{zlib.crc32(tail):08x}"


def _header(image: Image.Image, file: BinaryIO, size: int, decode: bool) -> ImageHeader:
    width, height = image.size
    problem = depth_problem(image)
    if problem:
        return ImageHeader(kind="deep_image", message=problem)
    tail = os.pread(file.fileno(), TAIL, max(0, size - TAIL))
    if image.format == "PNG":
        whole, chunks = png_chunks(file, size)
    else:
        whole, chunks = is_whole(image, file, size, tail), frozenset()
    if decode or not whole:
        image.load()
    orientation = _orientation(image, chunks)
    if orientation != 1 and image.format == "TIFF":
        message = (
            f"a TIFF file with an orientation of {orientation} is turned twice, by Pillow and by "
            "Detectron2; remove the orientation from the file"
        )
        return ImageHeader(kind="unreadable_image", message=message)
    if orientation in _TRANSPOSED:
        width, height = height, width
    return ImageHeader(width, height, orientation=orientation, content=_content(size, tail))


def _orientation(image: Image.Image, late_chunks: frozenset[bytes]) -> int:
    """Turn of the image by Detectron2's ``read_image``.

    Args:
        late_chunks: types of a PNG's chunks behind its pixels.
    """
    try:
        if image.format == "PNG" and not late_chunks & _METADATA_CHUNKS:
            exif = Image.Image.getexif(image)  # PNG's own decodes the image to get behind it
        else:
            exif = image.getexif()
        value = exif.get(_ORIENTATION, 1)
    except Exception:  # Detectron2 then leaves the image as it is
        return 1
    return value if value in range(1, 9) else 1


def read_headers(paths: Sequence[str], decode: bool = False) -> list[ImageHeader]:
    """:func:`read_header` of each path, in order."""
    return read_each(partial(read_header, decode=decode), paths, "images", threads=decode)
