"""Working time of a stage, its interrupted starts included (the days of DetNAS's table 1)."""

from __future__ import annotations

import json
import os
import time

from detnas_d2.utils.io import write_text

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
    with os.scandir(folder) as entries:
        return max((entry.stat().st_mtime for entry in entries if entry.is_file()), default=0.0)
