"""A space declared in a config, from the training of its supernet to the network it finds."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_backbone, build_model
from torch.utils.flop_counter import FlopCounterMode

from detnas_d2.config.tools import base_config, load_config
from detnas_d2.engine import FlopsBinnedPathSampler, prepare, search, train
from detnas_d2.engine.checks.models import Models, check_names
from detnas_d2.engine.checks.run import check_run
from detnas_d2.engine.evolution_search import load_supernet
from detnas_d2.engine.plan import SearchPlan
from detnas_d2.evaluation.build import sequential_evaluator
from detnas_d2.evaluation.settings import EvaluationSettings
from detnas_d2.modeling import RelaxedShuffleNet, activate, decoded_backbone, supernet_backbone
from detnas_d2.pipeline.report import backbone_cost
from detnas_d2.search import History
from detnas_d2.search_space import LatencyTable, build_cost_table, measure_latency, space_of
from detnas_d2.utils.errors import InputError
from tests.engine.tiny_runs import Configs, arguments

ARGS = arguments()
MINE = {
    "NAME": "mine",
    "STEM": 8,
    "LAST": 32,
    "OPS": ["3x3", "3x3_e2", "skip"],
    "STAGES": [
        {"CHANNELS": 16, "DEPTH": 1},
        {"CHANNELS": 24, "DEPTH": 2},
        {"CHANNELS": 32, "DEPTH": 2, "OPS": ["xception", "ir_k3_e3_d1", "skip"]},
        {"CHANNELS": 40, "DEPTH": 2},
    ],
}
OPTS = ("MODEL.DETNAS.SPACES", [MINE], "MODEL.DETNAS.SPACE", "mine")


def declaring(entry: dict) -> CfgNode:
    cfg = base_config()
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
    cfg.MODEL.DETNAS.SPACES, cfg.MODEL.DETNAS.SPACE = [entry], entry["NAME"]
    return cfg


def test_supernet_search_and_the_network_that_is_found(configs: Configs, tmp_path: Path) -> None:
    cfg = configs("faster", *OPTS)
    prepare(cfg, ARGS)
    check_run(cfg, "train", Models(), config_dir="")
    train(cfg, resume=False)
    weights = str(Path(cfg.OUTPUT_DIR, "model_final.pth"))

    trained = ("MODEL.WEIGHTS", weights, "SEARCH.MAX_MACS", 4_000_000)
    cfg = configs.search(*OPTS, *trained, "SEARCH.POPULATION", 3, "SEARCH.GENERATIONS", 2)
    prepare(cfg, ARGS)
    check_run(cfg, "search", Models(), config_dir="")
    space, best = space_of(cfg), search(cfg, resume=False)
    records = History.read(cfg.OUTPUT_DIR).records
    ops = {op for record in records for op in record.path.split()}
    assert {"skip", "3x3_e2", "ir_k3_e3_d1"} <= ops
    settings, model = EvaluationSettings.from_config(cfg), load_supernet(cfg)
    alone = sequential_evaluator(settings, model)
    for record in records:
        assert record.fitness == alone.evaluate(space.path(record.path)).fitness
    assert search(cfg, resume=True) == best

    found = load_config(f"{cfg.OUTPUT_DIR}/best.yaml")
    assert space_of(found) == space
    path = space.path(found.MODEL.DETNAS.PATH)
    assert str(path) == best.path
    cost = build_cost_table(space, (64, 64)).cost(path)
    assert (cost.macs, cost.params) == (best.macs, best.params)
    assert backbone_cost(found, (64, 64)) == cost
    found.MODEL.WEIGHTS, found.OUTPUT_DIR = weights, str(tmp_path / "best")
    found.SOLVER.MAX_ITER, found.SOLVER.STEPS = 1, ()
    prepare(found, ARGS)
    check_run(found, "train", Models(), config_dir="")
    assert "bbox" in train(found, resume=False)
    # What the run wrote about itself describes the space too.
    assert space_of(load_config(str(tmp_path / "best" / "config.yaml"))) == space


def test_a_config_to_retrain_with_needs_no_declaration(configs: Configs, tmp_path: Path) -> None:
    cfg = configs.search("MODEL.WEIGHTS", "", *OPTS)
    file = tmp_path / "retrain.yaml"
    text = "MODEL:\n  BACKBONE: {NAME: build_detnas_fpn_backbone}\n  DETNAS: {SPACE: mine%s}\n"
    file.write_text(text % "")
    cfg.SEARCH.RETRAIN_CONFIG = str(file)
    path = str(space_of(cfg).first_path())
    assert space_of(SearchPlan.from_config(cfg).completed(path)) == space_of(cfg)
    file.write_text(text % f", SPACES: [{ {**MINE, 'STEM': 10} }]")
    with pytest.raises(InputError, match="declares MODEL.DETNAS.SPACE mine otherwise than"):
        SearchPlan.from_config(cfg)


def test_names_are_checked_before_a_run() -> None:
    cfg = declaring(MINE)
    check_names(cfg)
    cfg.MODEL.DETNAS.SPACE = "mien"
    with pytest.raises(InputError, match="SPACE is 'mien': .*did you mean mine"):
        check_names(cfg)
    cfg.MODEL.DETNAS.SPACES = [{**MINE, "STEM": 3}]
    with pytest.raises(InputError, match=r"SPACES\[0\] \('mine'\).STEM is 3"):
        check_names(cfg)


@pytest.mark.parametrize("stages", [1, 3, 5])
def test_any_number_of_stages(stages: int) -> None:
    widths = (16, 24, 32, 40, 48)[:stages]
    described = [{"CHANNELS": width, "DEPTH": 2} for width in widths]
    cfg = declaring({**MINE, "STAGES": described})
    names = [f"stage{stage}" for stage in range(1, stages + 1)]
    cfg.MODEL.FPN.IN_FEATURES, cfg.MODEL.FPN.OUT_CHANNELS = names, 8
    space, image = space_of(cfg), torch.rand(1, 3, 128, 128)
    cfg.MODEL.BACKBONE.NAME = "build_detnas_supernet_retinanet_fpn_backbone"
    model = build_backbone(cfg)
    with activate(model, space.random_path(random.Random(0))):
        outputs = model(image)
    levels = range(2, stages + 4)
    assert {name: value.shape[-1] for name, value in outputs.items()} == {
        f"p{level}": -(-128 // 2**level) for level in levels
    }
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.DETNAS.OUT_FEATURES = "build_detnas_relaxed_backbone", names
    relaxed = build_backbone(cfg)
    assert isinstance(relaxed, RelaxedShuffleNet) and list(relaxed(image)) == names


def test_bins_count_the_classifier_of_any_number_of_stages() -> None:
    cfg = declaring({**MINE, "STAGES": MINE["STAGES"][:3]})
    cfg.MODEL.META_ARCHITECTURE = "ImageClassifier"
    cfg.MODEL.BACKBONE.NAME = "build_detnas_backbone"
    cfg.MODEL.DETNAS.LAST_CONV, cfg.MODEL.DETNAS.OUT_FEATURES = True, ["last"]
    cfg.MODEL.CLASSIFIER.NUM_CLASSES = 7
    space = space_of(cfg)
    sampler = FlopsBinnedPathSampler(space, 0, [1, 10**9], num_classes=7)
    (path,) = sampler(0)
    cfg.MODEL.DETNAS.PATH = str(path)
    model = build_model(cfg).eval()
    with FlopCounterMode(display=False) as counter:
        model([{"image": torch.rand(3, 224, 224)}])
    assert counter.get_total_flops() // 2 == sampler.macs(path)


def test_latencies_are_of_a_space_not_of_a_name() -> None:
    space = space_of(declaring(MINE))
    table = measure_latency(space, input_size=(32, 32), repeats=1)
    assert tuple(map(len, table.entries)) == space.cardinalities == (2, 2, 3, 2, 3, 2, 3)
    text = table.to_json()
    assert LatencyTable.from_json(text, space) == table
    wider = space_of(declaring({**MINE, "STEM": 10}))
    with pytest.raises(ValueError, match="another space called 'mine'"):
        LatencyTable.from_json(text, wider)


def test_a_space_of_plain_python() -> None:
    space = space_of(declaring({**MINE, "STAGES": MINE["STAGES"][:2]}))
    path = space.first_path()
    decoded, supernet = (
        decoded_backbone(space=space, path=str(path)),
        supernet_backbone(space=space),
    )
    assert list(decoded.output_shape()) == list(supernet.output_shape()) == ["stage1", "stage2"]
    assert decoded.path == path and supernet.space == space
