"""Working time of a stage, its interrupted starts included (the days of DetNAS's table 1)."""

from __future__ import annotations

import json
import os
import time

from detnas_d2.utils.io import write_text
from detnas_d2.utils.locks import LOCK_FILE

_FILE = "started.json"


def start(folder: str) -> float:
    """Notes that a stage starts, or starts again; the seconds that it had worked before.

    A start that was killed counts until the last time it wrote a file.
    """
    before = worked(folder)
    os.makedirs(folder, exist_ok=True)
    write_text(os.path.join(folder, _FILE), json.dumps({"time": time.time(), "seconds": before}))
    return before


def worked(folder: str) -> float:
    """Seconds that a stage which is not done has worked in all its starts; 0 without any."""
    try:
        with open(os.path.join(folder, _FILE), encoding="utf-8") as text:
            last = json.load(text)
        return last["seconds"] + max(0.0, _last_write(folder) - last["time"])
    except (OSError, ValueError, KeyError, TypeError):  # none, or a torn file
        return 0.0


def _last_write(folder: str) -> float:
    """Without the lock, which the next start writes before it asks."""
    with os.scandir(folder) as entries:
        files = [entry for entry in entries if entry.is_file() and entry.name != LOCK_FILE]
        return max((file.stat().st_mtime for file in files), default=0.0)
