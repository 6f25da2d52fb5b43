"""Files of lines that are only appended to: a crash tears the last line at most."""

from __future__ import annotations

import os
from pathlib import Path

from detnas_d2.utils.io import sync, sync_open


def open_lines(path: str | Path) -> bytes:
    """The whole lines of a file, which is made if it is missing; a torn last one is cut off."""
    path = Path(path)
    if not path.exists():
        path.touch()
        sync(path.parent)
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)
    return content[:whole]


def append(path: str | Path, data: bytes) -> None:
    """Adds ``data``; on return it is on disk."""
    path = Path(path)
    with open(path, "ab") as file:
        file.write(data)
        file.flush()
        sync_open(file.fileno(), str(path.parent))
