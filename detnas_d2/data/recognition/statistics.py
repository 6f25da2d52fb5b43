"""Counts and sizes of the boxes of a dataset."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from detnas_d2.data.checks.inspection import ImageEntry
from detnas_d2.data.recognition.recognised import QUANTILES, Quantiles


def statistics(entries: Iterable[ImageEntry], classes: Iterable[str]) -> dict[str, Any]:
    """The fields of a ``Part`` that its images tell."""
    counts: Counter[str] = Counter()
    images: list[tuple[int, int, int]] = []  # width, height, boxes
    boxes: list[tuple[float, float, int]] = []  # width, height, position of the image
    for entry in entries:
        counts.update(label for label, _, _ in entry.boxes)
        boxes += [(width, height, len(images)) for _, width, height in entry.boxes]
        images.append((entry.width, entry.height, len(entry.boxes)))
    image = np.array(images, dtype=np.float64).reshape(-1, 3)
    box = np.array(boxes, dtype=np.float64).reshape(-1, 3)
    areas = (image[:, 0] * image[:, 1])[box[:, 2].astype(int)]
    return {
        "images": len(images),
        "images_without_boxes": int((image[:, 2] == 0).sum()),
        "boxes": len(boxes),
        "classes": {name: counts[name] for name in classes},
        "box_size": _quantiles(np.sqrt(box[:, 0] * box[:, 1] / areas)),
        "box_aspect": _quantiles(box[:, 1] / box[:, 0]),
        "boxes_per_image": _quantiles(image[:, 2]),
        "image_width": _quantiles(image[:, 0]),
        "image_height": _quantiles(image[:, 1]),
    }


def _quantiles(values: np.ndarray) -> Quantiles:
    if not len(values):
        return {}
    found = np.percentile(values, QUANTILES)
    return {str(q): round(float(value), 4) for q, value in zip(QUANTILES, found, strict=True)}
