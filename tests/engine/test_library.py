"""Models of Detectron2's LazyConfigs are trained and searched without a config of this project."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import LazyCall, instantiate
from detectron2.data import DatasetCatalog, DatasetMapper, build_detection_test_loader
from detectron2.data import transforms as T
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes, pairwise_iou
from torch import nn

from detnas_d2.data import resumable_loader
from detnas_d2.engine import FairPathSampler, FeatureLesson, search_model, train_model
from detnas_d2.engine.library import FixedBatches
from detnas_d2.evaluation.sequential import SequentialEvaluator
from detnas_d2.modeling import decoded_backbone, find_supernet, supernet_backbone
from tests.engine.tiny_scenes import HEIGHT, register_scenes

FEATURES = ["stage2", "stage3", "stage4"]


def group_norm(channels: int) -> nn.GroupNorm:
    """Detectron2's RetinaNetHead tries a norm of one channel, which its "GN" refuses by now."""
    return nn.GroupNorm(min(4, channels), channels)


def fcos(backbone: Any) -> Any:
    """Detectron2's FCOS with another backbone and 32 channels, for two classes."""
    model = model_zoo.get_config("common/models/fcos.py").model
    model.backbone.bottom_up = backbone
    model.backbone.in_features = FEATURES
    model.backbone.out_channels = model.backbone.top_block.in_channels = 32
    model.head.input_shape, model.head.conv_dims = [ShapeSpec(channels=32)] * 5, [32]
    model.head.norm = group_norm
    model.num_classes, model.test_score_thresh = 2, 0.0
    return model


def cascade(backbone: Any) -> Any:
    """Detectron2's Cascade Mask R-CNN likewise."""
    model = model_zoo.get_config("common/models/cascade_rcnn.py").model
    model.backbone.bottom_up = backbone
    model.backbone.in_features = ["stage1", *FEATURES]
    model.backbone.out_channels = model.proposal_generator.head.in_channels = 16
    model.proposal_generator.anchor_generator.sizes = [[8], [16], [32], [64], [128]]
    model.proposal_generator.post_nms_topk = (50, 50)
    heads = model.roi_heads
    heads.num_classes, heads.batch_size_per_image = 2, 16
    for box_head, predictor in zip(heads.box_heads, heads.box_predictors, strict=True):
        box_head.input_shape, box_head.fc_dims = ShapeSpec(channels=16, height=7, width=7), [16]
        predictor.input_shape, predictor.test_score_thresh = ShapeSpec(channels=16), 0.0
    heads.mask_head.input_shape = ShapeSpec(channels=16, height=14, width=14)
    heads.mask_head.conv_dims = [8, 8]
    return model


class Overlap(DatasetEvaluator):
    """The mean over the true boxes of their best IoU with a prediction, in percent."""

    def __init__(self) -> None:
        self.truth = {d["image_id"]: d["annotations"] for d in DatasetCatalog.get("scenes_val")}

    def reset(self) -> None:
        self.found: list[float] = []

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        for sample, output in zip(inputs, outputs, strict=True):
            truth = [a["bbox"] for a in self.truth[sample["image_id"]]]
            predicted = output["instances"].to("cpu").pred_boxes
            overlaps = pairwise_iou(Boxes(truth), predicted)
            self.found += overlaps.max(1).values.tolist() if len(predicted) else [0.0] * len(truth)

    def evaluate(self) -> dict[str, dict[str, float]]:
        return {"overlap": {"mean": 100 * sum(self.found) / len(self.found)}}


def built(make: Callable[[Any], Any], features: list[str]) -> nn.Module:
    backbone = LazyCall(supernet_backbone)(
        space="detnas_tiny", out_features=features, init="default"
    )
    torch.manual_seed(0)
    model = instantiate(make(backbone))
    return model.to("cpu")


def data(root: Path) -> Callable[[int], Any]:
    register_scenes(root / "data", "coco")
    resize = [T.ResizeShortestEdge(HEIGHT, HEIGHT * 2)]
    mapper = DatasetMapper(True, augmentations=resize, image_format="BGR", use_instance_mask=True)
    dicts = DatasetCatalog.get("scenes_train")
    return lambda start: resumable_loader(
        dicts, mapper, total_batch_size=2, aspect_ratio_grouping=False, start_iter=start
    )


