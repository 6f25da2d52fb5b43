"""Passes over images that an evaluation consists of, and how far one is."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from operator import length_hint
from typing import TypeVar

logger = logging.getLogger("detnas_d2.search")

T = TypeVar("T")

# The passes over images that an evaluation consists of, by their names in the records' seconds.
PASSES = ("recalibration", "inference")

OnPass = Callable[[str, int, int, int], None]
"""Called as ``f(stage, candidates, done, total)`` after each batch of a pass."""

_PERIOD = 60.0  # seconds between two lines


class PassLog:
    """An `OnPass` for evaluations outside a search: says every minute how far a pass is."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._pass: tuple[str, int] | None = None

    def __call__(self, stage: str, candidates: int, done: int, total: int) -> None:
        now = self._clock()
        if self._pass != (stage, candidates) or done <= self._done:
            self._pass, self._start, self._last, self._first = (stage, candidates), now, now, done
        elif now - self._last >= _PERIOD:
            self._last = now
            rest = round((now - self._start) / (done - self._first) * (total - done))
            left = f" of {total}, {timedelta(seconds=rest)} left" if total >= done else ""
            logger.info("%s of %d candidates: %d batches%s", stage, candidates, done, left)
        self._done = done


def counted(items: Iterable[T], step: Callable[[int, int], None]) -> Iterator[T]:
    """Passes items on; after each, ``step(done, total)`` with their number by ``len``, or 0."""
    total = length_hint(items)
    for done, item in enumerate(items, start=1):
        yield item
        step(done, total)
