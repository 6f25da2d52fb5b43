"""Two ways to compute the same: tried out once on a device, then the better one is kept."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch

from detnas_d2.ops.self_check import Verdict
from detnas_d2.utils.io import write_json
from detnas_d2.utils.locks import Lock
from detnas_d2.utils.timing import in_turns, milliseconds

REPETITIONS = 5
_CALLS = {"cpu": 1, "cuda": 10}  # of a measurement: a GPU works while the host goes on

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trial:
    """Operators and modules for one class of work.

    Attributes:
        operators, modules: do it once.
        check: whether both agree.
        device: type of the device that they work on.
    """

    operators: Callable[[], object]
    modules: Callable[[], object]
    check: Callable[[], Verdict]
    device: str = "cpu"


def size_class(count: int) -> int:
    """The power of two next to ``count``: sizes of one class share a measurement."""
    return 2 ** round(math.log2(max(count, 1)))


class AutotuneCache:
    """What was found for every class of work: "ops" or "modules" in ``use``, and why.

    Operators that do not agree with the modules, or fail, are not used; of those that agree the
    faster way is. Both ways agree up to rounding only, so that a choice is part of a run: it is
    written to ``path`` before it is used for the first time, and a resumed run and the other
    processes of the machine read it. The file may be edited by hand; an entry of it is never tried
    again.

    Args:
        path: a JSON file, read if it exists; None: choices live in memory, of one process.

    Attributes:
        known: for callers: choices by what they are about and further keys, which are looked up
            faster than their text.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.entries: dict[str, dict] = {}
        self.known: WeakKeyDictionary[Any, dict[Any, bool]] = WeakKeyDictionary()
        self._read()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "known": WeakKeyDictionary()}

    def use_ops(self, key: str, trial: Callable[[], Trial]) -> bool:
        """Whether the operators are to be used for the class ``key``.

        Args:
            trial: makes what is to be tried; called at most once.
        """
        if key not in self.entries:
            with self._alone():
                self._read()
                if key not in self.entries:  # not found by another process either
                    self.entries[key] = _tried(key, trial())
                    if self.path is not None:
                        write_json(self.path, self.entries, indent=2)
        return self.entries[key]["use"] == "ops"

    def _read(self) -> None:
        if self.path is None or not self.path.exists():
            return
        self.entries = json.loads(self.path.read_text(encoding="utf-8"))
        for key, entry in self.entries.items():
            use = entry.get("use")
            if use not in ("ops", "modules"):
                raise ValueError(
                    f'{self.path}: {key}: use: expected "ops" or "modules", got {use!r}'
                )

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """While the block runs, no other process tries anything for this file."""
        if self.path is None:
            yield
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = Lock(f"{self.path}.lock")
        try:
            lock.acquire(wait=True)
            yield
        finally:
            lock.release()


def _tried(key: str, trial: Trial) -> dict[str, Any]:
    """The entry of a class."""
    try:
        verdict = trial.check()
        if verdict.agrees:
            return _measured(trial)
    except torch.cuda.OutOfMemoryError:
        return {"use": "modules", "why": "not enough memory to try the operators"}
    except RuntimeError as error:
        why = f"the operators failed: {str(error).splitlines()[0]}"
    else:
        if not verdict.tensor:
            return {"use": "modules", "why": "rounding hides whether the operators are right"}
        why = (
            f"the operators are wrong: relative error {verdict.error:.2g} of {verdict.tensor}, "
            f"expected at most {verdict.bound:.2g}"
        )
    logger.warning(
        "FUSED_OPS: %s: %s. The modules do their work, and results are right; please report this "
        "line, so that the operators become so.",
        key,
        why,
    )
    return {"use": "modules", "why": why}


def _measured(trial: Trial) -> dict[str, Any]:
    def repeated(function: Callable[[], object]) -> float:
        calls = _CALLS.get(trial.device, 1)
        return milliseconds(lambda: [function() for _ in range(calls)], trial.device) / calls

    ways = (trial.operators, trial.modules)
    for way in ways:
        way()  # warms up
    ops_ms, modules_ms = map(min, in_turns(repeated, ways, REPETITIONS))
    return {
        "use": "ops" if ops_ms <= modules_ms else "modules",
        "ops_ms": round(ops_ms, 4),
        "modules_ms": round(modules_ms, 4),
    }
