"""Output folders as runs leave them, written by hand: a supernet, a search, networks and a test."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from PIL import Image

from detnas_d2.evaluation import CandidateRecord
from detnas_d2.search import History
from detnas_d2.search_space import SPACES, build_cost_table
from tests.helpers import detector_config

TINY = SPACES["detnas_tiny"]
CLASSES = ("cat", "dog", "<script>alert('owl')</script>")
BEST = "searched"


def write_truth(root: Path, images: int = 12, seed: int = 0) -> dict[str, Any]:
    """COCO files of noise; image i has i % 4 objects, one image a crowd region."""
    rng = np.random.RandomState(seed)
    (root / "images").mkdir(parents=True)
    data: dict[str, Any] = {"images": [], "annotations": []}
    data["categories"] = [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)]
    for image in range(1, images + 1):
        width, height = (80, 60) if image % 2 else (60, 80)
        pixels = rng.randint(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{image}.png")
        data["images"].append(
            {"id": image, "file_name": f"{image}.png", "width": width, "height": height}
        )
        for number in range(image % 4):
            box = [int(v) for v in (*rng.randint(0, 25, 2), *rng.randint(12, 30, 2))]
            data["annotations"].append(
                {
                    "id": len(data["annotations"]) + 1,
                    "image_id": image,
                    "category_id": 1 + (image + number) % 3,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": int(image == 7 and number == 2),
                }
            )
    (root / "truth.json").write_text(json.dumps(data))
    return data


def detections(truth: dict[str, Any], seed: int = 1, shift: int = 4) -> list[dict[str, Any]]:
    """Boxes near the objects, some of another class, and some of nothing, with tied scores."""
    rng = np.random.RandomState(seed)
    found = []
    for truth_box in truth["annotations"]:
        if rng.rand() < 0.8:
            box = np.array(truth_box["bbox"], float) + rng.uniform(-shift, shift, 4)
            wrong = rng.rand() < 0.2
            category = 1 + truth_box["category_id"] % 3 if wrong else truth_box["category_id"]
            found.append((truth_box["image_id"], category, np.maximum(box, 1)))
    for image in truth["images"]:
        found.append((image["id"], 1 + rng.randint(3), rng.uniform(5, 30, 4)))
    return [
        {
            "image_id": int(image),
            "category_id": int(category),
            "bbox": [float(value) for value in box],
            "score": round(float(rng.rand()), 1),
        }
        for image, category, box in found
    ]


def config(root: Path) -> CfgNode:
    """Of a network that is tested on the images of ``root``."""
    cfg = detector_config()
    cfg.MODEL.BACKBONE.NAME = "build_detnas_fpn_backbone"
    cfg.DATASETS.REGISTER = [
        {
            "NAME": "pets",
            "FORMAT": "coco",
            "IMAGES": str(root / "images"),
            "ANNOTATIONS": str(root / "truth.json"),
        }
    ]
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("pets",), ("pets",)
    cfg.DATASETS.CACHE_DIR = str(root / "cache")
    return cfg


def write_stage(folder: Path, cfg: CfgNode | None, done: dict[str, Any] | None = None) -> Path:
    """A stage, done if ``done`` tells results or an architecture."""
    folder.mkdir(parents=True, exist_ok=True)
    if cfg is not None:
        (folder / "config.yaml").write_text(cfg.dump())
    if done is not None:
        value = {"fingerprint": "f", "results": {}, "path": "", "seconds": 60.0, **done}
        (folder / "done.json").write_text(json.dumps(value))
    return folder


def records(count: int, population: int = 10, seed: int = 0) -> list[CandidateRecord]:
    """Candidates of the tiny space, one of ten failed."""
    rng = random.Random(seed)
    table = build_cost_table(TINY, (64, 64))
    found: dict[Any, CandidateRecord] = {}
    while len(found) < count:
        path = TINY.random_path(rng)
        if path.choices in found:
            continue
        index, cost = len(found), table.cost(path)
        failed = index % 10 == 3
        fitness = None if failed else rng.uniform(10, 50)
        found[path.choices] = CandidateRecord(
            index=index,
            generation=1 + index // population,
            position=index % population,
            origin="random",
            path=str(path),
            choices=path.choices,
            fitness=fitness,
            metrics={} if failed else {"bbox/AP": fitness},
            macs=cost.macs,
            params=cost.params,
            latency_ms=None,
            error="out of memory" if failed else None,
            seconds={"inference": 2.0, "scoring": 0.5},
            finished="2026-01-01T00:00:00+00:00",
        )
    return list(found.values())


def write_search(folder: Path, found: Sequence[CandidateRecord]) -> CandidateRecord:
    """A search with these candidates; returns the best."""
    history = History.open(folder, {"metric": "bbox/AP"}, resume=True)
    for record in found:
        history.append(record)
    return history.best()[0]


def write_run(folder: Path, root: Path, truth: dict[str, Any], *, candidates: int = 30) -> None:
    """Supernet, search, the searched network, two random ones and one made by hand, all done."""
    cfg = config(root)
    supernet = detector_config()
    write_stage(folder / "supernet", supernet, {})
    lines = [{"iteration": 19 + 20 * i, "total_loss": 3 - i / 20} for i in range(30)]
    text = "\n".join(json.dumps(line) for line in lines)
    (folder / "supernet" / "metrics.json").write_text(text + '\n{"iteration": 639, "tot')
    write_stage(folder / "search", supernet, {"results": {"fitness": 1.0}})
    best = write_search(folder / "search", records(candidates))
    networks = {
        BEST: (best.path, 0),
        "random_1": (str(TINY.random_path(random.Random(1))), 10),
        "random_2": (str(TINY.random_path(random.Random(2))), 11),
        "handmade": (str(TINY.uniform_path("3x3")), 12),
    }
    for name, (path, seed) in networks.items():
        cfg.MODEL.DETNAS.PATH = path
        results = write_test(folder / name, root, truth, seed)
        write_stage(folder / name, cfg, {"results": results, "path": path})


def write_test(folder: Path, root: Path, truth: dict[str, Any], seed: int) -> dict[str, float]:
    """Predictions of a network, and what pycocotools says of them, as Detectron2 reports it."""
    (folder / "inference").mkdir(parents=True)
    found = detections(truth, seed)
    (folder / "inference" / "coco_instances_results.json").write_text(json.dumps(found))
    evaluation = evaluated(root / "truth.json", found)
    precision = evaluation.eval["precision"]
    results = {"bbox/AP": float(100 * evaluation.stats[0])}
    results["bbox/AP50"] = float(100 * evaluation.stats[1])
    for number, name in enumerate(CLASSES):
        values = precision[:, :, number, 0, -1]
        results[f"bbox/AP-{name}"] = float(100 * values[values > -1].mean())
    return results


def evaluated(truth: Path, found: list[dict[str, Any]]) -> Any:
    """pycocotools' evaluation of detections."""
    import contextlib
    import io

    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO(str(truth))
        evaluation = COCOeval(known, known.loadRes(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def latency(milliseconds: float, threads: int = 2) -> dict[str, object]:
    """What a measurement in PyTorch tells."""
    pieces = {"before": 0.5, "network": milliseconds - 1, "after": 0.5}
    told = {"milliseconds": milliseconds, "low": 11.0, "high": 13.0, **pieces}
    runtimes = {"pytorch": {**told, "device": "cpu", "version": "2.14", "difference": 0.0}}
    return {
        "runtimes": runtimes,
        "parts": {"backbone": 8.0, "neck": 1.0, "head": 2.0},
        "picture": [480, 640],
        "height": 480,
        "width": 640,
        "batch": 1,
        "runs": 30,
        "warm_up": 3,
        "threads": threads,
        "cpus": [0, 1],
    }
