"""Loads PASCAL VOC folders in the strict layout that Detectron2's evaluation reads."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

from detectron2.structures import BoxMode

from detnas_d2.data.checks.report import DatasetError
from detnas_d2.data.datasets.sources import VocSource
from detnas_d2.data.datasets.voc_lists import strict_split
from detnas_d2.data.datasets.voc_xml import (
    EDGES,
    BrokenXml,
    number,
    read_object,
    read_xml,
    texts_below,
)


def load_voc(source: VocSource) -> list[dict[str, Any]]:
    """Detectron2's dicts of a strict folder, as ``load_voc_instances`` makes them.

    Boxes: XYXY_ABS with 1 subtracted from xmin and ymin. Unlike Detectron2 0.6 it runs with
    current NumPy and reads splits of one image.
    """
    dicts = []
    for image_id in strict_split(source):
        path = os.path.join(source.root, "Annotations", f"{image_id}.xml")
        try:
            tree, _ = read_xml(path)
        except (OSError, BrokenXml) as error:
            raise DatasetError(f"[broken_annotation_file] {path}: {error}") from error
        objects = []
        for item in tree.findall("object"):
            read = map(number, texts_below(item, "bndbox", EDGES))
            box = [edge for edge in read if edge is not None]
            name = item.findtext("name")
            if name not in source.classes:
                raise DatasetError(f"{path}: class {name!r} is not one of {list(source.classes)}")
            if len(box) < len(EDGES):
                raise DatasetError(f"{path}: bndbox must hold numbers {', '.join(EDGES)}")
            objects.append(
                {
                    "category_id": source.classes.index(name),
                    "bbox": [box[0] - 1.0, box[1] - 1.0, box[2], box[3]],
                    "bbox_mode": BoxMode.XYXY_ABS,
                }
            )
        dicts.append(
            {
                "file_name": os.path.join(source.root, "JPEGImages", f"{image_id}.jpg"),
                "image_id": image_id,
                "height": int(tree.findtext("size/height", "")),
                "width": int(tree.findtext("size/width", "")),
                "annotations": objects,
            }
        )
    return dicts


def count_scored(source: VocSource) -> Counter[str]:
    """Number of objects per class that VOC's evaluation counts: those that are not difficult."""
    found: Counter[str] = Counter()
    for image_id in strict_split(source):
        root, _ = read_xml(os.path.join(source.root, "Annotations", f"{image_id}.xml"))
        objects = map(read_object, root.findall("object"))
        found.update(item.name for item in objects if not item.difficult)
    return found
