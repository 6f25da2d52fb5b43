"""The configs of a run: what ``run_pipeline.py`` takes, and a user may edit."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import yaml

from detnas_d2.recipe.choice import LARGE, SMALL, Recipe, macs_range
from detnas_d2.recipe.detectors import (
    HIT_OPS,
    Tree,
    input_of,
    model_of,
    solver_of,
)
from detnas_d2.recipe.inputs import Data, Settings
from detnas_d2.recipe.schedule import (
    Plan,
    Schedule,
)
from detnas_d2.recipe.stages import pipeline_of
from detnas_d2.recipe.weights import Start
from detnas_d2.search_space.space import SPACES
from detnas_d2.utils.io import write_text

PIPELINE_FILE = "pipeline.yaml"


def texts_of(plan: Plan, schedule: Schedule, data: Data, settings: Settings) -> dict[str, str]:
    """Name -> text of the files."""
    recipe = plan.recipe
    trees = {
        "dataset.yaml": (_DATASET, _dataset(recipe, data, settings)),
        "finetune.yaml": (_FINETUNE, _finetune(plan, schedule)),
        PIPELINE_FILE: (_PIPELINE, pipeline_of(plan, schedule, settings)),
    }
    if settings.start.resnet:
        trees["resnet50.yaml"] = _RESNET, _resnet(plan, schedule, settings.start)
    if recipe.method == "detnas":
        trees["supernet.yaml"] = _SUPERNET, _supernet(recipe, schedule, data, settings)
        trees["search.yaml"] = _SEARCH, _search(plan, schedule, data, settings)
    else:
        trees["search.yaml"] = _GRADIENT, _gradient(recipe, schedule, data)
    return {name: _text(comment, tree) for name, (comment, tree) in trees.items()}


def write_files(folder: str, texts: Mapping[str, str]) -> None:
    """Writes those that are not there with the same text."""
    os.makedirs(folder, exist_ok=True)
    for name, text in texts.items():
        file = os.path.join(folder, name)
        if not os.path.exists(file) or _read(file) != text:
            write_text(file, text)


def _read(file: str) -> str:
    with open(file, encoding="utf-8") as text:
        return text.read()


_DATASET = """The data, and the detector that all stages share. Written by detnas search; it may be
edited, and run by run_pipeline.py --config-file pipeline.yaml."""
_SUPERNET = "Stage 1: the supernet learns detection, path by path."
_SEARCH = "Stage 2: evolution on images that the supernet has not learned from."
_GRADIENT = (
    "The search: weights learn from one half of the images, the architecture from the other."
)
_FINETUNE = "A single network, trained on all training images and tested on the test images."
_RESNET = "A baseline: a ResNet-50 that was trained on ImageNet, for about the time of a network."
_PIPELINE = "The stages; finished ones are skipped, one that was stopped is resumed."


class _Plain(yaml.SafeDumper):
    """Writes what appears twice out twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(comment: str, tree: Tree) -> str:
    options: Any = {
        "sort_keys": False,
        "default_flow_style": None,
        "width": 100,
        "allow_unicode": True,
    }
    body = yaml.dump(tree, Dumper=_Plain, **options)
    return "".join(f"# {line}\n" for line in comment.splitlines()) + body


def _dataset(recipe: Recipe, data: Data, settings: Settings) -> Tree:
    split = {"FRACTION": 0.5} if recipe.method == "hit" else {"SIZE": recipe.validation}
    tree: Tree = {
        "DATASETS": {
            "REGISTER": [dict(declaration) for declaration in data.declarations],
            "INVALID": "drop",
            "TRAIN": [data.train],
            "TEST": [data.test],
        },
        "INPUT": input_of(recipe),
        "MODEL": model_of(recipe, len(data.classes)),
        "TEST": {"DETECTIONS_PER_IMAGE": recipe.detections},
        "SEED": settings.seed,
        "VERSION": 2,
    }
    if recipe.validation:
        tree["DATASETS"]["SEARCH_SPLIT"] = split
    if recipe.pattern == SMALL:
        tree["DATALOADER"] = {"NUM_WORKERS": 0}
    if recipe.method == "hit":
        tree["HIT_SEARCH"] = {
            "COST_INPUT": [recipe.side, recipe.longest],
            "COST_PROPOSALS": recipe.proposals,
        }
    return tree


def _finetune(plan: Plan, schedule: Schedule) -> Tree:
    recipe = plan.recipe
    solver = solver_of(recipe, schedule.tuning, recipe.network_rate)
    tree: Tree = {"_BASE_": "dataset.yaml", "SOLVER": solver}
    if batches := plan.precise_batches():
        tree["TEST"] = {"PRECISE_BN": {"ENABLED": True, "NUM_ITER": batches}}
    return tree


