"""Images that a user names: files, folders and patterns."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Sequence

import numpy as np
from detectron2.data.detection_utils import read_image
from PIL import Image

from detnas_d2.data.checks.image_check import IMAGE_EXTENSIONS, depth_problem, unreadable
from detnas_d2.utils.errors import InputError


class UnreadableImage(InputError):
    """A file that is no image; the message names it."""


def find_images(inputs: Iterable[str]) -> list[str]:
    """The image files that file names, folders (not the ones below them) and patterns stand for.

    Of folders and patterns only files with an image's extension count. Each file appears once.

    Raises:
        FileNotFoundError: naming the input without an image.
    """
    found: dict[str, None] = {}
    for text in inputs:
        path = os.path.expanduser(text)
        if os.path.isfile(path):
            files = [path]
        else:
            pattern = os.path.join(glob.escape(path), "*") if os.path.isdir(path) else path
            files = [
                file
                for file in sorted(glob.glob(pattern, recursive=True))
                if file.lower().endswith(IMAGE_EXTENSIONS) and os.path.isfile(file)
            ]
        if not files:
            kinds = ", ".join(IMAGE_EXTENSIONS)
            raise InputError(
                f"{text!r}: no image found; expected a file, or a folder or a pattern of files "
                f"that end with {kinds}"
            )
        found.update((os.path.normpath(file), None) for file in files)
    return list(found)


def read_bgr(path: str) -> np.ndarray:
    """:func:`read_pixels` in BGR."""
    return read_pixels(path, "BGR")


def read_pixels(path: str, channels: str) -> np.ndarray:
    """uint8[H, W, 3], turned as its EXIF data say.

    Args:
        channels: their order, as ``INPUT.FORMAT`` names it.

    Raises:
        UnreadableImage: naming the file and what its decoder said, or that it has more than 8 bits.
    """
    try:
        with Image.open(path) as image:
            problem = depth_problem(image)
        if not problem:
            return read_image(path, format=channels)
    except Exception as error:  # Pillow's decoders raise many types
        raise UnreadableImage(f"{path}: {unreadable(error, path)}") from error
    raise UnreadableImage(f"{path}: {problem}")


def output_names(files: Sequence[str]) -> list[str]:
    """Relative names for pictures of ``files``: as the files below their common folder."""
    folders = [os.path.dirname(os.path.abspath(file)) for file in files]
    common = os.path.commonpath(folders)
    return [os.path.relpath(os.path.abspath(file), common) for file in files]
