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
        files: folder below the root ("" for itself) -> lines about its files, sorted: name, size
            and time. Hidden files and folders are passed over.
        state: digest over paths, sizes and times of all files.
        only: path below the root of the one file of annotations to look at; "" for all.
    """

    root: str
    files: Mapping[str, list[str]]
    state: str
    only: str = ""

    @cached_property
    def folders(self) -> dict[str, list[str]]:
        """Folder below the root -> names of its files, sorted."""
        return {
            folder: [line[: line.index("\0")] for line in lines]
            for folder, lines in self.files.items()
        }

    def path(self, relative: str) -> str:
        return os.path.join(self.root, relative)

    def with_extension(self, *extensions: str) -> list[str]:
        """Paths of files below the root.

        Args:
            extensions: ends of names, lower case, each with a dot.
        """
        kinds = {extension[extension.rindex(".") :] for extension in extensions}
        found = [item for kind in kinds for item in self._by_kind.get(kind, ())]
        return [path for _, path in sorted(found) if path.lower().endswith(extensions)]

    @cached_property
    def _by_kind(self) -> dict[str, list[tuple[int, str]]]:
        """What follows the last dot of a name, lower case -> position and path of files."""
        kinds: dict[str, list[tuple[int, str]]] = {}
        number = 0
        for folder, names in self.folders.items():
            start = os.path.join(folder, "") if folder else ""
            for name in names:
                kind = name[name.rfind(".") :].lower() if "." in name else ""
                kinds.setdefault(kind, []).append((number, start + name))
                number += 1
        return kinds

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
    files: dict[str, list[str]] = {}
    state, number, seen = hashlib.sha256(only.encode()), 0, set()
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        try:
            lines, below = _look_at(os.path.join(root, folder))
        except OSError as error:
            raise InputError(f"{os.path.join(root, folder)}: {error.strerror}") from error
        state.update("\n".join([folder, *lines, ""]).encode("utf-8", "surrogateescape"))
        if lines:
            files[folder] = lines
        if number // _AT_ONCE != (number + len(lines)) // _AT_ONCE:
            told(number + len(lines))
        number += len(lines)
        for path in sorted((os.path.join(folder, name) for name in below), reverse=True):
            status = os.stat(os.path.join(root, path))
            if (status.st_dev, status.st_ino) not in seen:  # links may lead round in circles
                seen.add((status.st_dev, status.st_ino))
                waiting.append(path)
    if number >= _AT_ONCE:
        told(0)
    return Tree(root, files, state.hexdigest(), only)


def _look_at(folder: str) -> tuple[list[str], list[str]]:
    """(A sorted line for each file: name, size and time; names of folders)."""
    lines, below = [], []
    # Of a descriptor, so that the system does not look up the path of the folder for every file.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with os.scandir(descriptor) as entries:
            for entry in entries:
                name = entry.name
                if name[0] == "." or name == _SKIPPED:
                    continue
                if entry.is_file():
                    status = entry.stat()
                    lines.append(f"{name}\0{status.st_size}\0{status.st_mtime_ns}")
                elif entry.is_dir():  # the rest has no content: broken links, sockets
                    below.append(name)
    finally:
        os.close(descriptor)
    lines.sort()  # "\0" comes first: as the names
    return lines, below
