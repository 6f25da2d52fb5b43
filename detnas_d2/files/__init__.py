"""Files and folders that appear whole or not at all, locks on folders, and digests."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from detnas_d2.files.writing import (
    link_file,
    new_directory,
    new_file,
    remove_partial,
    sync,
    sync_open,
    write_json,
    write_text,
)

__all__ = [
    "digest",
    "file_name_of",
    "link_file",
    "new_directory",
    "new_file",
    "remove_partial",
    "sha256_of",
    "sync",
    "sync_open",
    "write_json",
    "write_text",
]


def digest(value: Any) -> str:
    """12 hexadecimal digits that name a JSON-like value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def sha256_of(path: str | Path) -> str:
    """Hexadecimal digest of a file's content, e.g. of the supernet's checkpoint."""
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            found.update(chunk)
    return found.hexdigest()


def file_name_of(name: str) -> str:
    """A data set name as a file name."""
    return re.sub(r"[^A-Za-z0-9@._-]", "_", name)
