"""How far reading a large dataset is, for a person at a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")

_SILENT = 2.0  # seconds of work that nobody needs to hear of


def progress(items: Iterable[T], what: str, total: int) -> Iterator[T]:
    """The items; meanwhile a bar on stderr if that is a terminal, gone at the end."""
    return iter(
        tqdm(items, f"reading {what}", total, leave=False, delay=_SILENT, disable=None, unit="")
    )
