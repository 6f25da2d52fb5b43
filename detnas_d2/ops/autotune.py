"""Two ways to compute the same: tried out once on a device, then the better one is kept."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from detnas_d2.ops.self_check import Verdict
from detnas_d2.utils.io import write_json
from detnas_d2.utils.locks import Lock
from detnas_d2.utils.timing import in_turns, milliseconds

REPETITIONS = 5
_CALLS = {"cpu": 1, "cuda": 10}  # of a measurement: a GPU works while the host goes on

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Ways:
    """What two ways are called.

    Attributes:
        first, second: in the file of choices.
        key: the config key that has the first way tried.
        tried, instead: the first way, and what is done without it, in a sentence.
    """

    first: str
    second: str
    key: str
    tried: str
    instead: str


_OPERATORS = _Ways(
    "ops", "modules", "FUSED_OPS", "the operators",
    "The modules do their work, and results are right; please report this line, so that the "
    "operators become so.",
)  # fmt: skip
_GRAPHS = _Ways(
    "graph", "calls", "SEARCH.CUDA_GRAPHS", "replayed graphs",
    "Calls do their work, and results are right; please report this line.",
)  # fmt: skip
_GRAPH = "graph of "  # begins the keys of the latter


@dataclass(frozen=True)
class Trial:
    """Two ways for one class of work: operators and modules, or a replayed graph and calls.

    Attributes:
        operators, modules: do it once.
        check: whether both agree.
        device: that they work on.
    """

    operators: Callable[[], object]
    modules: Callable[[], object]
    check: Callable[[], Verdict]
    device: str = "cpu"


def device_text(device: torch.device) -> str:
    """What a choice holds for."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    return f"{torch.get_num_threads()} threads"


def size_class(count: int) -> int:
    """The power of two next to ``count``: sizes of one class share a measurement."""
    return 2 ** round(math.log2(max(count, 1)))


class AutotuneCache:
    """What was found for every class of work: "ops" or "modules" in ``use``, and why; of what a
    graph may replay "graph" or "calls".

    Operators that do not agree with the modules, or fail, are not used; of those that agree the
    faster way is. Both ways agree up to rounding only, so that a choice is part of a run: it is
    written to ``path`` before it is used for the first time, and a resumed run and the other
    processes of the machine read it. The file may be edited by hand; an entry of it is never tried
    again.

    Args:
        path: a JSON file, read if it exists; None: choices live in memory, of one process, as they
            do where the file cannot be written.

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
        return {name: value for name, value in self.__dict__.items() if name != "known"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, known=WeakKeyDictionary())

    def use_ops(self, key: str, trial: Callable[[], Trial]) -> bool:
        """Whether the operators are to be used for the class ``key``.

        Args:
            trial: makes what is to be tried; called at most once.
        """
        return self._use_first(key, trial)

    def use_graph(self, work: str, trial: Callable[[], Trial]) -> bool:
        """Whether graphs are to be replayed for a class of ``work``; as :meth:`use_ops`."""
        return self._use_first(_GRAPH + work, trial)

    def _use_first(self, key: str, trial: Callable[[], Trial]) -> bool:
        if key not in self.entries:
            try:
                self._find(key, trial)
            except OSError as error:
                if self.path is None:
                    raise
                # E.g. the folder of a run that was copied here, or may only be read.
                logger.warning(
                    "%s cannot be written (%s): what is tried out holds for this process alone",
                    self.path,
                    error.strerror or error,
                )
                self.path = None
                return self._use_first(key, trial)
        return self.entries[key]["use"] == _ways(key).first

    def _find(self, key: str, trial: Callable[[], Trial]) -> None:
        """Tries a class out, unless another process has."""
        with self._alone():
            self._read()
            if key in self.entries:
                return
            # What a trial saves for its backward passes is not its caller's to pack, as checkpoints
            # would, which count it.
            with torch.autograd.graph.saved_tensors_hooks(_as_it_is, _as_it_is):
                self.entries[key] = _tried(key, trial())
            if self.path is not None:
                write_json(self.path, self.entries, indent=2)

    def _read(self) -> None:
        if self.path is None or not os.path.exists(self.path):  # nor in a folder of another's
            return
        self.entries = json.loads(self.path.read_text(encoding="utf-8"))
        for key, entry in self.entries.items():
            use, ways = entry.get("use"), _ways(key)
            if use not in (ways.first, ways.second):
                raise ValueError(
                    f'{self.path}: {key}: use: expected "{ways.first}" or "{ways.second}", '
                    f"got {use!r}"
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


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def _ways(key: str) -> _Ways:
    return _GRAPHS if key.startswith(_GRAPH) else _OPERATORS


def _tried(key: str, trial: Trial) -> dict[str, Any]:
    """The entry of a class."""
    ways = _ways(key)
    try:
        verdict = trial.check()
        if verdict.agrees:
            return _measured(ways, trial)
    except torch.cuda.OutOfMemoryError:
        return {"use": ways.second, "why": f"not enough memory to try {ways.tried}"}
    except RuntimeError as error:
        why = f"{ways.tried} failed: {str(error).splitlines()[0]}"
    else:
        if not verdict.tensor:
            return {"use": ways.second, "why": f"rounding hides whether {ways.tried} are right"}
        why = (
            f"{ways.tried} are wrong: relative error {verdict.error:.2g} of {verdict.tensor}, "
            f"expected at most {verdict.bound:.2g}"
        )
    logger.warning("%s: %s: %s. %s", ways.key, key, why, ways.instead)
    return {"use": ways.second, "why": why}


def _measured(ways: _Ways, trial: Trial) -> dict[str, Any]:
    def repeated(function: Callable[[], object]) -> float:
        calls = _CALLS.get(torch.device(trial.device).type, 1)
        return milliseconds(lambda: [function() for _ in range(calls)], trial.device) / calls

    both = (trial.operators, trial.modules)
    for way in both:
        way()  # warms up
    first, second = map(min, in_turns(repeated, both, REPETITIONS))
    return {
        "use": ways.first if first <= second else ways.second,
        f"{ways.first}_ms": round(first, 4),
        f"{ways.second}_ms": round(second, 4),
    }
