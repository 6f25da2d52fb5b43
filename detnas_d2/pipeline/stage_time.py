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
    file = os.path.join(folder, _FILE)
    try:
        with open(file, encoding="utf-8") as text:
            last = json.load(text)
        before = last["seconds"] + max(0.0, _last_write(folder) - last["time"])
    except (OSError, ValueError, KeyError, TypeError):  # the first start, or a torn file
        before = 0.0
    os.makedirs(folder, exist_ok=True)
    write_text(file, json.dumps({"time": time.time(), "seconds": before}))
    return before


def _last_write(folder: str) -> float:
    with os.scandir(folder) as entries:
        return max((entry.stat().st_mtime for entry in entries if entry.is_file()), default=0.0)
