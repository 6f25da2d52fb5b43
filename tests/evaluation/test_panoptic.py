"""Panoptic quality of scenes whose matches can be counted by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from PIL import Image

from detnas_d2.evaluation.panoptic import PanopticEvaluator
from tests.evaluation.coco_scenes import forget

NAME = "panoptic_truth"
CROWD, FIRST, SECOND, FLOOR = 70_000, 1, 300, 9
"""Ids of the true segments; the crowd's takes three colours of a pixel."""


@pytest.fixture
def evaluator(tmp_path: Path) -> Iterator[PanopticEvaluator]:
    """One image of 10 rows by 20 columns: two cars, a crowd of cars, a floor, void below."""
    ids = np.full((10, 20), FLOOR)
    ids[0:4, 0:5], ids[0:4, 5:10], ids[0:4, 10:20], ids[8:10] = FIRST, SECOND, CROWD, 0
    colors = np.stack([ids % 256, ids // 256 % 256, ids // 256**2], 2).astype(np.uint8)
    Image.fromarray(colors).save(tmp_path / "1.png")
    kinds = {FIRST: (7, 0), SECOND: (7, 0), CROWD: (7, 1), FLOOR: (5, 0)}
    segments = [{"id": i, "category_id": c, "iscrowd": k} for i, (c, k) in kinds.items()]
    truth = {"image_id": 1, "file_name": "1.png", "segments_info": segments}
    categories = [{"id": i, "isthing": t} for i, t in ((7, 1), (8, 1), (5, 0), (6, 0))]
    file = tmp_path / "panoptic.json"
    file.write_text(json.dumps({"annotations": [truth], "categories": categories}))
    MetadataCatalog.get(NAME).set(
        panoptic_json=str(file),
        panoptic_root=str(tmp_path),
        thing_dataset_id_to_contiguous_id={7: 0, 8: 1},
        stuff_dataset_id_to_contiguous_id={5: 1, 6: 2},
        label_divisor=1000,
    )
    yield PanopticEvaluator(NAME)
    forget(NAME)


def found(
    evaluator: PanopticEvaluator, ids: np.ndarray, segments: list[dict] | None, image: int = 1
) -> dict[str, float]:
    evaluator.reset()
    evaluator.process([{"image_id": image}], [{"panoptic_seg": (torch.from_numpy(ids), segments)}])
    return evaluator.evaluate()["panoptic_seg"]


def segment(number: int, category: int, thing: bool = True) -> dict:
    return {"id": number, "category_id": category, "isthing": thing}


def test_matches_misses_crowds_and_void(evaluator: PanopticEvaluator) -> None:
    ids = np.zeros((10, 20), np.int32)
    ids[0:4, 0:4] = 1  # of the first car 16 of 20 pixels: IoU 0.8
    ids[0:2, 5:10] = 2  # of the second one half, which is not above one half
    ids[0:4, 10:20] = 3  # a car where the crowd is: no error
    ids[8:9, 0:20] = 4  # a car of the other category in the void: no error
    ids[4:10, 0:18] = 5  # overwrites part of 4; floor: 72 of 80 pixels, the void left out
    ids[9, 18] = 6  # void alone
    segments = [segment(1, 0), segment(2, 0), segment(3, 0), segment(4, 1)]
    segments += [segment(5, 1, False), segment(6, 2, False)]
    result = found(evaluator, ids, segments)
    # Cars: one match of 0.8, one false positive, one false negative.
    assert result["PQ_th"] == pytest.approx(100 * 0.8 / 2)
    assert (result["SQ_th"], result["RQ_th"]) == pytest.approx((80, 50))
    assert result["PQ_st"] == result["SQ_st"] == pytest.approx(90) and result["RQ_st"] == 100
    assert result["PQ"] == pytest.approx((40 + 90) / 2)


def test_ids_that_hold_the_category(evaluator: PanopticEvaluator) -> None:
    ids = np.full((10, 20), -1)
    ids[0:4, 0:5], ids[4:8] = 7_001, 5_000
    result = found(evaluator, ids, None)
    assert result["PQ_st"] == 100 and result["PQ_th"] == pytest.approx(100 / 1.5)


def test_nothing_and_nowhere(evaluator: PanopticEvaluator) -> None:
    result = found(evaluator, np.zeros((10, 20), np.int32), [])
    assert result["PQ"] == 0 and result["RQ_st"] == 0
    evaluator.reset()
    assert np.isnan(evaluator.evaluate()["panoptic_seg"]["PQ"])
    with pytest.raises(ValueError, match="'panoptic_truth': image 2 has no annotation"):
        found(evaluator, np.zeros((10, 20), np.int32), [], image=2)
