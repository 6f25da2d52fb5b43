"""Fitness from an evaluator's results."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import build_model
from torch import nn

from detnas_d2.evaluation.scoring import flat_metrics
from detnas_d2.evaluation.sequential import SequentialEvaluator, fitness_of
from detnas_d2.search.driver import _outcomes
from detnas_d2.search_space import SPACES
from tests.helpers import (
    changed,
    classification_batch,
    classifier,
    detector_config,
    snapshot,
    training_batch,
)

TINY = SPACES["detnas_tiny"]
PATH = TINY.uniform_path("5x5")


class Calibration(list):
    """Two batches of images."""

    batch_ids = (0, 1)


class Sum(DatasetEvaluator):
    """The sum of all scores of class 0."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.total = math.nan

    def reset(self) -> None:
        self.calls.append("reset")
        self.total = 0.0

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        self.calls.append("process")
        self.total += sum(float(output["scores"][0]) for output in outputs)

    def evaluate(self) -> dict[str, Any]:
        self.calls.append("evaluate")
        print("chatter")
        return {"sum": {"first": self.total, "other": math.nan}}


def sequential(model: nn.Module, **changes: Any) -> SequentialEvaluator:
    arguments = {
        "calibration": Calibration(classification_batch(32, [0, 1], seed=s) for s in (1, 2)),
        "data_loader": [classification_batch(32, [0] * n, seed=n) for n in (1, 3)],
        "build_evaluator": Sum,
        "metric": "sum/first",
        **changes,
    }
    return SequentialEvaluator(model, **arguments)


def test_evaluation_of_a_path(capsys: pytest.CaptureFixture[str]) -> None:
    model = classifier().train()
    made: list[Sum] = []
    before = snapshot(model)
    evaluator = sequential(model, build_evaluator=lambda: made.append(Sum()) or made[-1])
    found = evaluator.evaluate(PATH)
    assert made[0].calls == ["reset", "process", "process", "evaluate"]
    assert 0 < found.fitness == found.metrics["sum/first"] < 4
    assert math.isnan(found.metrics["sum/other"])
    assert set(found.seconds) == {"recalibration", "inference", "scoring"}
    assert changed(model, before) == set() and model.training
    assert capsys.readouterr().out == ""
    assert evaluator.evaluate(PATH).fitness == found.fitness
    assert evaluator.evaluate(TINY.uniform_path("7x7")).fitness != found.fitness


def test_unknown_metric_lists_the_known_ones() -> None:
    evaluator = sequential(classifier(), metric="bbox/AP")
    with pytest.raises(KeyError, match="no metric 'bbox/AP'; the evaluator reports sum/first, sum"):
        evaluator.evaluate(PATH)


def test_diverged_weights_fail_the_candidate_and_spare_the_classifier() -> None:
    model = classifier()
    with torch.no_grad():
        model.backbone.blocks[0].candidates["5x5"].main[0].conv.weight.fill_(float("inf"))
    model.train().backbone.stem.eval()  # frozen
    before, modes = snapshot(model), [module.training for module in model.modules()]
    found = dict(_outcomes(sequential(model), [PATH, TINY.uniform_path("7x7")]))
    assert "not finite" in str(found[PATH])
    assert found[TINY.uniform_path("7x7")].fitness > 0
    assert changed(model, before) == set()
    assert [module.training for module in model.modules()] == modes


def test_modes_return_after_an_error() -> None:
    model = classifier().train()
    model.backbone.stem.eval()
    modes = [module.training for module in model.modules()]
    with pytest.raises(KeyError, match="image"):
        sequential(model, data_loader=[[{"label": 0}]]).evaluate(PATH)
    assert [module.training for module in model.modules()] == modes


@pytest.mark.parametrize(
    ("value", "detections", "expected"),
    [(12.3456789012345, 5, 12.3456789012345), (math.nan, 0, 0.0), (0.0, 0, 0.0)],
)
def test_fitness(value: float, detections: int, expected: float) -> None:
    assert fitness_of({"bbox/AP": value}, "bbox/AP", detections) == expected


def test_undefined_fitness_stays_undefined() -> None:
    assert math.isnan(fitness_of({"bbox/AP": math.nan}, "bbox/AP", 3))


def test_flat_metrics() -> None:
    results = {"bbox": {"AP": 1, "AP50": torch.tensor(2.5)}, "segm": {"AP": 3.0}}
    assert flat_metrics(results) == {"bbox/AP": 1.0, "bbox/AP50": 2.5, "segm/AP": 3.0}
    assert flat_metrics({}) == {}


@pytest.mark.parametrize("kind", ["faster", "retinanet"])
def test_a_batch_of_images_of_one_size_is_detected_in_as_one_by_one(kind: str) -> None:
    """TEST.BATCH_SIZE changes nothing but rounding where nothing is padded."""
    torch.manual_seed(0)
    cfg = detector_config(kind)
    cfg.MODEL.BACKBONE.NAME = cfg.MODEL.BACKBONE.NAME.replace("supernet_", "")
    cfg.MODEL.DETNAS.PATH = "3x3 5x5 7x7 xception 3x3"
    model = build_model(cfg).eval()
    generator = torch.Generator().manual_seed(0)
    batch = training_batch(sizes=((64, 96),) * 3, generator=generator)
    with torch.no_grad():
        together = model(batch)
        for image, found in zip(batch, together, strict=True):
            (alone,) = model([image])
            for field in ("scores", "pred_classes", "pred_boxes"):
                one, other = (output["instances"].get(field) for output in (alone, found))
                if field == "pred_boxes":
                    one, other = one.tensor, other.tensor
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)
