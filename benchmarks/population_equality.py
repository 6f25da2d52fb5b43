#!/usr/bin/env python
"""Is a population evaluated together what its paths are one by one, on a search's own data?

  population_equality.py --config-file configs/DetNAS/bccd/search.yaml --population 20 \
      MODEL.WEIGHTS supernet.pth

Takes a random population of which half are children of the other half, evaluates it with both
evaluators and prints one JSON object: the largest difference of a recalibrated mean (in standard
deviations) and of a deviation (relative), averaged over the channels of a candidate; how many
candidates have identical detections, how many identical metrics; and the seconds of both. Exit
status 1 if detections or metrics differ. Without weights the supernet is a random one.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from dataclasses import fields
from typing import Any

import numpy as np
from detectron2.evaluation import DatasetEvaluator

from detnas_d2.engine import default_argument_parser, setup
from detnas_d2.engine.architectures import searched_space
from detnas_d2.engine.evolution_search import load_supernet
from detnas_d2.engine.trainers.trainer import Trainer
from detnas_d2.evaluation.build import candidate_evaluator, sequential_evaluator
from detnas_d2.evaluation.predictions import DetectionCollector, Predictions
from detnas_d2.evaluation.settings import EvaluationSettings
from detnas_d2.pipeline.stability import statistics_distance
from detnas_d2.search_space.space import PathSpace


def population(space: PathSpace, size: int, seed: int) -> list[Any]:
    """Distinct paths; the second half differ from one of the first half in a layer."""
    rng = random.Random(seed)
    paths = [space.random_path(rng) for _ in range((size + 1) // 2)]
    while len(paths) < size:
        choices = list(rng.choice(paths).choices)
        layer = rng.randrange(len(choices))
        choices[layer] = rng.randrange(space.cardinalities[layer])
        if space.path(choices) not in paths:
            paths.append(space.path(choices))
    return paths


def identical(ours: Predictions, theirs: Predictions) -> bool:
    def equal(a: Any, b: Any) -> bool:
        if isinstance(a, dict):
            return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)
        return np.array_equal(a, b)

    return all(equal(getattr(ours, f.name), getattr(theirs, f.name)) for f in fields(ours))


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Both evaluators on one population; see the module."""
    cfg = setup(args).clone()
    cfg.defrost()
    model = load_supernet(cfg) if cfg.MODEL.WEIGHTS else Trainer.build_model(cfg).eval()
    paths = population(searched_space(cfg), args.population, args.seed)
    seen: dict[str, Predictions] = {}
    settings = EvaluationSettings.from_config(cfg)
    with candidate_evaluator(settings, model) as evaluator:
        submit = evaluator.scoring.submit

        def keep(key: str, predictions: Predictions) -> Any:
            seen[key] = predictions
            return submit(key, predictions)

        evaluator.scoring.submit = keep
        start = time.perf_counter()
        together = dict(evaluator.evaluate_many(paths))
        seconds = {"together": time.perf_counter() - start}
        ours = evaluator.statistics(paths)
    shifts, scales, detections, figures = [0.0], [0.0], 0, 0
    start = time.perf_counter()
    evaluator = sequential_evaluator(settings, model)
    make, compute, known = evaluator.build_evaluator, evaluator.statistics, {}
    evaluator.statistics = lambda path: known.setdefault(path, compute(path))
    for path in paths:
        watch = _Watch(make())
        evaluator.build_evaluator = lambda watch=watch: watch
        found = evaluator.evaluate(path)
        shift, scale = statistics_distance(ours[path], known[path])
        shifts.append(shift)
        scales.append(scale)
        detections += identical(seen[str(path)], watch.collector.finish())
        same = (found.fitness, str(found.metrics))
        figures += same == (together[path].fitness, str(together[path].metrics))
    seconds["one by one"] = time.perf_counter() - start
    return {
        "config": args.config_file,
        "population": len(paths),
        "images": len(evaluator.data_loader.dataset),
        "mean_difference": max(shifts),
        "deviation_difference": max(scales),
        "identical_detections": detections,
        "identical_figures": figures,
        "distinct_fitness": len({e.fitness for e in together.values()}),
        "best_fitness": max(e.fitness for e in together.values()),
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
    }


class _Watch(DatasetEvaluator):
    """An evaluator, and what went into it."""

    def __init__(self, inner: DatasetEvaluator) -> None:
        self.inner, self.collector = inner, DetectionCollector()

    def reset(self) -> None:
        self.inner.reset()

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        self.inner.process(inputs, outputs)
        self.collector.process(inputs, outputs)

    def evaluate(self) -> Any:
        return self.inner.evaluate()


def main() -> int:
    parser = default_argument_parser(__doc__)
    parser.add_argument("--population", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    found = compare(parser.parse_args())
    print(json.dumps(found, indent=2))
    size = found["population"]
    return 0 if found["identical_detections"] == found["identical_figures"] == size else 1


if __name__ == "__main__":
    sys.exit(main())
