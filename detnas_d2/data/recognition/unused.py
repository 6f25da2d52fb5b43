"""Images below a folder that nothing is read from."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable

from detnas_d2.data.recognition.tree import Tree

# Kinds of images that Pillow does not open, or not everywhere.
_UNREAD = (
    ".heic",
    ".heif",
    ".avif",
    ".jp2",
    ".jxl",
    ".dng",
    ".cr2",
    ".cr3",
    ".nef",
    ".arw",
    ".exr",
)


def unused_notes(tree: Tree, tracked: Iterable[tuple[str, list[str]]]) -> list[str]:
    """A line about images that no annotation names, and one about those of other formats.

    Args:
        tracked: (folder, paths) of all files that were looked at.
    """
    notes = []
    looked: set[str] = set()
    for base, paths in tracked:
        looked.update(paths if not base else (os.path.join(base, path) for path in paths))
    top = tree.path("")
    unused = [image for image in tree.images if top + image not in looked]
    if unused:  # or written in another way
        looked = set(map(os.path.normpath, looked))
        unused = [image for image in unused if tree.path(image) not in looked]
    if unused:
        notes.append(
            f"{len(unused)} of {len(tree.images)} images below the folder are in no part, e.g. "
            f"{unused[0]}"
        )
    kinds = Counter(os.path.splitext(path)[1].lower() for path in tree.with_extension(*_UNREAD))
    if kinds:
        found = ", ".join(f"{number} {kind}" for kind, number in kinds.most_common())
        notes.append(
            f"images of these formats are passed over: {found}; convert them to .jpg or .png"
        )
    return notes
