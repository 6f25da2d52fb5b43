"""Files and folders that appear whole or not at all, on any file system, and digests of files."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

logger = logging.getLogger("detnas_d2")

PARTIAL = ".partial-"
"""Prefix of files and folders that are being written."""
_ABANDONED = 24 * 3600.0  # seconds after which nobody is writing any more

# What a file system answers that does not know fsync: object stores, CIFS, FUSE.
_UNSUPPORTED = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOTTY}
# Some that know it for files do not let a folder be opened or synced.
_FOLDER_UNSUPPORTED = _UNSUPPORTED | {errno.EBADF, errno.EACCES, errno.EPERM, errno.EISDIR}
_warned: set[str] = set()


@contextlib.contextmanager
def new_file(path: str | Path) -> Iterator[str]:
    """Yields the name of a temporary file that becomes ``path`` if the block ends without an error.

    Readers see the old content or the new one, never a part, also after a crash of the machine.
    Its mode follows the umask.
    """
    folder = os.path.dirname(os.path.abspath(path))
    os.makedirs(folder, exist_ok=True)
    suffix = os.path.splitext(path)[1]  # libraries choose the format by it
    temporary = _temporary_name(folder, suffix)
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except OSError as error:
        error.filename = os.fspath(path)  # not one that nobody has heard of
        raise
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(folder)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):  # it has its name already
            os.unlink(temporary)
        raise


def _temporary_name(folder: str, suffix: str = "") -> str:
    return os.path.join(folder, f"{PARTIAL}{secrets.token_hex(8)}{suffix}")


def write_text(path: str | Path, text: str) -> None:
    """Atomic, like :func:`new_file`."""
    with new_file(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write(text)


def write_brief(path: str | Path, text: str) -> None:
    """Writes what is soon out of date: readers see it whole, a crash of the machine may lose it."""
    temporary = _temporary_name(os.path.dirname(os.path.abspath(path)))
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(temporary, path)


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

    If ``path`` exists by then, another process has made it: that one stays. Next to it, what killed
    processes left a day ago or earlier is removed.
    """
    parent = os.path.dirname(os.path.abspath(path))
    os.makedirs(parent, exist_ok=True)
    remove_partial(parent, older_than=_ABANDONED)
    temporary = _temporary_name(parent)
    os.mkdir(temporary)
    try:
        yield temporary
        try:
            os.rename(temporary, path)
        except OSError:
            if not os.path.isdir(path):
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_partial(folder: str, *, older_than: float = 0.0) -> None:
    """Removes what processes that were killed had begun to write into a folder.

    Args:
        older_than: seconds; 0 is for who holds the folder's lock.
    """
    limit = time.time() - older_than
    for entry in list(os.scandir(folder)):
        with contextlib.suppress(OSError):  # removed by another process meanwhile
            if not entry.name.startswith(PARTIAL) or entry.stat().st_mtime > limit:
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                os.unlink(entry.path)


def sync(path: str | Path) -> None:
    """Makes a file's content, or a folder's new and renamed entries, durable.

    Where the file system cannot do that, a warning says so, once for a folder.
    """
    folder = os.path.isdir(path)
    place = str(path) if folder else os.path.dirname(os.path.abspath(path))
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        _not_durable(error, place, _FOLDER_UNSUPPORTED if folder else set())
        return
    try:
        sync_open(descriptor, place, _FOLDER_UNSUPPORTED if folder else _UNSUPPORTED)
    finally:
        os.close(descriptor)


def sync_open(descriptor: int, folder: str, tolerated: Collection[int] = _UNSUPPORTED) -> None:
    """:func:`sync` of an open file.

    Args:
        folder: the file's, for the warning.
        tolerated: error numbers that say that the file system has no such thing.
    """
    try:
        os.fsync(descriptor)
    except OSError as error:
        _not_durable(error, folder, tolerated)


def _not_durable(error: OSError, folder: str, tolerated: Collection[int]) -> None:
    if error.errno not in tolerated:
        raise error
    warn_once(
        folder,
        "what is written there cannot be made durable (%s): a crash of the machine, not of the "
        "program, may lose the newest files",
        error.strerror,
    )


def warn_once(folder: str, text: str, *values: object) -> None:
    """A warning about what the file system of a folder lacks, the first time."""
    if f"{folder}: {text}" not in _warned:
        _warned.add(f"{folder}: {text}")
        logger.warning("%s: " + text, folder, *values)


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
    """A dataset name as a file name."""
    return re.sub(r"[^A-Za-z0-9@._-]", "_", name)
