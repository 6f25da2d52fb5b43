"""Working time of a stage, its interrupted starts included (the days of DetNAS's table 1)."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from typing import Any

from detnas_d2.utils.io import write_text
from detnas_d2.utils.locks import LOCK_FILE

_FILE = "started.json"

Span = tuple[float, float]
"""Begin and end of work, in seconds since the epoch."""


def start(folder: str) -> float:
    """Notes that a stage starts, or starts again; the seconds that it had worked before.

    A start that was killed counts until the last time it wrote a file.
    """
    before = worked(folder)
    earlier = spans(folder) if before else []
    os.makedirs(folder, exist_ok=True)
    _write(folder, {"time": time.time(), "seconds": before, "spans": earlier})
    return before


def end(folder: str) -> None:
    """Notes that the last start of a stage has ended well."""
    try:
        last = _last_start(folder)
    except (OSError, ValueError):
        return
    _write(folder, {**last, "end": time.time()})


def worked(folder: str) -> float:
    """Seconds that a stage which is not done has worked in all its starts; 0 without any."""
    try:
        last = _last_start(folder)
        return last["seconds"] + max(0.0, _last_write(folder) - last["time"])
    except (OSError, ValueError, KeyError, TypeError):  # none, or a torn file
        return 0.0


def spans(folder: str, *, running: bool = False) -> list[Span] | None:
    """When a stage worked, in all its starts; None where its files do not tell.

    Args:
        running: it does so until now.
    """
    try:
        last = _last_start(folder)
        begin, told = float(last["time"]), [(float(a), float(b)) for a, b in last["spans"]]
        ended = time.time() if running else float(last.get("end") or _last_write(folder))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return [*told, (begin, max(begin, ended))]


def covered(found: Iterable[Span]) -> float:
    """Seconds that lie in one span or several."""
    seconds, until = 0.0, float("-inf")
    for begin, ended in sorted(found):
        seconds += max(0.0, ended - max(begin, until))
        until = max(until, ended)
    return seconds


def _last_start(folder: str) -> dict[str, Any]:
    with open(os.path.join(folder, _FILE), encoding="utf-8") as text:
        value = json.load(text)
    if not isinstance(value, dict):
        raise ValueError(f"{folder}: {_FILE} is no mapping")
    return value


def _write(folder: str, value: dict[str, Any]) -> None:
    write_text(os.path.join(folder, _FILE), json.dumps(value))


def _last_write(folder: str) -> float:
    """Without the lock, which the next start writes before it asks."""
    with os.scandir(folder) as entries:
        files = [entry for entry in entries if entry.is_file() and entry.name != LOCK_FILE]
        return max((file.stat().st_mtime for file in files), default=0.0)
