"""Image files read once per process, for many short trainings on the same images."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from detectron2.data import detection_utils

LIMIT = 2**30
"""Bytes of decoded images that are kept; those beyond are read each time."""


@contextlib.contextmanager
def images_read_once(limit: int = LIMIT) -> Iterator[None]:
    """Within the block Detectron2 decodes each image file once; what mappers get is the same.

    For a process whose image files do not change. Workers of loaders are processes of their own.
    """
    read = detection_utils.read_image
    known: dict[tuple[str, Any], np.ndarray] = {}
    room = limit

    def read_image(file_name: str, format: Any = None) -> np.ndarray:
        nonlocal room
        key = file_name, format
        if key not in known:
            image = read(file_name, format=format)
            if image.nbytes > room:
                return image
            room -= image.nbytes
            known[key] = image
        return known[key].copy()

    detection_utils.read_image = read_image
    try:
        yield
    finally:
        detection_utils.read_image = read
