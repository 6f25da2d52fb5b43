"""Passes over images that an evaluation consists of, and how far one is."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from operator import length_hint
from typing import TypeVar

from detectron2.utils.logger import log_every_n_seconds

T = TypeVar("T")

# The passes over images that an evaluation consists of, by their names in the records' seconds.
PASSES = ("recalibration", "inference")

OnPass = Callable[[str, int, int, int], None]
"""Called as ``f(stage, candidates, done, total)`` after each batch of a pass."""


def log_pass(stage: str, candidates: int, done: int, total: int) -> None:
    """An `OnPass` for evaluations outside a search: a line every minute."""
    of_total = f" of {total}" if total else ""
    text = f"{stage} of {candidates} candidates: {done}{of_total} batches"
    log_every_n_seconds(logging.INFO, text, n=60, name="detnas_d2.search")


def counted(items: Iterable[T], step: Callable[[int, int], None]) -> Iterator[T]:
    """Passes items on; after each, ``step(done, total)`` with their number by ``len``, or 0."""
    total = length_hint(items)
    for done, item in enumerate(items, start=1):
        yield item
        step(done, total)
