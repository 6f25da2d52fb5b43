"""Writes PASCAL VOC folders in the strict layout that Detectron2's evaluation reads.

That evaluation expects integers in every field, ".jpg" images and ids without blanks, and remembers
each path it has read. Folders that differ get a view: a new folder of links, with those XML files
written again that need it (:mod:`detnas_d2.data.checks.voc`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from detnas_d2.data.checks.report import DatasetError
from detnas_d2.data.datasets.voc_lists import id_problem, split_file
from detnas_d2.utils.io import link_file, write_text


def write_view(
    folder: str,
    splits: dict[str, list[str]],
    entries: Iterable[tuple[str, str, str]],
) -> None:
    """Fills a VOC folder; nothing is written outside it.

    Args:
        splits: image ids per split file.
        entries: (id, image file, XML); an XML starting with "<" is content, else a file to link.

    Raises:
        DatasetError: an id or the name of a split leads elsewhere.
    """
    for split, ids in splits.items():
        _refuse(split)
        write_text(split_file(folder, split), "".join(f"{image_id}\n" for image_id in ids))
    for image_id, image, xml in entries:
        _refuse(image_id)
        picture = os.path.join(folder, "JPEGImages", f"{image_id}.jpg")
        annotation = os.path.join(folder, "Annotations", f"{image_id}.xml")
        for target in (picture, annotation):
            os.makedirs(os.path.dirname(target), exist_ok=True)
        link_file(image, picture)
        if xml.startswith("<"):
            write_text(annotation, xml)
        else:
            link_file(xml, annotation)


def _refuse(name: str) -> None:
    problem = id_problem(name)
    if problem:
        raise DatasetError(f"[broken_image_entry] {problem}")
