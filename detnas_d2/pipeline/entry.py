"""The types of what stands in a stage of a pipeline file, and where a stage may write."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

_TEXTS = ("KIND", "CONFIG", "WEIGHTS", "PATH", "ROW", "FOLDER")
_MAX_NAME = 200  # bytes; file systems take 255


def entry_problem(entry: Mapping[str, Any]) -> str:
    """The fault of a stage's values, "" if there is none.

    A pipeline writes below the folder that holds its OUTPUT_DIR and nowhere else: NAME is the name
    of one folder, FOLDER lies below OUTPUT_DIR or, with one ``..``, next to it.
    """
    if not _is_name(entry["NAME"]):
        return (
            f"NAME is {repr(entry['NAME'])[:60]}: expected the name of a folder, a text without "
            f"'/' of at most {_MAX_NAME} bytes"
        )
    for key in _TEXTS:
        value = entry.get(key, "text")
        if not isinstance(value, str) or "\0" in value or not value:
            return f"{key} is {repr(value)[:60]}: expected a text"
    opts, merge = entry.get("OPTS", []), entry.get("MERGE", [])
    if not isinstance(opts, list) or any(isinstance(word, dict) for word in opts):
        return f"OPTS is {repr(opts)[:60]}: expected a list of KEY, VALUE, ..."
    if not isinstance(merge, list) or not all(isinstance(name, str) for name in merge):
        return f"MERGE is {repr(merge)[:60]}: expected a list of stages"
    seed = entry.get("RANDOM")
    if "RANDOM" in entry and (type(seed) is not int or seed < 0):
        return f"RANDOM is {seed!r}: expected a seed, 0 or more"
    return _folder_problem(entry["FOLDER"]) if "FOLDER" in entry else ""


def _is_name(value: Any) -> bool:
    if not isinstance(value, str) or not value.strip() or value != value.strip():
        return False
    if value in (".", "..") or any(sign in value for sign in "/\\\0") or not value.isprintable():
        return False
    return len(value.encode()) <= _MAX_NAME


def _folder_problem(folder: str) -> str:
    parts = os.path.normpath(folder).split(os.sep)
    inside = parts[0] not in ("..", ".", "") or (parts[0] == ".." and len(parts) > 1)
    if os.path.isabs(folder) or not inside or ".." in parts[1:]:
        return (
            f"FOLDER is {repr(folder)[:60]}: expected a folder below OUTPUT_DIR, or next to it "
            "(../NAME)"
        )
    if any(len(part.encode()) > _MAX_NAME for part in parts):
        return f"FOLDER is {repr(folder)[:60]}: a name in it is longer than {_MAX_NAME} bytes"
    return ""
