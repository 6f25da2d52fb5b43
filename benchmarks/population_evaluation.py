"""Evaluating candidates in five ways, one JSON object per line.

    python benchmarks/population_evaluation.py [--quick] [--detector retinanet fpn]
        [--size 320x480 800x1216] [--device cuda]

released    the released recipe: per candidate the model is built and the checkpoint loaded, the
            whole detector runs in training mode over the calibration images (decoded each time),
            its checkpoint is saved, a model is built and loads it, infers (images decoded again),
            and pycocotools scores. Its two process starts per candidate are left out.
precise_bn  per candidate fvcore's update_bn_stats on the whole detector, Detectron2's
            inference_on_dataset, pycocotools
sequential  detnas_d2's SequentialEvaluator, the reference
population  detnas_d2's PopulationEvaluator as a search runs it (image cache, scoring workers)
fused       the same with MODEL.DETNAS.FUSED_OPS on; fitness then differs by rounding. The others
            run with it off: Detectron2's modules and PyTorch's operators

in turn, in one process, on the same images. The first three take the same time for every candidate
and are run on --few of them, the last two on a whole population. "last" is the last generation of a
recorded search (recorded_search.py), with the statistics that the one before it left ("warm") or
without ("cold"); "first" is its random first one. Fitness is compared with the sequential
evaluator's, at full precision.

Weights are random, of the released architecture, with classification weights or a threshold of
scores such that about as much passes as in a trained network: images have 100 detections. Images:
COCO's below $DETECTRON2_DATASETS, the built-in scenes where there is none.
"seconds" and "cpu" (of this process, without workers) are per candidate, "split" and "cpu_split"
by what it did; "peak_mib" is of resident memory. On a machine that does other work "cpu" is the
figure to compare.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import measure
import recorded_search
import torch
from detectors import detector
from detectron2.config import CfgNode
from detectron2.evaluation import inference_on_dataset
from detectron2.utils.events import EventStorage
from fvcore.nn import update_bn_stats
from stages import Clock, Loading, measured
from torch import nn

from detnas_d2.data import build_calibration_batches, build_test_loader
from detnas_d2.engine.checkpoint import DetNASCheckpointer
from detnas_d2.engine.trainers.trainer import Trainer
from detnas_d2.evaluation.build import candidate_evaluator, sequential_evaluator
from detnas_d2.evaluation.candidate import Evaluation
from detnas_d2.evaluation.evaluators import build_evaluator
from detnas_d2.evaluation.population import PopulationEvaluator
from detnas_d2.evaluation.scoring import quiet
from detnas_d2.evaluation.settings import EvaluationSettings
from detnas_d2.modeling import activate, find_supernet, use_operators
from detnas_d2.search_space import Path as Choice


class OneByOne:
    """The two ways that know nothing of a population."""

    def __init__(self, cfg: CfgNode, clock: Clock) -> None:
        self.cfg, self.clock = cfg.clone(), clock
        self.cfg.MODEL.DETNAS.FUSED_OPS = "off"  # Detectron2's modules and torch's operators

    def batches(self) -> Any:
        node, name = self.cfg.SEARCH.CALIBRATION, self.cfg.DATASETS.TRAIN[0]
        arguments = node.IMAGES, node.BATCH_SIZE, node.SEED
        return Loading(build_calibration_batches(self.cfg, name, *arguments), self.clock)

    def loaded(self, weights: str) -> nn.Module:
        model = Trainer.build_model(self.cfg)
        DetNASCheckpointer(model).load_all(weights)
        return self.clock.watch(model)

    def score(self, model: nn.Module, path: Choice) -> None:
        """inference_on_dataset, its evaluation timed apart."""
        name = self.cfg.DATASETS.TEST[0]
        evaluator = build_evaluator(self.cfg, name, self.cfg.OUTPUT_DIR)
        evaluator.evaluate = self.clock.timed("scoring", evaluator.evaluate)
        loader = Loading(build_test_loader(self.cfg, name), self.clock)
        with self.clock.stage("inference"), activate(model, path), quiet():
            inference_on_dataset(model, loader, evaluator)

    def released(self, path: Choice) -> None:
        clock, file = self.clock, os.path.join(self.cfg.OUTPUT_DIR, "candidate.pth")
        with clock.stage("build"):
            model = self.loaded(self.cfg.MODEL.WEIGHTS).train()
        with clock.stage("recalibration"), torch.no_grad(), EventStorage(), activate(model, path):
            for batch in self.batches():
                model(batch)
        with clock.stage("checkpoint"):
            torch.save({"model": model.state_dict()}, file)
        with clock.stage("build"):
            model = self.loaded(file).eval()
        self.score(model, path)

    def precise_bn(self, model: nn.Module, path: Choice) -> None:
        batches = self.batches()
        model.train()
        with self.clock.stage("recalibration"), EventStorage(), activate(model, path):
            update_bn_stats(model, batches, len(batches))
        self.score(model.eval(), path)


@contextmanager
def watched(evaluator: Any, clock: Clock) -> Iterator[None]:
    """The stages of one of our evaluators, and its loading, count apart."""
    own = {n: getattr(evaluator, n) for n in ("statistics", "_infer", "data_loader", "calibration")}
    evaluator.statistics = clock.timed("recalibration", evaluator.statistics)
    evaluator._infer = clock.timed("inference", evaluator._infer)
    evaluator.data_loader = Loading(evaluator.data_loader, clock)
    evaluator.calibration = Loading(evaluator.calibration, clock)
    try:
        yield
    finally:
        for name, value in own.items():
            setattr(evaluator, name, value)


class Ways:
    """One detector and image size, ready to be evaluated in every way."""

    def __init__(self, cfg: CfgNode, stack: ExitStack, *, fused: bool) -> None:
        self.cfg, self.clock = cfg, Clock()
        self.single = OneByOne(cfg, self.clock)
        self.plain = self.single.loaded(cfg.MODEL.WEIGHTS)
        self.settings = EvaluationSettings.from_config(cfg)
        self.sequential = sequential_evaluator(self.settings, self._model("off"))
        self.together = {"population": self._population(stack, "off")}
        if fused:
            self.together["fused"] = self._population(stack, "on")
        for evaluator in self.together.values():  # the workers have started before any timing
            scoring = evaluator.scoring
            scoring.submit("start", scoring.collector().finish()).result()

    def _model(self, fused_ops: str) -> nn.Module:
        model = self.single.loaded(self.cfg.MODEL.WEIGHTS).eval()
        find_supernet(model).fused_ops = fused_ops
        use_operators(model)
        return model

    def _population(self, stack: ExitStack, fused_ops: str) -> PopulationEvaluator:
        return stack.enter_context(candidate_evaluator(self.settings, self._model(fused_ops)))

    def one_by_one(self, paths: list[Choice], *, precise_bn: bool) -> int:
        for path in paths:
            if precise_bn:
                self.single.precise_bn(self.plain, path)
            else:
                self.single.released(path)
        return len(paths)

    def in_turn(self, paths: list[Choice], found: dict[Choice, Evaluation]) -> int:
        with watched(self.sequential, self.clock):
            found |= {path: self.sequential.evaluate(path) for path in paths}
        return len(paths)

    def at_once(self, name: str, paths: list[Choice], found: dict[Choice, Evaluation]) -> int:
        with watched(self.together[name], self.clock):
            found |= dict(self.together[name].evaluate_many(paths))
        for path, outcome in found.items():
            if not isinstance(outcome, Evaluation):
                raise SystemExit(f"{path} failed: {outcome}")
        return len(paths)


def compare(
    args: argparse.Namespace, ways: Ways, generation: str, memory: str, about: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """One population in all ways: a record for each, then the ratios."""
    space, clock = recorded_search.SPACE, ways.clock
    paths = [space.path(c) for c in recorded_search.load(generation, args.population)]
    few = paths[:: max(1, len(paths) // args.few)][: args.few]
    for evaluator in ways.together.values():
        evaluator.memory.nodes.clear()
        if memory == "warm":
            before = recorded_search.load("previous", args.population)
            evaluator.statistics([space.path(c) for c in before])
    expected: dict[Choice, Evaluation] = {}
    found: dict[str, dict[Choice, Evaluation]] = {name: {} for name in ways.together}

    def at_once(name: str) -> int:
        return ways.at_once(name, paths, found[name])

    runs = {
        "released": lambda: ways.one_by_one(few, precise_bn=False),
        "population": lambda: at_once("population"),
        "precise_bn": lambda: ways.one_by_one(few, precise_bn=True),
        "fused": lambda: at_once("fused"),
        "sequential": lambda: ways.in_turn(few, expected),
    }
    results = {
        name: measured(clock, run)
        for name, run in runs.items()
        if name != "fused" or name in ways.together
    }
    for name, outcomes in found.items():
        scoring = sum(outcome.seconds["scoring"] for outcome in outcomes.values())
        results[name]["scoring_in_workers"] = round(scoring / len(paths), 3)
        results[name]["largest_difference_of_fitness"] = max(
            abs(outcomes[path].fitness - one.fitness) for path, one in expected.items()
        )
    images = ways.cfg.SEARCH.CALIBRATION.IMAGES
    about = {**about, "population": generation, "memory": memory, "images": images}
    for name, result in results.items():
        rate = round(images / result["seconds"], 3)
        yield {"way": name, **about, **result, "images_x_candidates_per_second": rate}
    for ours in ways.together:
        ratios = {name: ratio(results[name], results[ours]) for name in results if name != ours}
        yield {"way": f"others / {ours}", **about, "ratios": ratios}


def ratio(other: dict[str, Any], ours: dict[str, Any]) -> dict[str, float]:
    """Of wall-clock, processor, and processor seconds of recalibration."""

    def recalibration(result: dict[str, Any]) -> float:
        split = result["cpu_split"].items()
        return sum(v for k, v in split if k.startswith("recalibration"))

    return {
        "seconds": round(other["seconds"] / ours["seconds"], 2),
        "cpu": round(other["cpu"] / ours["cpu"], 2),
        "recalibration_cpu": round(recalibration(other) / max(1e-3, recalibration(ours)), 1),
    }


def arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--quick", action="store_true", help="4 images, 6 candidates, one round")
    p.add_argument("--detector", nargs="+", default=["retinanet", "fpn"])
    p.add_argument("--size", nargs="+", default=["320x480", "800x1216"])
    p.add_argument("--images", type=int, default=16, help="a quarter of them at 800x1216")
    p.add_argument("--population", type=int, default=24)
    p.add_argument("--few", type=int, default=2, help="candidates of the other three ways")
    p.add_argument("--chunk", type=int, default=25)
    p.add_argument("--workers", type=int, default=1, help="scoring processes")
    p.add_argument("--loaders", type=int, default=0, help="image loading processes")
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    p.add_argument("--generation", nargs="+", default=["last:cold", "last:warm", "first:cold"])
    p.add_argument("--fused", action=argparse.BooleanOptionalAction, default=True)
    p.add_argument("--output", type=Path, help="append the JSON lines to this file, too")
    args = p.parse_args()
    if args.quick:
        args.images, args.population, args.few = 4, 6, 1
        args.generation = args.generation[:1]
    args.rounds = [tuple(g.split(":")) for g in args.generation]
    return args


if __name__ == "__main__":
    args = arguments()
    measure.keep_memory(True)
    logging.disable(logging.INFO)
    torch.set_num_threads(args.threads)
    report = measure.Report("population_evaluation", args)
    with tempfile.TemporaryDirectory() as folder:  # of all: registered datasets name files in it
        for detector_kind, image_size in itertools.product(args.detector, args.size):
            with ExitStack() as stack:
                cfg = detector(args, detector_kind, image_size, folder)
                ways = Ways(cfg, stack, fused=args.fused)
                about = {"detector": detector_kind, "size": image_size}
                for of_search, remembered in args.rounds:
                    for record in compare(args, ways, of_search, remembered, about):
                        report.write(record)
