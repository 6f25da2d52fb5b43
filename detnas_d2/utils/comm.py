"""Work that one of several processes does before the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from detectron2.utils import comm

from detnas_d2.utils.errors import InputError

T = TypeVar("T")


def local_main_first(work: Callable[[], T]) -> T:
    """Calls ``work`` on one process per machine, then on the others, which find its files.

    All processes must call this. An error of a writer is raised on all of them.
    """
    if comm.get_world_size() == 1:
        return work()
    results: list[T] = []  # the writer's
    error, writer = None, _is_writer()
    if writer:
        try:
            results.append(work())
        except Exception as raised:  # held until every process knows, or the others would hang
            error = raised
    message = None if error is None else (type(error), str(error))
    messages = [m for m in comm.all_gather(message) if m is not None]
    if error is not None:
        raise error
    if messages:
        kind, text = messages[0]
        if issubclass(kind, InputError):
            raise InputError(text)
        raise RuntimeError(f"The process that prepares datasets failed: {kind.__name__}: {text}")
    return results[0] if writer else work()


def _is_writer() -> bool:
    try:
        return comm.get_local_rank() == 0
    except AssertionError:  # process group made without detectron2's launch
        return comm.get_rank() == 0
