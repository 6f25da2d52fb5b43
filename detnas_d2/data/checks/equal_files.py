"""Files that are the same byte by byte, whatever they are called."""

from __future__ import annotations

import filecmp
from collections.abc import Iterator, Mapping
from itertools import islice

LIMIT = 1000
"""Pairs of files that are compared at most."""

Contents = Mapping[tuple[str, str], str]
"""(Name of a dataset, image file) -> its ``ImageHeader.content``."""


def equal_files(one: Contents, other: Contents) -> list[tuple[str, str]]:
    """Pairs of different entries whose files are equal; LIMIT at most are compared."""
    pairs = islice(candidates(one, other), LIMIT)
    return [pair for pair in pairs if filecmp.cmp(*pair, shallow=False)]


def candidates(one: Contents, other: Contents) -> Iterator[tuple[str, str]]:
    """Pairs of different entries whose files may be equal."""
    by_content: dict[str, list[tuple[str, str]]] = {}
    for entry, content in other.items():
        by_content.setdefault(content, []).append(entry)
    for entry, content in one.items():
        for match in by_content.get(content, ()):
            if match != entry:  # the image itself is in one part alone
                yield entry[1], match[1]
