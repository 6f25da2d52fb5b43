"""Recognises a folder of labelled images, and says what is in it."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

from detnas_d2.data.checks.report import DatasetError
from detnas_d2.data.recognition.memory import Memory, default_cache
from detnas_d2.data.recognition.recognised import Recognised
from detnas_d2.data.recognition.tree import Tree, scan

if TYPE_CHECKING:
    from detnas_d2.data.recognition.layout import Layout

_NAMED = 3


def recognise(folder: str, cache_dir: str = "") -> Recognised:
    """What a folder holds, with declarations for DATASETS.REGISTER.

    Everything is read as training reads it with DATASETS.INVALID "drop": annotations, headers of
    images. The answer is remembered below ``cache_dir`` until a file changes.

    Args:
        folder: or one file of annotations in it (.json, .yaml, .csv), to read that one alone.
        cache_dir: DATASETS.CACHE_DIR; "" for the user's (:func:`default_cache`).

    Raises:
        InputError: the folder is of no known layout, or nothing is left to learn from; says what
            was looked for and what was found.
    """
    tree = scan(folder, _tell if sys.stderr.isatty() else lambda files: None)
    memory = Memory(cache_dir or default_cache(), tree)
    kept = memory.recall()
    if kept is not None:
        return Recognised.from_json(kept)
    # These import NumPy and Pillow, which an answer that is kept does without.
    from detnas_d2.data.recognition.reading import read_layout

    layout, notes = find_layout(tree)
    found, tracked = read_layout(tree, layout, notes, memory.folder)
    memory.keep(found.to_json(), tracked)
    return found


def find_layout(tree: Tree) -> tuple[Layout, list[str]]:
    """The layout of a folder, and what else it could be.

    Raises:
        DatasetError: none fits.
    """
    from detnas_d2.data.recognition import coco, csv_files, voc, yolo

    reasons: list[str] = []
    finders = (coco.find_coco, yolo.find_yolo, voc.find_voc, csv_files.find_csv)
    layouts = [layout for find in finders if (layout := find(tree, reasons)) is not None]
    if not layouts:
        expected = [module.EXPECTED for module in (coco, yolo, voc, csv_files)]
        raise DatasetError(_nothing(tree, expected, reasons))
    notes = []
    if len(layouts) > 1:
        others = ", ".join(_described(layout) for layout in layouts[1:])
        notes.append(
            f"read as {_described(layouts[0])}; the folder could also be read as {others}: the "
            "order is COCO, YOLO, VOC, CSV (name a .json, .yaml or .csv file to read that instead)"
        )
    return layouts[0], notes


def _described(layout: Layout) -> str:
    return f"{layout.text} ({', '.join(found.place for found in layout.roles.values())})"


def _nothing(tree: Tree, expected: Iterable[str], reasons: list[str]) -> str:
    """One line: what nearly was a dataset and why it is none, what was looked for and found."""
    why = "".join(f"{re.sub(chr(10), ' ', reason)}; " for reason in reasons[:_NAMED])
    if tree.only:
        place = os.path.join(tree.root, tree.only)
        return f"{place}: not recognised as annotations: {why}expected {', '.join(expected)}"
    counts: dict[str, int] = {}
    for names in tree.folders.values():
        for name in names:
            kind = os.path.splitext(name)[1].lower() or "no extension"
            counts[kind] = counts.get(kind, 0) + 1
    most = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:8]
    found = ", ".join(f"{number} {kind}" for kind, number in most) or "no file at all"
    return (
        f"{tree.root}: no labelled images recognised{': ' if why else ''}{why[:-2]}. Looked for "
        f"{', '.join(expected)}; found {found}, of them {len(tree.images)} images that can be read"
    )


def _tell(files: int) -> None:
    end = "\r" if files else "\r\033[K"  # the line is gone in the end
    text = f"looking at files: {files}" if files else ""
    print(text, end=end, file=sys.stderr, flush=True)
