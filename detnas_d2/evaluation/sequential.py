"""Evaluation of one candidate at a time: recalibrate, infer, score. The reference."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import nn

from detnas_d2.evaluation.candidate import Evaluation
from detnas_d2.evaluation.ranks import all_or_none
from detnas_d2.evaluation.recalibration import (
    BNStatistics,
    NumberedBatches,
    override_bn_stats,
    recalibrate,
)
from detnas_d2.evaluation.scoring import flat_metrics, quiet
from detnas_d2.layers.batch_norm_mode import in_mode
from detnas_d2.layers.kept_weights import weights_stay
from detnas_d2.modeling import activate
from detnas_d2.search_space import Path


class SequentialEvaluator:
    """Fitness of a path with supernet weights and its own recalibrated BatchNorm statistics.

    The supernet is the same before and after; the fitness of a path does not depend on what was
    evaluated before it. Every rank calls :meth:`evaluate` with the same path.

    Args:
        model: any Detectron2 model that holds a supernet.
        calibration: this rank's calibration batches, the same at every iteration.
        data_loader: this rank's share of the search-validation images.
        build_evaluator: makes a fresh Detectron2 evaluator.
        metric: "task/metric" to maximise, e.g. "bbox/AP".
        seed: seed of the model's random choices during calibration.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        calibration: NumberedBatches,
        data_loader: Iterable[list[dict[str, Any]]],
        build_evaluator: Callable[[], DatasetEvaluator],
        metric: str,
        seed: int = 0,
    ) -> None:
        self.model = model
        self.calibration = calibration
        self.data_loader = data_loader
        self.build_evaluator = build_evaluator
        self.metric = metric
        self.seed = seed

    def statistics(self, path: Path) -> BNStatistics:
        """Recalibrated BatchNorm statistics of ``path``, merged over ranks."""
        with activate(self.model, path):
            numbered = zip(self.calibration.batch_ids, self.calibration, strict=True)
            return recalibrate(self.model, numbered, seed=self.seed)

    def evaluate(self, path: Path) -> Evaluation:
        """Fitness of ``path``; see the class.

        Raises:
            KeyError: the evaluator does not report the metric; lists those it does.
        """
        start = time.perf_counter()
        statistics = self.statistics(path)
        calibrated = time.perf_counter()
        evaluator = CountingEvaluator(self.build_evaluator())
        with (
            activate(self.model, path),
            override_bn_stats(self.model, statistics),
            all_or_none(),
        ):
            self._infer(evaluator)
        inferred = time.perf_counter()
        with quiet():
            results = evaluator.evaluate()
        gathered = comm.all_gather((flat_metrics(results or {}), evaluator.detections))
        # Evaluators report on rank 0, classification on all.
        metrics = gathered[0][0]
        detections = sum(count for _, count in gathered)
        seconds = {
            "recalibration": calibrated - start,
            "inference": inferred - calibrated,
            "scoring": time.perf_counter() - inferred,
        }
        return Evaluation(fitness_of(metrics, self.metric, detections), metrics, seconds)

    @torch.no_grad()
    def _infer(self, evaluator: DatasetEvaluator) -> None:
        evaluator.reset()
        with (
            in_mode(self.model, training=False),
            finite_features(self.model),
            weights_stay(self.model),
        ):
            for inputs in self.data_loader:
                evaluator.process(inputs, self.model(inputs))


def fitness_of(metrics: dict[str, float], metric: str, detections: int) -> float:
    """The value of ``metric``, at full precision.

    COCO evaluation reports NaN where nothing was detected; that is a fitness of 0. Any other NaN
    (a class without ground truth) stays one, which a search records as a failure.

    Raises:
        KeyError: naming the metrics there are.
    """
    if metric not in metrics:
        raise KeyError(f"no metric {metric!r}; the evaluator reports {', '.join(sorted(metrics))}")
    value = metrics[metric]
    return 0.0 if math.isnan(value) and detections == 0 else value


class CountingEvaluator(DatasetEvaluator):
    """Counts the detections that go into an evaluator."""

    def __init__(self, inner: DatasetEvaluator) -> None:
        self.inner, self.detections = inner, 0

    def reset(self) -> None:
        self.inner.reset()

    def process(self, inputs: Any, outputs: Any) -> None:
        self.detections += sum(len(output.get("instances", (None,))) for output in outputs)
        self.inner.process(inputs, outputs)

    def evaluate(self) -> Any:
        return self.inner.evaluate()


@contextmanager
def finite_features(model: nn.Module) -> Iterator[None]:
    """Within the block a forward pass whose features are not finite raises FloatingPointError.

    Detectron2 drops boxes that are not finite, which would make diverged weights look like a
    network that detects nothing. Looks at the smallest feature, which depends on all layers.
    """

    def check(module: nn.Module, inputs: Any, features: Any) -> None:
        if isinstance(features, dict) and features:
            name = min(features, key=lambda key: features[key].numel())
            if not features[name].isfinite().all():
                raise FloatingPointError(f"feature {name} of the backbone is not finite")

    backbone = getattr(model, "backbone", None)
    if backbone is None:
        yield
        return
    handle = backbone.register_forward_hook(check)
    try:
        yield
    finally:
        handle.remove()
