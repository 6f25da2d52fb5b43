"""Small files that must never be seen half written."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` by `text` such that a crash leaves the old or the new content, whole."""
    temporary = path.with_name(f"{path.name}.tmp{os.getpid()}")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_directory(path.parent)


def write_json(path: Path, value: Any) -> None:
    """`write_atomically` of `value` as JSON; raises ValueError on NaN and infinities."""
    write_atomically(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def sync_directory(path: Path) -> None:
    """Make a new or renamed directory entry durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: str | Path) -> str:
    """Hex digest of a file's content, e.g. of the supernet checkpoint."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
