"""A file of decoded and resized images that processes share.

Layout: the images one after another, uint8 (channels, height, width) as models take them; the
index, JSON in UTF-8; a footer with the index's place and CRC-32. The index holds a fingerprint of
what the images were made of and, per image, name, place, shapes and CRC-32. It is read, not mapped
into memory: a mapped file that is cut off or whose disk fails would end the process (SIGBUS), and
some file systems map nothing.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from detnas_d2.utils.io import new_file
from detnas_d2.utils.locks import Lock

logger = logging.getLogger(__name__)

_FOOTER = struct.Struct("<QQI8s")  # start and length of the index, its CRC-32, the layout
_LAYOUT = b"DETNAS-1"


class CacheError(Exception):
    """Why a cache cannot be used."""


@dataclass(frozen=True)
class CachedImage:
    """Attributes:
    pixels: uint8 (channels, height, width), read-only.
    original: height and width of the decoded image before resizing.
    """

    pixels: np.ndarray
    original: tuple[int, int]


class ImageCache:
    """An open cache. Pickling it takes the file's name along, not the images.

    Raises:
        CacheError: no such file, a damaged index, or another layout.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self._file = open(path, "rb")  # noqa: SIM115
            index = _read_index(self._file, os.path.getsize(path))
        except (OSError, ValueError, struct.error) as error:
            raise CacheError(str(error)) from error
        self.fingerprint: Any = index["fingerprint"]
        self._entries: dict[str, list] = index["images"]

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return ImageCache, (self.path,)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def get(self, name: str) -> CachedImage:
        """The image ``name``.

        Raises:
            CacheError: it is damaged.
        """
        start, shape, original, checksum = self._entries[name]
        size = int(np.prod(shape))
        try:
            content = os.pread(self._file.fileno(), size, start)  # shares no position with others
        except OSError as error:
            raise CacheError(str(error)) from error
        if len(content) != size or zlib.crc32(content) != checksum:
            raise CacheError(f"the image {name} is damaged")
        return CachedImage(np.frombuffer(content, np.uint8).reshape(shape), tuple(original))

    def check(self) -> None:
        """Reads everything; raises CacheError at the first damaged image."""
        for name in self._entries:
            self.get(name)


def open_or_build(
    path: str, fingerprint: Any, images: Iterable[tuple[str, CachedImage]], limit: int
) -> ImageCache:
    """The cache at ``path``, built from ``images`` unless it is there, whole and up to date.

    Processes that ask at the same time wait for the one that builds. A stale or damaged file is
    replaced, with a warning; processes that have it open keep their old one.

    Args:
        fingerprint: JSON-like; whatever the images depend on.
        images: consumed if the cache has to be built, up to the first that does not fit.
        limit: bytes of images at most.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    lock = Lock(path + ".lock")
    try:
        # If another process had it, that one has just checked or built the cache.
        first = lock.acquire(wait=False) or not lock.acquire(wait=True)
        if os.path.exists(path):
            try:
                return _up_to_date(path, fingerprint, limit, thorough=first)
            except CacheError as error:
                logger.warning("Image cache %s: %s; it is built anew", path, error)
        build(path, fingerprint, images, limit)
        return ImageCache(path)
    finally:
        lock.release()


def _up_to_date(path: str, fingerprint: Any, limit: int, *, thorough: bool) -> ImageCache:
    cache = ImageCache(path)
    expected = json.loads(json.dumps([fingerprint, limit]))
    if cache.fingerprint != expected:
        raise CacheError("made of other images, preprocessing, versions or limit")
    if thorough:
        cache.check()
    return cache


def build(
    path: str, fingerprint: Any, images: Iterable[tuple[str, CachedImage]], limit: int
) -> None:
    """Writes a cache, atomically; see :func:`open_or_build`."""
    entries: dict[str, list] = {}
    with new_file(path) as temporary, open(temporary, "wb") as file:
        for name, image in images:
            pixels = np.ascontiguousarray(image.pixels)
            if file.tell() + pixels.nbytes > limit:
                break
            shape = list(pixels.shape)
            entries[name] = [file.tell(), shape, list(image.original), zlib.crc32(pixels)]
            file.write(pixels)
        text = json.dumps({"fingerprint": [fingerprint, limit], "images": entries}).encode()
        file.write(text)
        start = file.tell() - len(text)
        file.write(_FOOTER.pack(start, len(text), zlib.crc32(text), _LAYOUT))


def remove(path: str) -> None:
    """Removes the cache that :func:`open_or_build` made at ``path``, if it is there."""
    for name in (path, path + ".lock"):
        with contextlib.suppress(OSError):  # not there, or something else that bears its name
            os.unlink(name)


def _read_index(file: Any, size: int) -> Mapping[str, Any]:
    file.seek(max(0, size - _FOOTER.size))
    start, length, checksum, layout = _FOOTER.unpack(file.read())
    if layout != _LAYOUT or start + length + _FOOTER.size != size:
        raise ValueError("truncated, or not an image cache of this version")
    file.seek(start)
    text = file.read(length)
    if zlib.crc32(text) != checksum:
        raise ValueError("its index is damaged")
    return json.loads(text)
