"""Reads many files: by all processors, and by threads where a disk has to be waited for."""

from __future__ import annotations

import os
import resource
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from detnas_d2.data.checks.progress import progress
from detnas_d2.utils.cpus import usable_cpus

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

T = TypeVar("T")
R = TypeVar("R")
Read = Callable[[T], R]

_BLOCK, _PROBE = 1024, 32  # items of which the first tell how fast the others are read
_MANY = 8 * _BLOCK  # items that are read sooner by several processes, their start included
_THREADS = 4  # for a processor

_kept: dict[Any, Any] | None = None  # (what reads, file, its state) -> what was read


@contextmanager
def reading_once() -> Iterator[None]:
    """Within it, :func:`read_each` reads no file again that the same function has read, as long as
    the file is the same, by its size and time. What is read must not be altered.
    """
    global _kept
    before, _kept = _kept, {} if _kept is None else _kept
    try:
        yield
    finally:
        _kept = before


def read_each(read: Read[T, R], items: Sequence[T], what: str, *, threads: bool = False) -> list[R]:
    """``read`` of each item, in order; of many items in several processes.

    Args:
        items: paths within :func:`reading_once`.
        what: the items in words, for a person who waits.
        threads: whether several gain by ``read`` also where no file has to be waited for.
    """
    if _kept is None:
        return _read_each(read, items, what, threads)
    keys = [(_name_of(read), item, _state_of(item)) for item in items]
    new = [n for n, key in enumerate(keys) if key[-1] is None or key not in _kept]
    fresh = dict(zip(new, _read_each(read, [items[n] for n in new], what, threads), strict=True))
    _kept.update((keys[n], found) for n, found in fresh.items() if keys[n][-1] is not None)
    return [fresh[n] if n in fresh else _kept[key] for n, key in enumerate(keys)]


def _name_of(read: Callable[..., Any]) -> Any:
    """What tells a function, with the arguments that it is given in advance."""
    if not isinstance(read, partial):
        return read
    return read.func, repr(read.args), repr(sorted(read.keywords.items()))


def _state_of(path: Any) -> tuple[int, ...] | None:
    """None of what is no file."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _read_each(read: Read[T, R], items: Sequence[T], what: str, threads: bool) -> list[R]:
    found: list[R] = []
    blocks = [items[start : start + _BLOCK] for start in range(0, len(items), _BLOCK)]
    with _readers(read, blocks, threads) as readers, progress(what, len(items)) as told:
        for number, block in enumerate(blocks):
            part: list[R] | None = None
            if readers:
                try:
                    part = readers[number % len(readers)].recv()
                except (EOFError, OSError):  # the process died: what it was to read fails here too
                    readers.clear()
            if part is None:
                part = _read_block(read, block, min(32, len(usable_cpus()) * _THREADS), threads)
            told(len(block))
            found += part
    return found


def _read_block(read: Read[T, R], block: Sequence[T], number: int, threads: bool) -> list[R]:
    """Args: ``number`` of threads, where these gain."""
    waits = _waits()
    found = list(map(read, block[:_PROBE]))
    rest = block[_PROBE:]
    if not threads and _waits() - waits <= len(found) // 4:
        return found + list(map(read, rest))
    with ThreadPoolExecutor(number) as pool:
        return found + list(pool.map(read, rest))


def _waits() -> int:
    """How often this thread has waited for something, such as a disk."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw


@contextmanager
def _readers(
    read: Read[T, R], blocks: Sequence[Sequence[T]], threads: bool
) -> Iterator[list[Connection]]:
    """Connections to processes that send the blocks in turns, each its own; none where this one is
    to read them.

    They are forked, so that nothing has to be sent to them, nor imported; with threads, which a
    fork leaves behind in the middle of something, there are none.
    """
    count = min(len(usable_cpus()), 16)
    many = sum(map(len, blocks)) >= _MANY
    if not many or count < 2 or sys.platform != "linux" or threading.active_count() > 1:
        yield []
        return
    from multiprocessing import current_process, get_context

    if current_process().daemon:  # may have no children
        yield []
        return
    context = get_context("fork")
    readers, processes = [], []
    try:
        for first in range(count):
            reader, writer = context.Pipe(duplex=False)
            arguments = read, blocks[first::count], threads, reader, writer
            process = context.Process(target=_send, args=arguments, daemon=True)
            process.start()
            writer.close()  # or the end of the process would go unnoticed
            readers.append(reader)
            processes.append(process)
        yield list(readers)
    finally:
        for reader, process in zip(readers, processes, strict=True):
            reader.close()
            process.kill()
            process.join()


def _send(
    read: Read[T, R],
    blocks: Sequence[Sequence[T]],
    threads: bool,
    reader: Connection,
    writer: Connection,
) -> None:
    """In the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is told, and ends it
    reader.close()  # or the end of the parent would go unnoticed
    try:
        for block in blocks:
            writer.send(_read_block(read, block, _THREADS, threads))
    except Exception:
        os._exit(1)  # the parent reads on and meets the same