METRICS = {fcos: "overlap/mean", cascade: "bbox/AP50"}


@pytest.mark.parametrize("make", METRICS)
def test_lazy_model_is_trained_and_searched(make: Callable, tmp_path: Path) -> None:
    features = FEATURES if make is fcos else ["stage1", *FEATURES]
    batches = data(tmp_path)

    def trained(folder: str, iterations: int, resume: bool = False) -> nn.Module:
        model = built(make, features)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.002, momentum=0.9)
        options = {"output_dir": str(tmp_path / folder), "checkpoint_period": 2}
        if make is fcos:  # several paths per iteration, the first of which teaches
            options["path_sampler"] = FairPathSampler(find_supernet(model).space, 0)
            options["distillation"] = partial(FeatureLesson, weight=1.0)
        train_model(model, optimizer, batches, max_iter=iterations, resume=resume, **options)
        return model

    model = trained("whole", 3)
    lines = (tmp_path / "whole" / "metrics.json").read_text().splitlines()
    assert ("loss_distill" in json.loads(lines[-1])) == (make is fcos)
    if make is fcos:  # its loss is scripted
        trained("torn", 2)
        again = trained("torn", 3, resume=True)
        for name, value in model.state_dict().items():
            assert torch.equal(again.state_dict()[name], value), name

    mapper = DatasetMapper(
        False, augmentations=[T.ResizeShortestEdge(HEIGHT, HEIGHT * 2)], image_format="BGR"
    )
    loader = build_detection_test_loader(
        DatasetCatalog.get("scenes_val"), mapper=mapper, num_workers=0
    )
    given = iter(batches(0))
    calibration = [next(given) for _ in range(2)]

    coco = partial(COCOEvaluator, "scenes_val", output_dir=str(tmp_path), use_fast_impl=False)
    evaluators = {fcos: Overlap, cascade: coco}

    how = {
        "data_loader": loader,
        "build_evaluator": evaluators[make],
        "metric": METRICS[make],
    }
    before = {name: value.clone() for name, value in model.state_dict().items()}
    best = search_model(
        model,
        calibration=calibration,
        output_dir=str(tmp_path / "search"),
        POPULATION=2,
        GENERATIONS=2,
        **how,
    )
    lines = (tmp_path / "search" / "history.jsonl").read_text().splitlines()
    records = sorted(map(json.loads, lines), key=lambda r: (r["generation"], r["position"]))
    assert best.fitness == max(r["fitness"] for r in records) > 0
    found = [(r["path"], r["fitness"], r["metrics"]) for r in records]
    assert len(found) == 4
    reference = SequentialEvaluator(model, calibration=FixedBatches(calibration), **how)
    for path, fitness, metrics in found:
        alone = reference.evaluate(find_supernet(model).space.path(path))
        known = {name: None if math.isnan(v) else v for name, v in alone.metrics.items()}
        assert (alone.fitness, known) == (fitness, metrics)
    assert ("segm/AP" in found[0][2]) == (make is cascade)
    assert all(torch.equal(value, before[n]) for n, value in model.state_dict().items())
    backbone = LazyCall(decoded_backbone)(
        space="detnas_tiny", path=found[0][0], out_features=features
    )
    network = instantiate(make(backbone))
    assert find_supernet(network) is None and str(network.backbone.bottom_up.path) == found[0][0]


def test_what_cannot_be_searched(tmp_path: Path) -> None:
    model = built(fcos, FEATURES)
    arguments = {
        "data_loader": [],
        "calibration": [[{}]],
        "build_evaluator": COCOEvaluator,
        "metric": "bbox/AP",
        "output_dir": str(tmp_path),
    }
    with pytest.raises(ValueError, match="settings: 'VAL', expected some of .*POPULATION"):
        search_model(model, VAL="x", **arguments)
    with pytest.raises(ValueError, match="Linear holds no supernet"):
        search_model(nn.Linear(1, 1), **arguments)
    with pytest.raises(ValueError, match="calibration: expected at least one batch"):
        search_model(model, **{**arguments, "calibration": []})
    assert list(tmp_path.iterdir()) == []
