"""Accuracy."""

from __future__ import annotations

import pytest
import torch

from detnas_d2.evaluation.classification import ClassificationEvaluator


def evaluate(rows, **options):
    evaluator = ClassificationEvaluator(**options)
    evaluator.reset()
    for label, scores in rows:
        evaluator.process([{"label": label}], [{"scores": torch.tensor(scores)}])
    return evaluator.evaluate()["classification"]


def test_top1_and_top5():
    scores = [0.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0]
    rows = [(1, scores), (2, scores), (5, scores), (6, scores)]
    assert evaluate(rows) == {"top1": 25.0, "top5": 75.0}


def test_few_classes():
    assert evaluate([(0, [1.0, 2.0]), (1, [1.0, 2.0])]) == {"top1": 50.0, "top5": 100.0}


def test_scores_that_are_not_finite_are_misses():
    nan = float("nan")
    assert evaluate([(0, [nan, 0.0]), (1, [0.0, 1.0])]) == {"top1": 50.0, "top5": 50.0}


def test_reset_forgets():
    evaluator = ClassificationEvaluator()
    evaluator.process([{"label": 0}], [{"scores": torch.tensor([1.0, 0.0])}])
    evaluator.reset()
    with pytest.raises(ValueError, match="no image"):
        evaluator.evaluate()


def test_wrong_input():
    with pytest.raises(ValueError, match="label 2 has no score"):
        evaluate([(2, [0.0, 1.0])])
    with pytest.raises(ValueError, match="shorter"):
        ClassificationEvaluator().process([{"label": 0}], [])
