"""Images that are trained on and tested on."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from detnas_d2.data.checks.equal_files import LIMIT, Contents, equal_files
from detnas_d2.data.checks.inspection import ImageEntry, Inspection
from detnas_d2.data.recognition.layout import TEST, TRAIN, Found

# Roboflow names every copy of an image by a digest: "cells_7_jpg.rf.0123abcd.jpg".
_COPY = re.compile(r"\.rf\.[0-9a-zA-Z]+$")


@dataclass
class Read:
    """Images of one role, as they were read."""

    found: Found
    inspection: Inspection
    entries: list[ImageEntry]

    @functools.cached_property
    def files(self) -> set[str]:
        """Image files, as they are called where links end to folders."""
        folders = functools.cache(os.path.realpath)
        pairs = (os.path.split(entry.file) for entry in self.entries)
        return {os.path.join(folders(folder), name) for folder, name in pairs}


def equal_images(
    reads: Mapping[str, Read], cut: Mapping[str, Collection[str]] | None = None
) -> list[tuple[str, str]]:
    """Pairs of equal files, the first trained on, the second tested on.

    Args:
        cut: role -> keys of images, where the images to train on are split for both.
    """
    if cut is None:
        contents = [_contents(reads[role], role) for role in (TRAIN, TEST)]
    else:
        contents = [_contents(reads[TRAIN], role, cut[role]) for role in (TRAIN, TEST)]
    return equal_files(*contents)


def _contents(read: Read, owner: str, keys: Collection[str] | None = None) -> Contents:
    content = read.inspection.contents
    return {
        (owner, entry.file): content[entry.file]
        for entry in read.entries
        if keys is None or entry.key in keys
    }


def leak_notes(reads: Mapping[str, Read], pairs: Sequence[tuple[str, str]]) -> list[str]:
    """One line for each kind of leak."""
    notes = []
    if pairs:
        number = len({tested for _, tested in pairs})
        more = " or more" * (len(pairs) >= LIMIT)
        notes.append(
            f"{number}{more} images to test on are byte by byte images that are trained on, so "
            f"that scores favour what was memorised, e.g. {pairs[0][1]} = {pairs[0][0]}; remove "
            "one of each pair"
        )
    if TEST in reads:
        learned, tested = (_originals(reads[role]) for role in (TRAIN, TEST))
        both = learned & tested
        if both:
            notes.append(
                f"{len(both)} images to test on are copies of originals that are trained on, by "
                f"Roboflow's names, e.g. {min(both)}; export the data again, with the split made "
                "before the copies"
            )
    return notes


def _originals(read: Read) -> set[str]:
    stems = (os.path.splitext(os.path.basename(entry.file))[0] for entry in read.entries)
    return {_COPY.sub("", stem) for stem in stems if _COPY.search(stem)}
