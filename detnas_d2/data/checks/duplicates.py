"""Images that two datasets share, byte by byte, whatever their files are called."""

from __future__ import annotations

import os

from detectron2.data import DatasetCatalog

from detnas_d2.data.checks.equal_files import Contents, candidates, equal_files
from detnas_d2.data.checks.validation import contents_of
from detnas_d2.data.datasets.splits import parent_of, whole_of
from detnas_d2.data.datasets.union import parts_of


def identical_images(one: str, other: str) -> list[tuple[str, str]]:
    """Pairs of equal files, the first of ``one``, the second of ``other``; LIMIT at most.

    Both are checked datasets, or parts and unions of them; of others nothing is known, and the
    list is empty. Files are only read where their sizes and ends are equal.
    """
    contents = [_contents(name) for name in (one, other)]
    for place, name in enumerate((one, other)):
        alike = next(candidates(*contents), None) is not None
        if alike and {whole for whole, _ in contents[place]} != {name}:
            files = {os.path.realpath(d["file_name"]) for d in DatasetCatalog.get(name)}
            contents[place] = {
                key: content
                for key, content in contents[place].items()
                if os.path.realpath(key[1]) in files
            }
    return equal_files(*contents)


def _contents(name: str) -> Contents:
    """Of the checked datasets that a name's images come from."""
    wholes = dict.fromkeys(whole_of(part) for part in parts_of(parent_of(name)))
    return {(w, file): content for w in wholes for file, content in contents_of(w).items()}
