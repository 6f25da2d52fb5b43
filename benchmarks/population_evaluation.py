"""Evaluating candidates in four ways, one JSON object per line.

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

in turn, in one process, on the same images. The first three take the same time for every
candidate and are run on --few of them; the last on a whole population. "last" is a generation at
the end of a recorded search (recorded_search.py), with the statistics that the generation before it
left ("warm") or without ("cold"); "first" is its random first one. The fitness of the sequential
and the population evaluator is compared, digit by digit.

Weights are random, of the released architecture, with classification weights such that images have
100 detections. Images: COCO's below $DETECTRON2_DATASETS, the built-in scenes where there is none.
"seconds" and "cpu" (of this process, without workers) are per candidate; "peak_mib" is of resident
memory. On a machine that does other work "cpu" is the figure to compare.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import logging
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import measure
import recorded_search
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import inference_on_dataset
from detectron2.utils.events import EventStorage
from fvcore.nn import update_bn_stats
from torch import nn

from detnas_d2.config.tools import load_config
from detnas_d2.data import build_calibration_batches, build_test_loader, register_datasets
from detnas_d2.engine.candidate_evaluation import candidate_evaluator
from detnas_d2.engine.checkpoint import DetNASCheckpointer
from detnas_d2.engine.trainer import Trainer
from detnas_d2.modeling import activate
from detnas_d2.search.candidate import Evaluation
from detnas_d2.search.scoring import build_evaluator, quiet
from detnas_d2.search_space import Path as Choice

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "DetNAS"


class Clock:
    """Wall and processor seconds of this process per stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.cpu: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.add(name, time.perf_counter() - wall, time.process_time() - cpu)

    def add(self, name: str, wall: float, cpu: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + wall
        self.cpu[name] = self.cpu.get(name, 0.0) + cpu


class OneByOne:
    """The two ways that know nothing of a population."""

    def __init__(self, cfg: CfgNode, clock: Clock) -> None:
        self.cfg, self.clock = cfg, clock

    def batches(self) -> Any:
        node = self.cfg.SEARCH.CALIBRATION
        return build_calibration_batches(
            self.cfg, self.cfg.DATASETS.TRAIN[0], node.IMAGES, node.BATCH_SIZE, node.SEED
        )

    def loaded(self, weights: str) -> nn.Module:
        model = Trainer.build_model(self.cfg)
        DetNASCheckpointer(model).load_all(weights)
        return model

    def score(self, model: nn.Module, path: Choice) -> None:
        """inference_on_dataset, its evaluation timed apart."""
        clock, name = self.clock, self.cfg.DATASETS.TEST[0]
        evaluator = build_evaluator(self.cfg, name, self.cfg.OUTPUT_DIR)
        evaluate = evaluator.evaluate

        def timed() -> Any:
            with clock.stage("scoring"):
                return evaluate()

        evaluator.evaluate = timed
        before = dict(clock.seconds), dict(clock.cpu)
        with clock.stage("inference"), activate(model, path), quiet():
            inference_on_dataset(model, build_test_loader(self.cfg, name), evaluator)
        for total, old in zip((clock.seconds, clock.cpu), before, strict=True):
            total["inference"] -= total["scoring"] - old.get("scoring", 0.0)

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


def detector(args: argparse.Namespace, kind: str, size: str, folder: str) -> CfgNode:
    """The released architecture over this benchmark's images."""
    cfg = load_config(str(CONFIGS / f"search_300M_{kind}_coco.yaml"))
    short, long = map(int, size.split("x"))
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = short, long
    cfg.MODEL.DEVICE = args.device
    cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.0
    cfg.DATALOADER.NUM_WORKERS = args.loaders
    cfg.DATASETS.INVALID = "ignore"
    cfg.DATASETS.CACHE_DIR = os.path.join(folder, "data")
    images = args.images if size == "320x480" else max(2, args.images // 4)
    names = [subset(name, images, folder) for name in source_sets(cfg)]
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (names[0],), (names[1],)
    classes = len(MetadataCatalog.get(names[1]).thing_classes)
    cfg.MODEL.RETINANET.NUM_CLASSES = cfg.MODEL.ROI_HEADS.NUM_CLASSES = classes
    cfg.SEARCH.VAL = ""
    cfg.SEARCH.CALIBRATION.IMAGES, cfg.SEARCH.CALIBRATION.BATCH_SIZE = images, 2
    cfg.SEARCH.CHUNK, cfg.SEARCH.SCORING_WORKERS = args.chunk, args.workers
    cfg.MODEL.WEIGHTS = os.path.join(folder, f"{kind}.pth")
    cfg.OUTPUT_DIR = os.path.join(folder, f"{kind}_{size}")
    os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
    if not os.path.exists(cfg.MODEL.WEIGHTS):
        torch.save({"model": random_weights(cfg)}, cfg.MODEL.WEIGHTS)
    return cfg


def random_weights(cfg: CfgNode) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    state = Trainer.build_model(cfg).state_dict()
    if "roi_heads.box_predictor.cls_score.weight" in state:
        # Probabilities that differ between proposals: some pass the threshold.
        state["roi_heads.box_predictor.cls_score.weight"] *= 100
    return state


def source_sets(cfg: CfgNode) -> tuple[str, str]:
    """Names of the data sets for calibration and validation."""
    root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets"))
    coco = (root / "coco" / "annotations" / "instances_val2017.json").exists()
    names = ("coco_2017_train", "coco_2017_val")
    names = names if coco else ("digits_scenes_train", "digits_scenes_val")
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (names[0],), (names[1],)
    cfg.SEARCH.VAL = names[1]
    register_datasets(cfg)
    return names


def subset(name: str, images: int, folder: str) -> str:
    """Registers the first images of a COCO data set that have objects."""
    known = MetadataCatalog.get(name)
    truth = json.loads(Path(known.json_file).read_text())
    with_objects = {a["image_id"] for a in truth["annotations"] if not a.get("iscrowd")}
    truth["images"] = [i for i in truth["images"] if i["id"] in with_objects][:images]
    ids = {i["id"] for i in truth["images"]}
    truth["annotations"] = [a for a in truth["annotations"] if a["image_id"] in ids]
    new, dicts = f"{name}_{images}", DatasetCatalog.get(name)
    if new not in DatasetCatalog.list():
        file = Path(folder) / f"{new}.json"
        file.write_text(json.dumps(truth))
        DatasetCatalog.register(new, lambda: [d for d in dicts if d["image_id"] in ids])
        more = known.as_dict()
        drop = ("name", "json_file")
        MetadataCatalog.get(new).set(
            json_file=str(file), **{k: v for k, v in more.items() if k not in drop}
        )
    return new


def measured(run: Callable[[Clock], int]) -> dict[str, Any]:
    """Figures per candidate of ``run``, which gives their number."""
    clock = Clock()
    reset_peak()
    wall, cpu = time.perf_counter(), time.process_time()
    count = run(clock)
    seconds, used = time.perf_counter() - wall, time.process_time() - cpu
    split = {k: round(v / count, 3) for k, v in clock.seconds.items() if v}
    cpu_split = {k: round(v / count, 3) for k, v in clock.cpu.items() if v}
    return {
        "candidates": count,
        "seconds": seconds / count,
        "cpu": used / count,
        "split": split,
        "cpu_split": cpu_split,
        "peak_mib": peak_mib(),
    }


def reset_peak() -> None:
    """Linux: the peak of resident memory starts anew, from what is in use."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        logging.warning("peak_mib is of the whole run: it cannot be reset")


def peak_mib() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() >> 20
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) >> 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def together(
    evaluator: Any, paths: list[Choice], found: dict[Choice, Evaluation]
) -> Callable[[Clock], int]:
    """A run of the population evaluator."""

    def run(clock: Clock) -> int:
        statistics, infer = evaluator.statistics, evaluator._infer

        def timed(name: str, call: Callable) -> Callable:
            def wrapped(*arguments: Any) -> Any:
                with clock.stage(name):
                    return call(*arguments)

            return wrapped

        evaluator.statistics = timed("recalibration", statistics)
        evaluator._infer = timed("inference", infer)
        try:
            for path, outcome in evaluator.evaluate_many(paths):
                if not isinstance(outcome, Evaluation):
                    raise SystemExit(f"{path} failed: {outcome}")
                found[path] = outcome
        finally:
            evaluator.statistics, evaluator._infer = statistics, infer
        return len(paths)

    return run


def compare(args: argparse.Namespace, kind: str, size: str, report: measure.Report) -> None:
    """All ways on one detector and image size."""
    with tempfile.TemporaryDirectory() as folder:
        cfg = detector(args, kind, size, folder)
        single = OneByOne(cfg, Clock())
        fresh = [single.loaded(cfg.MODEL.WEIGHTS) for _ in range(2)]
        cfg_one = cfg.clone()
        cfg_one.SEARCH.EVALUATOR = "sequential"
        with (
            candidate_evaluator(cfg_one, fresh[1].eval()) as sequential,
            candidate_evaluator(cfg, fresh[1]) as population,
        ):
            start = time.perf_counter()
            population.scoring.submit("start", population.scoring.collector().finish()).result()
            extra = {"workers_start": round(time.perf_counter() - start, 1)}
            for generation, memory in args.rounds:
                rounds(args, single, fresh[0], sequential, population, generation, memory,
                       {"detector": kind, "size": size, **extra}, report)  # fmt: skip


def rounds(
    args: argparse.Namespace,
    single: OneByOne,
    model: nn.Module,
    sequential: Any,
    population: Any,
    generation: str,
    memory: str,
    about: dict[str, Any],
    report: measure.Report,
) -> None:
    """One population, all ways in turn; prints a line for each and the ratios."""
    space = recorded_search.SPACE
    paths = [space.path(c) for c in recorded_search.load(generation, args.population)]
    few = paths[:: max(1, len(paths) // args.few)][: args.few]
    population.memory.nodes.clear()
    if memory == "warm":
        before = recorded_search.load("previous", args.population)
        population.statistics([space.path(c) for c in before])
    found: dict[Choice, Evaluation] = {}
    expected: dict[Choice, Evaluation] = {}

    def one_by_one(name: str) -> Callable[[Clock], int]:
        def run(clock: Clock) -> int:
            single.clock = clock
            for path in few:
                getattr(single, name)(*((path,) if name == "released" else (model, path)))
            return len(few)

        return run

    def in_turn(clock: Clock) -> int:
        for path in few:
            expected[path] = sequential.evaluate(path)
            for stage, seconds in expected[path].seconds.items():
                clock.add(stage, seconds, 0.0)
        return len(few)

    images = single.cfg.SEARCH.CALIBRATION.IMAGES
    results = {
        "released": measured(one_by_one("released")),
        "population": measured(together(population, paths, found)),
        "precise_bn": measured(one_by_one("precise_bn")),
        "sequential": measured(in_turn),
    }
    ours = results["population"]
    scoring = sum(outcome.seconds["scoring"] for outcome in found.values())
    ours["scoring_in_workers"] = round(scoring / len(paths), 3)
    ours["equal_to_sequential"] = all(
        (found[p].fitness, str(found[p].metrics)) == (e.fitness, str(e.metrics))
        for p, e in expected.items()
    )
    about = {**about, "population": generation, "memory": memory, "images": images}
    for name, result in results.items():
        rate = round(images / result["seconds"], 3)
        rounded = {k: round(v, 3) if isinstance(v, float) else v for k, v in result.items()}
        report.write({"way": name, **about, **rounded, "images_x_candidates_per_second": rate})
    ratios = {}
    for name in ("released", "precise_bn", "sequential"):
        other = results[name]
        ratios[name] = {key: round(other[key] / ours[key], 2) for key in ("seconds", "cpu")}
        pair = other["split"]["recalibration"], ours["split"]["recalibration"]
        ratios[name]["recalibration"] = round(pair[0] / pair[1], 1)
    report.write({"ratios_to_population": ratios, **about})


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
    for detector_kind in args.detector:
        for image_size in args.size:
            compare(args, detector_kind, image_size, report)
