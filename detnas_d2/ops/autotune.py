"""Autotuning: the faster of two ways to compute the same, measured once, then kept."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

from detnas_d2.utils.io import write_json
from detnas_d2.utils.timing import in_turns, milliseconds

REPETITIONS = 5


def size_class(count: int) -> int:
    """The power of two next to ``count``: sizes of one class share a measurement."""
    return 2 ** round(math.log2(max(count, 1)))


class AutotuneCache:
    """Measured choices between the operators and the modules ("ops" or "modules"), by class.

    Both ways agree up to rounding only, so that a choice is part of a run: it is written to
    ``path`` before it is used for the first time, and a resumed run reads it. The file may be
    edited by hand; an entry of it is never measured again.

    Args:
        path: a JSON file, read if it exists; None: they live in memory.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.entries: dict[str, dict] = {}
        if path is not None and path.exists():
            self.entries = json.loads(path.read_text(encoding="utf-8"))
        for key, entry in self.entries.items():
            use = entry.get("use")
            if use not in ("ops", "modules"):
                raise ValueError(f'{path}: {key}: use: expected "ops" or "modules", got {use!r}')

    def use_ops(
        self, key: str, candidates: Callable[[], tuple[Callable[[], object], Callable[[], object]]]
    ) -> bool:
        """Whether the operators are to be used for the class ``key``.

        Args:
            candidates: makes the two functions to measure, operators first; called at most once.
        """
        if key not in self.entries:
            functions = candidates()
            for function in functions:
                function()  # warms up
            ops_ms, modules_ms = map(min, in_turns(milliseconds, functions, REPETITIONS))
            use = "ops" if ops_ms <= modules_ms else "modules"
            self.entries[key] = {
                "use": use,
                "ops_ms": round(ops_ms, 4),
                "modules_ms": round(modules_ms, 4),
            }
            self._write()
        return self.entries[key]["use"] == "ops"

    def _write(self) -> None:
        if self.path is None:
            return
        write_json(self.path, self.entries, indent=2)
