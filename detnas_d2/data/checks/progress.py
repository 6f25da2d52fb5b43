"""How far reading a large dataset is, for a person at a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

_SILENT = 2.0  # seconds of work that nobody needs to hear of


class _Bar(tqdm):
    monitor_interval = 0  # else a thread, with which no process is forked


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], object]]:
    """Yields what is to be told of every step, the number of things done in it.

    Meanwhile a bar stands on stderr, if that is a terminal.
    """
    label = f"reading {what}"
    with _Bar(None, label, total, leave=False, delay=_SILENT, disable=None, unit="") as bar:
        yield bar.update
