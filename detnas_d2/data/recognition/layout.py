"""Words that the recognition of all formats shares."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from detnas_d2.data.datasets.sources import CocoSource, CsvSource, VocSource, YoloSource
from detnas_d2.data.recognition.tree import Tree

BoxSource = CocoSource | YoloSource | VocSource | CsvSource

TRAIN, VAL, TEST, WHOLE = ROLES = ("train", "val", "test", "")
"""What images are for; WHOLE: the name says nothing."""

_WORDS = {
    **dict.fromkeys(("train", "training", "trainval"), TRAIN),
    **dict.fromkeys(("val", "valid", "validation", "dev"), VAL),
    **dict.fromkeys(("test", "testing"), TEST),
}
_SAMPLE = 100  # names of images that are looked for


@dataclass(frozen=True)
class Found:
    """Images of one role: their source, and the file or folder (below the root) that lists them."""

    source: BoxSource
    place: str


@dataclass
class Layout:
    """How a folder can be read.

    Attributes:
        format: FORMAT of a declaration.
        text: the same for a person.
        roles: of ROLES, what there is.
        notes: choices between files of one role, with their reason.
    """

    format: str
    text: str
    roles: dict[str, Found]
    notes: list[str] = field(default_factory=list)


def role_of(path: str) -> str:
    """The role that the last telling part of a path below the root names, or WHOLE."""
    stem = os.path.splitext(path)[0]
    for part in reversed(stem.split(os.sep)):
        words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", part)
        roles = {_WORDS[word.lower()] for word in words if word.lower() in _WORDS}
        if roles == {TRAIN, VAL}:
            return TRAIN
        if len(roles) == 1:
            return roles.pop()
    return WHOLE


def folder_role(folder: str) -> str:
    """The role that a folder's name tells."""
    return role_of(os.path.join(folder, "x"))


def sample(items: Sequence[str]) -> list[str]:
    """Some of the items, from all over the list."""
    return list(items[:: max(1, len(items) // _SAMPLE)])


def image_folder(tree: Tree, names: Sequence[str], beside: str) -> tuple[str, int, int]:
    """The folder below the root that names of image files start at.

    Args:
        beside: the file that has the names; of several folders with all of them, one whose path
            names the same role wins, then the nearest.

    Returns:
        The folder, how many of some names are there, and how many were looked for.
    """
    looked = sample(names)
    hits: Counter[str] = Counter()
    for name in looked:
        wanted = os.path.normpath(name)
        bases = set()
        for path in tree.images_by_name.get(os.path.basename(wanted), ()):
            if path == wanted:
                bases.add("")
            elif path.endswith(os.sep + wanted):
                bases.add(path[: -len(wanted) - 1])
        hits.update(bases)
    if not hits:
        return "", 0, len(looked)
    role = role_of(beside)

    def rank(base: str) -> tuple[int, bool, int, str]:
        distance = len(os.path.relpath(base or ".", os.path.dirname(beside) or ".").split(os.sep))
        return -hits[base], folder_role(base) != role, distance, base

    best = min(hits, key=rank)
    return best, hits[best], len(looked)


def largest(candidates: Sequence[tuple[str, int]], what: str, role: str) -> tuple[str, str]:
    """(The path with the largest number, a note on the others or "")."""
    best = max(candidates, key=lambda item: (item[1], item[0]))
    others = [path for path, _ in candidates if path != best[0]]
    if not others:
        return best[0], ""
    use = f"{role} images".strip()
    left = ", ".join(sorted(other or "." for other in others))
    return best[0], (
        f"{best[0] or '.'} ({best[1]} {what}) is read for the {use}, as the largest; left out: "
        f"{left}"
    )
