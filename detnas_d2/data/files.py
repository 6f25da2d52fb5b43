"""Atomic files, digests and who writes them when several processes run."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from detectron2.utils import comm

T = TypeVar("T")


@contextlib.contextmanager
def new_file(path: str) -> Iterator[str]:
    """Yields the name of a temporary file that becomes ``path`` if the block ends without an error.

    Readers see the old content or the new one, never a part.
    """
    folder = os.path.dirname(os.path.abspath(path))
    os.makedirs(folder, exist_ok=True)
    suffix = os.path.splitext(path)[1]  # libraries choose the format by it
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=".partial-", suffix=suffix)
    os.close(handle)
    try:
        yield temporary
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def write_text(path: str, text: str) -> None:
    """Atomic, like :func:`new_file`."""
    with new_file(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write(text)


def write_json(path: str, value: Any) -> None:
    """Atomic, like :func:`new_file`."""
    write_text(path, json.dumps(value))


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


def link_file(source: str, target: str) -> None:
    """Makes ``target`` a symbolic link to ``source``, or a copy where links are refused."""
    try:
        os.symlink(os.path.realpath(source), target)
    except OSError:
        shutil.copyfile(source, target)


def digest(value: Any) -> str:
    """12 hexadecimal digits that name a JSON-like value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def file_name_of(name: str) -> str:
    """A data set name as a file name."""
    return re.sub(r"[^A-Za-z0-9@._-]", "_", name)


def writer_first(work: Callable[[], T]) -> T:
    """Calls ``work`` on one process per machine, then on the others, which find its files.

    All processes must call this. An error of a writer is raised on all of them.
    """
    if comm.get_world_size() == 1:
        return work()
    result, error, writer = None, None, _is_writer()
    if writer:
        try:
            result = work()
        except Exception as raised:  # held until every process knows, or the others would hang
            error = raised
    message = None if error is None else f"{type(error).__name__}: {error}"
    messages = [m for m in comm.all_gather(message) if m is not None]
    if error is not None:
        raise error
    if messages:
        raise RuntimeError(f"The process that prepares data sets failed: {messages[0]}")
    return result if writer else work()


def _is_writer() -> bool:
    try:
        return comm.get_local_rank() == 0
    except AssertionError:  # process group made without detectron2's launch
        return comm.get_rank() == 0
