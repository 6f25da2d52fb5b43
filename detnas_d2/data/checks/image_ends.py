"""Whether image files are cut off, told without decoding them."""

from __future__ import annotations

import os
from typing import BinaryIO

from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile

TAIL = 2048
"""Bytes at the end of a file that are looked at."""


def png_chunks(file: BinaryIO, size: int) -> tuple[bool, frozenset[bytes]]:
    """(Whether the file has all chunks up to IEND, the types of those after the first IDAT)."""
    offset, pixels = 8, False
    late: set[bytes] = set()
    while offset + 12 <= size:  # length, type and checksum
        head = os.pread(file.fileno(), 8, offset)
        kind = head[4:]
        if kind == b"IEND":
            return True, frozenset(late)
        if kind == b"IDAT":
            pixels = True
        elif pixels:
            late.add(kind)
        offset += 12 + int.from_bytes(head[:4], "big")
    return False, frozenset(late)


def jpeg_is_whole(pixels: int, size: int, tail: bytes) -> bool:
    """Whether a JPEG file whose header ends at ``pixels`` has an end after that; the header may
    hold a preview with an end.
    """
    return tail.find(b"\xff\xd9", max(0, pixels - (size - len(tail)))) >= 0


def is_whole(image: Image.Image, file: BinaryIO, size: int, tail: bytes) -> bool:
    """Whether an opened file of ``size`` bytes reaches to the end of its image.

    False also for formats of which only decoding can tell.

    Args:
        tail: the file's last TAIL bytes, or all of them.
    """
    if image.format in ("JPEG", "MPO"):
        return jpeg_is_whole(file.tell(), size, tail)
    if image.format == "GIF":
        return tail.rstrip(b"\0").endswith(b";")
    if image.format == "WEBP":
        return int.from_bytes(os.pread(file.fileno(), 4, 4), "little") + 8 <= size
    if isinstance(image, TiffImageFile):
        tags = image.tag_v2
        for offsets, counts in ((273, 279), (324, 325)):  # of strips, of tiles
            if offsets in tags and len(tags[offsets]) == len(tags.get(counts, ())):
                ends = map(sum, zip(tags[offsets], tags[counts], strict=True))
                return max(ends) <= size
        return False
    if isinstance(image, ImageFile) and image.format == "BMP":
        tiles = [tile for tile in image.tile if tile[0] == "raw"]
        strides = [(tile[2], tile[3][1]) for tile in tiles if isinstance(tile[3], tuple)]
        return bool(strides) and all(o + s * image.height <= size for o, s in strides)
    return False
