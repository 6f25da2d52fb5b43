"""Time and memory of an evaluation of candidates, by stage."""

from __future__ import annotations

import ctypes
import gc
import logging
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn


class Clock:
    """Wall and processor seconds of this process by what it is in, e.g. "inference/heads"."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.seconds: dict[str, tuple[float, float]] = {}
        self._within: list[str] = []
        self._mark = time.perf_counter(), time.process_time()

    def enter(self, name: str) -> None:
        self._switch()
        self._within.append(name)

    def leave(self) -> None:
        self._switch()
        self._within.pop()

    def _switch(self) -> None:
        now, key = (time.perf_counter(), time.process_time()), "/".join(self._within)
        wall, cpu = self.seconds.get(key, (0.0, 0.0))
        self.seconds[key] = wall + now[0] - self._mark[0], cpu + now[1] - self._mark[1]
        self._mark = now

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self.enter(name)
        try:
            yield
        finally:
            self.leave()

    def timed(self, name: str, call: Callable) -> Callable:
        """``call`` as a stage."""

        def wrapped(*arguments: Any) -> Any:
            with self.stage(name):
                return call(*arguments)

        return wrapped

    def watch(self, model: nn.Module) -> nn.Module:
        """Backbone, neck and heads of the model count apart."""
        parts = {"backbone": model.backbone.bottom_up, "neck": model.backbone}
        for name in ("head", "proposal_generator", "roi_heads"):
            if hasattr(model, name):
                parts[name] = getattr(model, name)
        for name, module in parts.items():
            module.register_forward_pre_hook(lambda *_, name=name: self.enter(name))
            module.register_forward_hook(lambda *_: self.leave(), always_call=True)
        return model

    def split(self, count: int) -> dict[str, dict[str, float]]:
        """Seconds per candidate by what it was in."""
        self._switch()
        names = sorted(self.seconds)
        return {
            kind: {n or "rest": round(self.seconds[n][i] / count, 3) for n in names}
            for i, kind in enumerate(("split", "cpu_split"))
        }


class Loading:
    """A loader whose batches are a stage."""

    def __init__(self, loader: Any, clock: Clock) -> None:
        self._loader, self._clock = loader, clock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        with self._clock.stage("loading"):
            batches = iter(self._loader)
        while True:
            with self._clock.stage("loading"):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch


def measured(clock: Clock, run: Callable[[], int]) -> dict[str, Any]:
    """Metrics per candidate of ``run``, which gives their number."""
    reset_peak()
    clock.reset()
    wall, cpu = time.perf_counter(), time.process_time()
    count = run()
    seconds, used = time.perf_counter() - wall, time.process_time() - cpu
    return {
        "candidates": count,
        "seconds": round(seconds / count, 3),
        "cpu": round(used / count, 3),
        **clock.split(count),
        "peak_mib": peak_mib(),
    }


def reset_peak() -> None:
    """Linux: the peak of resident memory starts again from what is in use."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        logging.warning("peak_mib is of the whole run: it cannot be reset")


def peak_mib() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() >> 20
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) >> 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
