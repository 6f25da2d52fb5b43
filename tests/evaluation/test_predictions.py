"""Arrays of detections give Detectron2's evaluators what the model gave."""

from __future__ import annotations

import pickle
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator
from detectron2.structures import Boxes, Instances

from detnas_d2.evaluation.predictions import (
    DetectionCollector,
    Detections,
    TopKCollector,
    TopKCounts,
)
from tests.evaluation.coco_scenes import detect, forget, ground_truth, register


class Keeping(DatasetEvaluator):
    """Keeps the instances by image."""

    def reset(self) -> None:
        self.found: dict[Any, Instances] = {}

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        for sample, output in zip(inputs, outputs, strict=True):
            self.found[sample["image_id"]] = output["instances"]


def collected(batches: list) -> Detections:
    collector = DetectionCollector()
    for inputs, outputs in batches:
        collector.process(inputs, outputs)
    return pickle.loads(pickle.dumps(collector.finish()))


@pytest.mark.parametrize("masks", [False, True])
def test_coco_records_are_those_of_the_model(tmp_path: Any, masks: bool) -> None:
    truth = ground_truth(1)
    batches = detect(truth, 2, masks=masks, digits=7)
    register("records", truth, tmp_path)
    try:
        direct, fed = (COCOEvaluator("records", use_fast_impl=False) for _ in range(2))
    finally:
        forget("records")
    direct.reset()
    for inputs, outputs in batches:
        direct.process(inputs, outputs)
    detections = collected(batches)
    detections.feed(fed)
    assert fed._predictions == direct._predictions
    records = [r for p in fed._predictions for r in p["instances"]]
    assert len(records) == detections.detections > 20
    assert all(("segmentation" in r) == masks for r in records)
    assert outputs[0]["instances"].has("pred_masks") == masks  # the model's own are left alone


def test_merged_parts_are_the_whole() -> None:
    truth = ground_truth(3)
    batches = detect(truth, 4, masks=True)
    parts = [collected(batches[a:b]) for a, b in ((0, 5), (5, 5), (5, 6), (6, 12))]
    merged, whole = Detections.merged(parts), collected(batches)
    assert merged.image_ids == whole.image_ids and merged.masks == whole.masks
    for name in whole.fields:
        np.testing.assert_array_equal(merged.fields[name], whole.fields[name])
    assert Detections.merged([collected([])]).detections == 0
    with pytest.raises(ValueError, match="fields differ between ranks"):
        Detections.merged([whole, collected(detect(truth, 4))])


def test_any_field_survives() -> None:
    found = Instances((30, 40))
    found.pred_boxes = Boxes(torch.rand(2, 4))
    found.scores = torch.rand(2).bfloat16()
    found.pred_keypoints = torch.rand(2, 5, 3)
    empty = Instances((50, 20))
    empty.pred_boxes, empty.scores = Boxes(torch.rand(0, 4)), torch.rand(0).bfloat16()
    empty.pred_keypoints = torch.rand(0, 5, 3)
    batch = ([{"image_id": "a"}, {"image_id": "b"}], [{"instances": found}, {"instances": empty}])
    detections = collected([batch])
    kept = Keeping()
    detections.feed(kept)
    assert kept.found["a"].image_size == (30, 40) and len(kept.found["b"]) == 0
    torch.testing.assert_close(kept.found["a"].pred_boxes.tensor, found.pred_boxes.tensor)
    assert kept.found["a"].scores.tolist() == found.scores.tolist()
    kept.found["a"].pred_keypoints.zero_()  # as COCO's evaluator does
    detections.feed(kept)
    assert torch.equal(kept.found["a"].pred_keypoints, found.pred_keypoints)


def test_unknown_output() -> None:
    with pytest.raises(ValueError, match=r"expected one of .* got \['sem_seg'\]"):
        DetectionCollector().process([{"image_id": 1}], [{"sem_seg": 1}])


def test_hits() -> None:
    collectors = defaultdict(TopKCollector)
    scores = torch.eye(8)[:3]
    for rank, label in enumerate((0, 1, 7)):
        collectors[rank].process([{"label": label}], [{"scores": scores[rank]}])
    parts = [c.finish() for c in collectors.values()]
    assert TopKCounts.merged(parts).images == 3 and TopKCounts.merged(parts).top1 == 2
    assert TopKCounts.merged(parts).detections == 3
