"""Names and mirror pairs of the key points of declared datasets."""

from __future__ import annotations

import json
import re

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from detnas_d2.data.checks.report import DatasetError

_SIDES = {"left": "right", "right": "left", "Left": "Right", "Right": "Left"}


def name_keypoints(cfg: CfgNode, name: str) -> None:
    """Gives a COCO dataset the metadata that Detectron2 flips key points by, from its file.

    Names come from the ``keypoints`` of its categories; those that differ by "left" and "right"
    are mirror images of each other. Nothing is done without ``MODEL.KEYPOINT_ON``, and for data
    whose metadata have them.

    Raises:
        DatasetError: names that are missing, differ between categories, or are not as many as
            ``MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS``.
    """
    metadata = MetadataCatalog.get(name)
    wanted = cfg.MODEL.KEYPOINT_ON and metadata.get("evaluator_type") == "coco"
    if not wanted or hasattr(metadata, "keypoint_names") or not metadata.get("json_file"):
        return
    with open(metadata.json_file, encoding="utf-8") as file:
        categories = json.load(file)["categories"]
    found = [c["keypoints"] for c in categories if c.get("keypoints")]
    number = cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS
    if not found and cfg.INPUT.RANDOM_FLIP == "none":
        found = [[f"point {i}" for i in range(number)]]
    if not found or any(names != found[0] for names in found):
        raise DatasetError(
            f"{metadata.json_file}: MODEL.KEYPOINT_ON is True: expected one list 'keypoints' of "
            f"{number} names in the categories (mirrored images exchange left_... and right_...); "
            "add it, or set INPUT.RANDOM_FLIP none"
        )
    names = found[0]
    if len(names) != number:
        raise DatasetError(
            f"{metadata.json_file}: {len(names)} key points are named, "
            f"MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS is {number}"
        )
    mirrored = {n: re.sub("|".join(_SIDES), lambda m: _SIDES[m.group()], n) for n in names}
    pairs = [(a, b) for a, b in mirrored.items() if b in names and names.index(a) < names.index(b)]
    metadata.set(keypoint_names=list(names), keypoint_flip_map=pairs)
