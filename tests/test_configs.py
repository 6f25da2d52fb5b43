"""Every config of configs/, stages and variants among them, loads; their models train."""

from __future__ import annotations

import json
import random
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from detnas_d2.analysis.complexity import analyze_model
from detnas_d2.config.tools import flatten, load_config, short_yaml
from detnas_d2.data import DIGITS_NAMES
from detnas_d2.data.datasets.union import parts_of
from detnas_d2.engine import Trainer
from detnas_d2.engine.checks.data import training_images_tested
from detnas_d2.engine.plan import retrain_config
from detnas_d2.engine.proposals import Proposals
from detnas_d2.modeling import find_supernet
from detnas_d2.search_space import build_cost_table, space_of
from tests.experiments import (
    EXPERIMENTS,
    FILES,
    PIPELINES,
    content,
    folder_of,
    frozen,
    load,
    pipeline,
)
from tests.helpers import classification_batch, training_batch

# A base, or the description of a dataset, leaves Detectron2's default backbone.
DETNAS = [n for n in EXPERIMENTS if "detnas" in frozen(n).MODEL.BACKBONE.NAME and "Base-" not in n]
SEARCHES = [name for name in DETNAS if frozen(name).SEARCH.VAL]


def description(name: str) -> str:
    """The model without the file of its weights: equal for equal models."""
    keys = flatten(frozen(name).MODEL)
    keys.pop("WEIGHTS")
    return json.dumps(keys, sort_keys=True, default=str)


BUILT = sorted({description(name): name for name in DETNAS}.values())


def completed(name: str, device: str) -> CfgNode:
    """The config with a path, where a pipeline or a search would fill one in."""
    cfg = load(name)
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = device, ""
    if not cfg.MODEL.DETNAS.PATH:
        space = space_of(cfg)
        cfg.MODEL.DETNAS.PATH = str(space.random_path(random.Random(name)))
    return cfg


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_config_loads_and_survives_its_short_form(name: str, tmp_path: Path) -> None:
    cfg = frozen(name)
    (tmp_path / "short.yaml").write_text(short_yaml(cfg))
    assert load_config(str(tmp_path / "short.yaml")) == cfg
    steps = cfg.SOLVER.STEPS
    if steps != (30000,):  # Detectron2's default, of which a base may know nothing
        assert list(steps) == sorted(steps) and max(steps, default=0) < cfg.SOLVER.MAX_ITER


@pytest.mark.parametrize("name", PIPELINES)
def test_pipeline_is_complete(name: str) -> None:
    assert pipeline(name).stages and (pipeline(name).table or "TABLES" in content(name))


@pytest.mark.parametrize("name", DETNAS)
def test_data_sets_are_known(name: str) -> None:
    cfg = frozen(name)
    declared = {entry["NAME"] for entry in cfg.DATASETS.REGISTER}
    known = declared | set(DIGITS_NAMES) | set(DatasetCatalog)
    used = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST, cfg.SEARCH.VAL, cfg.SEARCH.CALIBRATION.DATASET]
    assert {part for text in used if text for part in parts_of(text.partition("@")[0])} <= known
    assert cfg.DATASETS.TRAIN and cfg.DATASETS.TEST
    assert training_images_tested(cfg) == []


@pytest.mark.parametrize("name", SEARCHES)
def test_search_can_start_and_scores_on_training_data(name: str) -> None:
    cfg = frozen(name)
    space = space_of(cfg)
    proposals = Proposals.from_config(cfg, space)
    assert proposals.costs == build_cost_table(space, tuple(cfg.SEARCH.MAX_MACS_INPUT))
    proposals.check()
    first = proposals.build_searcher().ask()
    assert len(set(first)) == len(first) and all(map(proposals.constraint, first))
    parent, _, half = cfg.SEARCH.VAL.partition("@")
    retrain = retrain_config(cfg, str(folder_of(name)))
    # Half of a training set, or the demo's digits that neither training nor test shows.
    assert half == "search_val" or cfg.SEARCH.VAL in ("digits_val", "digits_scenes_val")
    assert parent not in (*retrain.DATASETS.TEST, *cfg.DATASETS.TRAIN)
    assert all(text.partition("@")[2] != "search_val" for text in cfg.DATASETS.TRAIN)
    assert retrain.MODEL.META_ARCHITECTURE == cfg.MODEL.META_ARCHITECTURE


@pytest.mark.parametrize("name", BUILT)
def test_model_builds_and_its_shapes_fit(name: str) -> None:
    cfg = completed(name, "meta")
    with torch.device("meta"):
        model = build_model(cfg).eval()
    supernet = find_supernet(model)
    assert (supernet is not None) == ("supernet" in cfg.MODEL.BACKBONE.NAME)
    path = space_of(cfg).path(cfg.MODEL.DETNAS.PATH)
    with nullcontext() if supernet is None else supernet.active(path):
        costs = analyze_model(model, input_size=(64, 96), proposals=2)
    assert costs["backbone"].macs > 0 and costs["head"].macs > 0


@pytest.mark.parametrize("name", BUILT)
def test_model_takes_a_training_step(name: str) -> None:
    torch.manual_seed(0)
    cfg = completed(name, "cpu")
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 8
    cfg.MODEL.RPN.PRE_NMS_TOPK_TRAIN = cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = 20
    model = build_model(cfg)
    step = Trainer.build_step(cfg, model, Trainer.build_optimizer(cfg, model))
    if cfg.MODEL.META_ARCHITECTURE == "ImageClassifier":
        batch = classification_batch(64, [0, 1])
    else:
        batch = training_batch(sizes=((64, 64),) * 2, classes=(0, 1))
    step.set_data([batch])
    weight = next(p for n, p in model.named_parameters() if n.endswith("stem.conv.weight"))
    before = weight.detach().clone()
    with EventStorage(0):
        step.iter = 0
        step.run_step()
    assert weight.isfinite().all() and not torch.equal(weight, before)


def test_few_files() -> None:
    """A near-duplicate is an override in a pipeline, not a file."""
    assert len(FILES) <= 90
