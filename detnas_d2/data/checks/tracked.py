"""State of the files that a result was made of."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

_STAT_CHUNK = 1000


def tracked_state(tracked: Sequence[tuple[str, Sequence[str]]]) -> str:
    """SHA-256 over names, sizes and modification times of files; of folders, the times."""
    hasher = hashlib.sha256()
    if not tracked:
        return hasher.hexdigest()
    with ThreadPoolExecutor(min(32, 4 * (os.cpu_count() or 1))) as pool:
        for base, paths in tracked:
            chunks = [paths[i : i + _STAT_CHUNK] for i in range(0, len(paths), _STAT_CHUNK)]
            for text in pool.map(_file_states, [base] * len(chunks), chunks):
                hasher.update(text.encode("utf-8", "surrogatepass"))
    return hasher.hexdigest()


def _file_states(base: str, paths: Sequence[str]) -> str:
    lines = []
    for path in paths:
        try:
            status = os.stat(os.path.join(base, path))
        except (OSError, ValueError):  # absent, or a name that no file can have
            lines.append(f"{path} absent\n")
            continue
        size = 0 if stat.S_ISDIR(status.st_mode) else status.st_size
        lines.append(f"{path} {size} {status.st_mtime_ns}\n")
    return "".join(lines)
