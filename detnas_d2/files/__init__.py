"""Files and folders that appear whole or not at all, and digests."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def new_file(path: str | Path) -> Iterator[str]:
    """Yields the name of a temporary file that becomes ``path`` if the block ends without an error.

    Readers see the old content or the new one, never a part, also after a crash of the machine.
    """
    folder = os.path.dirname(os.path.abspath(path))
    os.makedirs(folder, exist_ok=True)
    suffix = os.path.splitext(path)[1]  # libraries choose the format by it
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=".partial-", suffix=suffix)
    os.close(handle)
    try:
        yield temporary
        os.chmod(temporary, 0o644)
        sync(temporary)
        os.replace(temporary, path)
        sync(folder)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):  # it has its name already
            os.unlink(temporary)
        raise


def write_text(path: str | Path, text: str) -> None:
    """Atomic, like :func:`new_file`."""
    with new_file(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write(text)


def write_json(path: str | Path, value: Any, indent: int | None = None) -> None:
    """Atomic, like :func:`new_file`.

    Raises:
        ValueError: for NaN and infinities, which JSON does not have.
    """
    text = json.dumps(value, indent=indent, allow_nan=False)
    write_text(path, text if indent is None else text + "\n")


@contextlib.contextmanager
def new_directory(path: str) -> Iterator[str]:
    """Yields a temporary folder that becomes ``path`` when the block ends without an error.

    If ``path`` exists by then, another process has made it: that one stays.
    """
    parent = os.path.dirname(os.path.abspath(path))
    os.makedirs(parent, exist_ok=True)
    temporary = tempfile.mkdtemp(dir=parent, prefix=".partial-")
    try:
        yield temporary
        os.chmod(temporary, 0o755)
        try:
            os.rename(temporary, path)
        except OSError:
            if not os.path.isdir(path):
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sync(path: str | Path) -> None:
    """Makes a file's content, or a folder's new and renamed entries, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def link_file(source: str, target: str) -> None:
    """Makes ``target`` a symbolic link to ``source``, or a copy where links are refused."""
    try:
        os.symlink(os.path.realpath(source), target)
    except OSError:
        shutil.copyfile(source, target)


def digest(value: Any) -> str:
    """12 hexadecimal digits that name a JSON-like value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def sha256_of(path: str | Path) -> str:
    """Hexadecimal digest of a file's content, e.g. of the supernet's checkpoint."""
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            found.update(chunk)
    return found.hexdigest()


def file_name_of(name: str) -> str:
    """A data set name as a file name."""
    return re.sub(r"[^A-Za-z0-9@._-]", "_", name)
