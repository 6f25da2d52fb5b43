"""The files below a folder, seen once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from detnas_d2.utils.errors import InputError

_SKIPPED = "__MACOSX"  # what archives made by macOS hold besides the files
_AT_ONCE = 20_000  # files between two calls of ``told``


@dataclass(frozen=True)
class Tree:
    """Files by folder.

    Attributes:
        root: absolute path.
        folders: folder below the root ("" for itself) -> names of its files, sorted. Hidden files
            and folders are passed over.
        state: digest over paths, sizes and times of all files.
        only: path below the root of the one file of annotations to look at; "" for all.
    """

    root: str
    folders: Mapping[str, tuple[str, ...]]
    state: str
    only: str = ""

    def path(self, relative: str) -> str:
        return os.path.join(self.root, relative)

    def with_extension(self, *extensions: str) -> list[str]:
        """Paths of files below the root; ``extensions`` in lower case."""
        return [
            os.path.join(folder, name)
            for folder, names in self.folders.items()
            for name in names
            if name.lower().endswith(extensions)
        ]

    def annotation_files(self, *extensions: str) -> list[str]:
        """The same of files that may hold annotations."""
        found = self.with_extension(*extensions)
        return [path for path in found if path == self.only] if self.only else found

    @cached_property
    def images(self) -> list[str]:
        from detnas_d2.data.checks.image_check import IMAGE_EXTENSIONS

        return self.with_extension(*IMAGE_EXTENSIONS)

    @cached_property
    def images_by_name(self) -> dict[str, list[str]]:
        """File name -> paths below the root."""
        return _grouped(self.images, os.path.basename)

    @cached_property
    def images_by_stem(self) -> dict[str, list[str]]:
        """File name without extension -> paths below the root."""
        return _grouped(self.images, lambda path: os.path.splitext(os.path.basename(path))[0])


def _grouped(paths: Iterable[str], key: Callable[[str], str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for path in paths:
        groups.setdefault(key(path), []).append(path)
    return groups


def scan(place: str, told: Callable[[int], None] = lambda files: None) -> Tree:
    """Looks at a folder and all below it, or at the folder of one file of annotations.

    Args:
        told: is called with the number of files now and then, and with 0 in the end.

    Raises:
        InputError: there is no such folder.
    """
    root, only = os.path.abspath(os.path.expanduser(place)), ""
    if os.path.isfile(root):
        root, only = os.path.split(root)
    if not os.path.isdir(root):
        raise InputError(f"{place}: no such folder; expected one with images and their labels")
    folders: dict[str, tuple[str, ...]] = {}
    state, number, seen = hashlib.sha256(only.encode()), 0, set()
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        lines, below = [], []
        try:
            with os.scandir(os.path.join(root, folder)) as entries:
                for entry in entries:
                    if entry.name.startswith(".") or entry.name == _SKIPPED:
                        continue
                    if entry.is_file():
                        status = entry.stat()
                        lines.append(f"{entry.name}\0{status.st_size}\0{status.st_mtime_ns}")
                    elif entry.is_dir():  # the rest has no content: broken links, sockets
                        below.append(os.path.join(folder, entry.name))
        except OSError as error:
            raise InputError(f"{os.path.join(root, folder)}: {error.strerror}") from error
        lines.sort()  # "\0" comes first: as the names
        state.update("\n".join([folder, *lines, ""]).encode("utf-8", "surrogateescape"))
        if lines:
            folders[folder] = tuple([line.partition("\0")[0] for line in lines])
        if number // _AT_ONCE != (number + len(lines)) // _AT_ONCE:
            told(number + len(lines))
        number += len(lines)
        for path in sorted(below, reverse=True):
            status = os.stat(os.path.join(root, path))
            if (status.st_dev, status.st_ino) not in seen:  # links may lead round in circles
                seen.add((status.st_dev, status.st_ino))
                waiting.append(path)
    if number >= _AT_ONCE:
        told(0)
    return Tree(root, folders, state.hexdigest(), only)
