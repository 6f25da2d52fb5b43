"""Images that two data sets share, byte by byte, whatever their files are called."""

from __future__ import annotations

import filecmp
import os
from collections.abc import Iterator

from detectron2.data import DatasetCatalog

from detnas_d2.data.splits import parent_of, whole_of
from detnas_d2.data.union import parts_of
from detnas_d2.data.validation import contents_of

LIMIT = 1000
"""Pairs of files that are compared at most."""


def identical_images(one: str, other: str) -> list[tuple[str, str]]:
    """Pairs of equal files, the first of ``one``, the second of ``other``; LIMIT at most.

    Both are checked data sets, search halves, shares or unions of them; of others nothing is known,
    and the list is empty. Files are only read where their sizes and two parts of them are equal.
    """
    pairs = list(_candidates(parent_of(one), parent_of(other)))
    for place, name in enumerate((one, other)):
        if pairs and any(whole_of(part) != name for part in parts_of(parent_of(name))):
            files = {os.path.realpath(d["file_name"]) for d in DatasetCatalog.get(name)}
            pairs = [pair for pair in pairs if os.path.realpath(pair[place]) in files]
    return [pair for pair in pairs[:LIMIT] if filecmp.cmp(*pair, shallow=False)]


def _candidates(one: str, other: str) -> Iterator[tuple[str, str]]:
    by_content: dict[str, list[str]] = {}
    for file, content in _contents(other):
        by_content.setdefault(content, []).append(file)
    for file, content in _contents(one):
        for match in by_content.get(content, ()):
            if one != other or file != match:
                yield file, match


def _contents(name: str) -> Iterator[tuple[str, str]]:
    for part in parts_of(name):
        yield from contents_of(whole_of(part)).items()
