"""Decoded and resized images that processes share: one file of pixels, and an index written last.

The file holds one image after another, uint8 (channels, height, width) as models take them; the
index, ``<file>.json``, a fingerprint of what they were made of, their names and shapes, and size
and time of change of the file, by which damage is found. The file is read and not mapped into
memory (as by ``numpy.lib.format.open_memmap``): a mapped file that is cut off or whose disk fails
would end the process (SIGBUS), and some file systems map nothing.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detnas_d2.utils.io import new_file, write_text
from detnas_d2.utils.locks import Lock

logger = logging.getLogger(__name__)


class CacheError(Exception):
    """Reason why a cache cannot be used."""


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
        CacheError: no such file, or it or its index is damaged.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            index = _read_index(path)
            self.fingerprint, self._state = index["fingerprint"], index["state"]
            self._entries: dict[str, list] = index["images"]
            self._file = open(path, "rb")  # noqa: SIM115
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CacheError(str(error)) from error
        self._check()

    def _check(self) -> None:
        if _state(os.fstat(self._file.fileno())) != self._state:
            raise CacheError("it was cut off or changed since it was written")

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return ImageCache, (self.path,)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def get(self, name: str) -> CachedImage:
        """The image ``name``.

        Raises:
            CacheError: the file is damaged.
        """
        start, shape, original = self._entries[name]
        size = int(np.prod(shape))
        try:
            self._check()
            content = os.pread(self._file.fileno(), size, start)  # shares no position with others
        except OSError as error:
            raise CacheError(str(error)) from error
        if len(content) != size:
            raise CacheError(f"the image {name} cannot be read")
        return CachedImage(np.frombuffer(content, np.uint8).reshape(shape), tuple(original))


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
        lock.acquire(wait=True)
        if os.path.exists(path):
            try:
                cache = ImageCache(path)
                if cache.fingerprint == json.loads(json.dumps([fingerprint, limit])):
                    return cache
                raise CacheError("made of other images, preprocessing, versions or limit")
            except CacheError as error:
                logger.warning("Image cache %s: %s; it is built again", path, error)
        build(path, fingerprint, images, limit)
        return ImageCache(path)
    finally:
        lock.release()


def build(
    path: str, fingerprint: Any, images: Iterable[tuple[str, CachedImage]], limit: int
) -> None:
    """Writes a cache, atomically; see :func:`open_or_build`."""
    entries = {}
    with new_file(path) as temporary, open(temporary, "wb") as file:
        for name, image in images:
            pixels = np.ascontiguousarray(image.pixels)
            if file.tell() + pixels.nbytes > limit:
                break
            entries[name] = [file.tell(), list(pixels.shape), list(image.original)]
            file.write(pixels.data)
    state = _state(os.stat(path))
    text = json.dumps({"fingerprint": [fingerprint, limit], "state": state, "images": entries})
    write_text(_index_file(path), f"{zlib.crc32(text.encode())}\n{text}")


def _index_file(path: str) -> str:
    return path + ".json"


def _read_index(path: str) -> dict[str, Any]:
    checksum, text = Path(_index_file(path)).read_text(encoding="utf-8").split("\n")
    if int(checksum) != zlib.crc32(text.encode()):
        raise ValueError("its index is damaged")
    return json.loads(text)


def _state(status: os.stat_result) -> list[int]:
    return [status.st_size, status.st_mtime_ns]


def remove(path: str) -> None:
    """Removes the cache that :func:`open_or_build` made at ``path``, if it is there."""
    for name in (path, _index_file(path), path + ".lock"):
        with contextlib.suppress(OSError):  # not there, or something else that bears its name
            os.unlink(name)
