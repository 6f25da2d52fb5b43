"""Reads the headers of many images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from PIL import Image

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".gif")

_ORIENTATION = 0x0112
_TRANSPOSED = (5, 6, 7, 8)


@dataclass(frozen=True)
class ImageHeader:
    """Size in pixels as Detectron2 reads the image, or the problem that prevents reading."""

    width: int = 0
    height: int = 0
    kind: str = ""
    message: str = ""


def read_header(path: str, decode: bool = False) -> ImageHeader:
    """Opens one image; ``decode`` also reads all of its pixels."""
    if not os.path.isfile(path):
        return ImageHeader(kind="missing_image", message="no such image file")
    try:
        with Image.open(path) as image:
            width, height = image.size
            if _orientation(image) in _TRANSPOSED:
                width, height = height, width
            if decode:
                image.load()
    except Exception as error:  # Pillow's decoders raise many types
        message = f"{type(error).__name__}: {error}"
        return ImageHeader(kind="unreadable_image", message=message)
    return ImageHeader(width, height)


def _orientation(image: Image.Image) -> int:
    # Asking a PNG without EXIF for it decodes the whole image.
    if image.format not in ("JPEG", "MPO", "TIFF") and "exif" not in image.info:
        return 1
    return image.getexif().get(_ORIENTATION, 1)


def read_headers(paths: Sequence[str], decode: bool = False) -> list[ImageHeader]:
    """:func:`read_header` of each path, in order, by several threads."""
    if not paths:
        return []
    threads = min(32, 4 * (os.cpu_count() or 1))
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(lambda path: read_header(path, decode), paths))
