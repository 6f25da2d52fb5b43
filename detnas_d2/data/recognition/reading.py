"""Reads the images and boxes of a layout into the answer of ``recognise``."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence

from detnas_d2.data.checks.box_rows import CONVERTED
from detnas_d2.data.checks.coco import inspect_coco
from detnas_d2.data.checks.csv_boxes import inspect_csv
from detnas_d2.data.checks.inspection import Inspection
from detnas_d2.data.checks.report import DatasetError
from detnas_d2.data.checks.voc import NORMALISED, inspect_voc
from detnas_d2.data.checks.yolo import inspect_yolo
from detnas_d2.data.datasets.cuts import Shares
from detnas_d2.data.datasets.sources import (
    CocoSource,
    CsvSource,
    VocSource,
    YoloSource,
    declaration_of,
)
from detnas_d2.data.recognition.layout import TEST, TRAIN, VAL, BoxSource, Found, Layout
from detnas_d2.data.recognition.leaks import Read, equal_images, leak_notes
from detnas_d2.data.recognition.recognised import Part, Recognised
from detnas_d2.data.recognition.roles import leave_out_same, test_from_val, with_train
from detnas_d2.data.recognition.statistics import statistics
from detnas_d2.data.recognition.tree import Tree
from detnas_d2.data.recognition.unused import unused_notes
from detnas_d2.utils.garbage import seldom_collected
from detnas_d2.utils.io import file_name_of, write_text

TEST_SHARE = 0.2
"""Of the images, where a folder has no test set."""
FEWEST = 3
"""Images of which such a share is one image at least."""

_INSPECTORS: dict[type[BoxSource], Callable[..., Inspection]] = {
    CocoSource: inspect_coco,
    CsvSource: inspect_csv,
    VocSource: inspect_voc,
    YoloSource: inspect_yolo,
}
_USUAL_FIXES = {CONVERTED, *NORMALISED}


@seldom_collected()
def read_layout(
    tree: Tree, layout: Layout, notes: Sequence[str], folder: str
) -> tuple[Recognised, list[tuple[str, list[str]]]]:
    """The answer, and the files that it depends on.

    Args:
        folder: gets the lists of what is dropped.

    Raises:
        DatasetError: the images to train on cannot be read, or none of their boxes is left.
    """
    notes = [*notes, *layout.notes]
    reads: dict[str, Read] = {}
    tracked: list[tuple[str, list[str]]] = []
    for role, found in with_train(layout, notes).items():
        try:
            read = _read(found)
        except DatasetError as error:
            if role == TRAIN:
                raise
            notes.append(f"{found.place} is left out: {error}")
            continue
        tracked += read.inspection.tracked
        if any(entry.boxes for entry in read.entries):
            reads[role] = read
        elif role == TRAIN:
            raise DatasetError(_nothing_left(tree, read))
        else:
            notes.append(f"{found.place} is left out: it has no box that can be used")
    leave_out_same(reads, notes)
    test_from_val(reads, notes)
    notes += unused_notes(tree, tracked)
    return _recognised(tree, layout, reads, notes, folder), tracked


def _read(found: Found) -> Read:
    inspection = _INSPECTORS[type(found.source)](found.source)
    return Read(found, inspection, list(inspection.entries()))


def _nothing_left(tree: Tree, read: Read) -> str:
    place, problems = os.path.normpath(tree.path(read.found.place)), read.inspection.problems
    if not problems:
        return f"{place}: no box to learn from"
    return (
        f"{place}: no box to learn from; {len(problems)} entries cannot be used, the first: "
        f"{problems[0]}"
    )


def _recognised(
    tree: Tree, layout: Layout, reads: dict[str, Read], notes: list[str], folder: str
) -> Recognised:
    whole = file_name_of(os.path.basename(tree.root)).replace("@", "_") or "data"
    # Detectron2's own names have "_" there.
    names = {role: f"{whole}-{role}" for role in (TRAIN, VAL, TEST)}
    classes = _classes(reads, ordered=layout.format in ("coco", "yolo"))
    needed = layout.format in ("voc", "csv") or any(
        read.inspection.classes != classes for read in reads.values()
    )
    declarations, parts = [], []
    for role, read in reads.items():
        name, role = (names[role], role) if TEST in reads else (whole, "all")
        source = read.found.source
        declarations.append(declaration_of(name, source, classes if needed else None))
        parts.append(_part(name, role, read, classes, folder))
    splits = {}
    if TEST not in reads:
        if len(reads[TRAIN].entries) < FEWEST:
            raise DatasetError(
                f"{tree.root}: {len(reads[TRAIN].entries)} images that can be used, and no test "
                f"set; expected {FEWEST} or more, of which a fifth becomes one, or a test set"
            )
        shares = {names[TRAIN]: 1 - TEST_SHARE, names[TEST]: TEST_SHARE}
        declarations[0]["SPLITS"] = shares
        cut = Shares(tuple(shares.items())).cut(whole, [e.key for e in reads[TRAIN].entries])
        splits = {part: len(keys) for part, keys in cut.items()}
        sizes = " and ".join(f"{number} images ({part})" for part, number in splits.items())
        notes.append(f"there is no test set: the images are split into {sizes}, by their names")
        pairs = equal_images(reads, {"train": cut[names[TRAIN]], "test": cut[names[TEST]]})
    else:
        pairs = equal_images(reads)
    notes += leak_notes(reads, pairs)
    absent = [label for label, number in parts[0].classes.items() if not number]
    if absent:
        use = "images" if splits else "training images"
        notes.append(f"classes without a box in the {use}: {', '.join(absent)}")
    return Recognised(
        folder=tree.root,
        format=layout.format,
        layout=layout.text,
        declarations=tuple(declarations),
        train=names[TRAIN],
        test=names[TEST],
        val=names[VAL] if VAL in reads else "",
        classes=classes,
        parts=tuple(parts),
        splits=splits,
        equal_images=tuple(pairs),
        notes=tuple(notes),
    )


def _classes(reads: dict[str, Read], *, ordered: bool) -> tuple[str, ...]:
    """The classes of all roles; ``ordered``: as files list them, else by alphabet."""
    found = dict.fromkeys(name for read in reads.values() for name in read.inspection.classes)
    return tuple(found if ordered else sorted(found))


def _part(name: str, role: str, read: Read, classes: Sequence[str], folder: str) -> Part:
    inspection = read.inspection
    listing = ""
    if inspection.problems:
        listing = os.path.join(folder, f"dropped-{role}.txt")
        text = "".join(f"{problem}\n" for problem in inspection.problems)
        write_text(listing, text.encode("utf-8", "backslashreplace").decode())
    dropped = Counter(problem.kind for problem in inspection.problems)
    return Part(
        name=name,
        role=role,
        place=read.found.place,
        crowd=inspection.num_crowd,
        dropped=dict(dropped.most_common()),
        listing=listing,
        notes=(*inspection.notes, *sorted(inspection.fixes - _USUAL_FIXES)),
        **statistics(read.entries, classes),
    )
