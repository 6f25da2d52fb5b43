"""The fields of a COCO annotation as Detectron2's loader and pycocotools read them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeGuard

import numpy as np

from detnas_d2.data.checks.inspection import Targets, is_number

LARGEST_ID = 2**53
"""Ids from here on are rounded by the evaluators, which pass them through floats."""


def identifier(value: Any) -> int | str | None:
    """An id as one whole number (1.0 is 1) or a text; None for anything else."""
    if type(value) is int:
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, str) and value else None


def known_identifier(value: Any) -> int | str:
    """:func:`identifier` of what was found to be an id."""
    found = identifier(value)
    assert found is not None
    return found


def is_plain(value: Any) -> bool:
    """Whether every reader and evaluator takes this id as it is."""
    return type(value) is int and 0 <= value < LARGEST_ID


def crowd_flag(value: Any) -> int | None:
    """'iscrowd' as 0 or 1, absent (None) as 0; None for values that are neither."""
    if value is None:
        return 0
    if isinstance(value, str):
        value = {"0": 0, "1": 1}.get(value.strip())
    return int(value) if isinstance(value, (int, float)) and value in (0, 1) else None


def amend_segmentation(
    annotation: dict[str, Any], image: dict[str, Any], targets: Targets
) -> tuple[dict[str, Any], str]:
    """(What to change about 'segmentation', why the annotation cannot be used or "").

    None as the new value stands for leaving the field out. Detectron2's loader passes over whole
    objects whose polygons are malformed, also for a detector that never looks at masks.
    """
    value = annotation.get("segmentation")
    if not targets.masks:
        return ({} if not value or _loadable(value) else {"segmentation": None}), ""
    if not value:
        return {}, "MODEL.MASK_ON is True, and there is no 'segmentation'"
    if isinstance(value, dict):
        if not is_mask(value, image["height"], image["width"]):
            return {}, (
                "the run-length encoding of 'segmentation' is broken, empty, or not of the image's "
                f"height and width [{image['height']}, {image['width']}]"
            )
        if targets.polygons and not annotation["iscrowd"]:
            return {}, (
                "'segmentation' is a run-length encoding, which INPUT.MASK_FORMAT 'polygon' cannot "
                "hold; set 'bitmask'"
            )
        return {}, ""
    polygons = [p for p in value if _is_polygon(p)] if isinstance(value, list) else []
    if not polygons:
        return {}, (
            "'segmentation' must be polygons [[x1, y1, x2, y2, x3, y3, ...], ...] of three points "
            f"or more, or a run-length encoding, got {shortened(value)}"
        )
    return ({} if len(polygons) == len(value) else {"segmentation": polygons}), ""


def amend_keypoints(
    annotation: dict[str, Any], image: dict[str, Any], targets: Targets
) -> tuple[dict[str, Any], str]:
    """The same for 'keypoints' and 'num_keypoints'."""
    value, number = annotation.get("keypoints"), targets.keypoints
    if not number:
        ok = not value or (isinstance(value, list) and all(map(is_number, value)))
        return ({} if ok else {"keypoints": None}), ""
    if not value and annotation["iscrowd"]:  # not learned from, but pycocotools reads it
        return {"keypoints": [0] * 3 * number, "num_keypoints": 0}, ""
    if not _are_keypoints(value, number):
        return {}, (
            f"MODEL.KEYPOINT_ON is True: 'keypoints' must be {number} times x, y and visibility "
            f"(0, 1 or 2), got {shortened(value)}"
        )
    visible = sum(v > 0 for v in value[2::3])
    return ({} if annotation.get("num_keypoints") == visible else {"num_keypoints": visible}), ""


def _loadable(value: Any) -> bool:
    """Whether Detectron2's loader keeps the object, whatever it reads of its masks."""
    if isinstance(value, dict):
        size, counts = value.get("size"), value.get("counts")
        if isinstance(counts, str):
            return True
        return _are_whole(size, 2) and is_mask(value, *size)
    if not isinstance(value, list) or not all(isinstance(p, list) for p in value):
        return False
    return any(len(p) >= 6 and len(p) % 2 == 0 for p in value)


def _is_polygon(value: Any) -> bool:
    """At least three points that are not on one horizontal or vertical line."""
    if not isinstance(value, list) or len(value) < 6 or len(value) % 2:
        return False
    if not all(map(is_number, value)):
        return False
    return all(max(v) > min(v) for v in (value[::2], value[1::2]))


def is_mask(value: dict[str, Any], height: int, width: int) -> bool:
    """Whether a run-length encoding covers an image of this size, and is not empty."""
    size, counts = value.get("size"), value.get("counts")
    if not _are_whole(size, 2) or list(size) != [height, width]:
        return False
    if isinstance(counts, str):
        runs = run_lengths(counts)
    else:
        runs = np.array(counts, dtype=np.int64) if _are_whole(counts) else None
    if runs is None or (runs < 0).any() or runs.sum() != height * width:
        return False
    return bool(runs[1::2].any())


def run_lengths(text: str) -> np.ndarray | None:
    """The runs, int64, in pycocotools' compressed text; None where it is not such a text.

    Numbers of 5 bits a character, least significant first, a sixth bit telling that more follow;
    from the fourth on they are differences to the number two before.
    """
    codes = np.frombuffer(text.encode("utf-8", "replace"), dtype=np.uint8).astype(np.int64) - 48
    if not len(codes) or ((codes < 0) | (codes > 63)).any() or codes[-1] & 32:
        return None
    last = np.flatnonzero(codes & 32 == 0)  # the last character of every number
    first = np.concatenate([[0], last[:-1] + 1])
    lengths = last - first + 1
    if lengths.max() > 8:  # 40 bits: no image has as many pixels
        return None
    places = np.arange(len(codes)) - np.repeat(first, lengths)
    values = np.add.reduceat((codes & 31) << (5 * places), first)
    negative = codes[last] & 16 != 0
    values[negative] -= 1 << (5 * lengths[negative])
    for start in (1, 2):  # the first number stands for itself
        values[start::2] = np.cumsum(values[start::2])
    return values


def _are_whole(value: Any, count: int | None = None) -> TypeGuard[list[int]]:
    """Whether it is a list of whole numbers from 0, ``count`` of them if given."""
    if not isinstance(value, list) or (count is not None and len(value) != count):
        return False
    return bool(value) and all(type(v) is int and 0 <= v < 2**40 for v in value)


def _are_keypoints(value: Any, number: int) -> TypeGuard[list[float]]:
    if not isinstance(value, list) or len(value) != 3 * number or not all(map(is_number, value)):
        return False
    return all(v in (0, 1, 2) for v in value[2::3])


def shortened(value: Any, limit: int = 60) -> str:
    """``repr`` of a value of a file, cut to ``limit`` characters, on one line."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}..."


def distinct(values: Iterable[Any]) -> bool:
    """Whether all of the hashable values differ."""
    values = list(values)
    return len(set(values)) == len(values)
