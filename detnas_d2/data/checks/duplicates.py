"""Images that two datasets share, byte by byte, whatever their files are called."""

from __future__ import annotations

import filecmp
import os
from collections.abc import Iterator, Sequence

from detectron2.data import DatasetCatalog

from detnas_d2.data.checks.validation import contents_of
from detnas_d2.data.datasets.splits import parent_of, whole_of
from detnas_d2.data.datasets.union import parts_of

LIMIT = 1000
"""Pairs of files that are compared at most."""


def identical_images(one: str, other: str) -> list[tuple[str, str]]:
    """Pairs of equal files, the first of ``one``, the second of ``other``; LIMIT at most.

    Both are checked datasets, or parts and unions of them; of others nothing is known, and the
    list is empty. Files are only read where their sizes and ends are equal.
    """
    pairs = list(_candidates(_wholes(one), _wholes(other)))
    for place, name in enumerate((one, other)):
        if pairs and _wholes(name) != [name]:
            files = {os.path.realpath(d["file_name"]) for d in DatasetCatalog.get(name)}
            pairs = [pair for pair in pairs if os.path.realpath(pair[place]) in files]
    return [pair for pair in pairs[:LIMIT] if filecmp.cmp(*pair, shallow=False)]


def _wholes(name: str) -> list[str]:
    """The checked datasets that a name's images come from."""
    return list(dict.fromkeys(whole_of(part) for part in parts_of(parent_of(name))))


def _candidates(one: Sequence[str], other: Sequence[str]) -> Iterator[tuple[str, str]]:
    by_content: dict[str, list[tuple[str, str]]] = {}
    for whole in other:
        for file, content in contents_of(whole).items():
            by_content.setdefault(content, []).append((whole, file))
    for whole in one:
        for file, content in contents_of(whole).items():
            for match in by_content.get(content, ()):
                if match != (whole, file):  # the image itself is in one part alone
                    yield file, match[1]