def _resnet(plan: Plan, schedule: Schedule, start: Start) -> Tree:
    """Detectron2's ResNet-50; pixels as its weights have learned from."""
    iterations = plan.baseline_iterations(schedule)
    mean, deviation = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    return {
        "_BASE_": "finetune.yaml",
        "INPUT": {"FORMAT": "BGR" if start.caffe else "RGB"},
        "MODEL": {
            "WEIGHTS": start.resnet,
            "PIXEL_MEAN": mean[::-1] if start.caffe else mean,
            "PIXEL_STD": [1.0, 1.0, 1.0] if start.caffe else deviation,
            "BACKBONE": {"NAME": "build_resnet_fpn_backbone"},
            "RESNETS": {
                "OUT_FEATURES": ["res2", "res3", "res4", "res5"],
                "STRIDE_IN_1X1": start.caffe,
            },
            "FPN": {"IN_FEATURES": ["res2", "res3", "res4", "res5"]},
        },
        "SOLVER": solver_of(plan.recipe, iterations, plan.recipe.rate / 2),
    }


def _supernet(recipe: Recipe, schedule: Schedule, data: Data, settings: Settings) -> Tree:
    train, val = _search_sets(recipe, data)
    model: Tree = {"BACKBONE": {"NAME": "build_detnas_supernet_fpn_backbone"}}
    if settings.start.supernet:
        model["WEIGHTS"] = settings.start.supernet
    if recipe.pattern == LARGE:
        model["DETNAS"] = {"NORM_MOMENTUM": 0.1}
    return {
        "_BASE_": "dataset.yaml",
        "DATASETS": {"TRAIN": [train], "TEST": [val]},
        "MODEL": model,
        "SOLVER": solver_of(recipe, schedule.supernet, recipe.rate),
        "SUPERNET": {
            "CHECK": {
                "PERIOD": max(20, schedule.supernet // 4),
                "CALIBRATION_IMAGES": recipe.calibration,
                # Not trained alone, which takes as long as the networks, nor an end of the run.
                "STANDALONE": 0,
                "REQUIRED": False,
            }
        },
    }


def _search_sets(recipe: Recipe, data: Data) -> tuple[str, str]:
    """What a supernet learns from, and what scores candidates."""
    if recipe.validation:
        return f"{data.train}@search_train", f"{data.train}@search_val"
    return data.train, data.val


def _search(plan: Plan, schedule: Schedule, data: Data, settings: Settings) -> Tree:
    recipe = plan.recipe
    search: Tree = {
        "VAL": _search_sets(recipe, data)[1],
        "POPULATION": schedule.population,
        "GENERATIONS": schedule.generations,
        "SEED": settings.seed,
        "CALIBRATION": {
            "IMAGES": recipe.calibration,
            "BATCH_SIZE": min(16, recipe.calibration) if recipe.pattern == SMALL else 8,
        },
        "RETRAIN_CONFIG": "finetune.yaml",
    }
    if settings.latency_table:
        search["MAX_LATENCY_MS"] = round(settings.max_ms, 4)
        search["LATENCY_TABLE"] = settings.latency_table
    else:
        search["MAX_MACS"] = recipe.max_macs
    if plan.family > 1:
        search |= _front(recipe, settings)
    return {"_BASE_": "supernet.yaml", "SEARCH": search}


def _front(recipe: Recipe, settings: Settings) -> Tree:
    """The objectives of a family; recommended is its fittest member, whatever the limit."""
    if settings.latency_table:
        return {"OBJECTIVES": ["fitness", "latency_ms"], "BUDGETS": [round(settings.max_ms, 4)]}
    limit = recipe.max_macs or macs_range(SPACES[recipe.space])[1]
    return {"OBJECTIVES": ["fitness", "macs"], "BUDGETS": [limit]}


def _gradient(recipe: Recipe, schedule: Schedule, data: Data) -> Tree:
    iterations, rate, batch = schedule.supernet, recipe.rate, recipe.batch
    search: Tree = {
        "ARCH_TRAIN": [f"{data.train}@search_val"],
        # Until then the losses say little about operations.
        "ARCH_START_ITER": iterations // 2,
        "RETRAIN_CONFIG": "finetune.yaml",
    }
    if recipe.pattern == SMALL:
        # Costs are a fraction of those at full size: as for 192 x 256 pixels.
        unit = 5e7 * recipe.side * recipe.longest / (192 * 256)
        search |= {"ARCH_LR": 0.02, "COST_UNIT": round(unit, -5)}
    else:  # all candidates are in memory at once
        rate, batch = rate / 2, batch // 2
    return {
        "_BASE_": "dataset.yaml",
        "DATASETS": {"TRAIN": [f"{data.train}@search_train"]},
        "MODEL": {
            "HIT": {
                "SEARCHABLE_PARTS": ["backbone", "neck", "head"],
                "OPS": HIT_OPS[recipe.pattern],
            }
        },
        "HIT_SEARCH": search,
        "SOLVER": solver_of(recipe, iterations, rate) | {"IMS_PER_BATCH": batch},
    }
