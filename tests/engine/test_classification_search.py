"""ClsNASNet: the search of a classification supernet by top-1 accuracy."""

from __future__ import annotations

from pathlib import Path

import torch
from detectron2.modeling import build_model

from detnas_d2.config.tools import load_config
from detnas_d2.engine import prepare, search, train
from detnas_d2.search import History
from tests.engine.tiny_runs import Configs, arguments

ARGS = arguments()
HITS = (0, 25, 50, 75, 100)  # of the four images of search_val


def test_search_by_top1(configs: Configs, tmp_path: Path) -> None:
    cfg = configs("classifier", "SEARCH.VAL", "colors@search_val", "SEARCH.POPULATION", 3)
    cfg.SEARCH.GENERATIONS = 2
    cfg.SEARCH.CALIBRATION.IMAGES, cfg.SEARCH.CALIBRATION.BATCH_SIZE = 4, 2
    cfg.OUTPUT_DIR = str(tmp_path / "search")
    cfg.MODEL.WEIGHTS = str(tmp_path / "supernet.pth")
    torch.manual_seed(0)
    model = build_model(cfg)
    torch.save({"model": model.state_dict()}, cfg.MODEL.WEIGHTS)
    prepare(cfg, ARGS)
    best = search(cfg, resume=False)
    records = History.read(cfg.OUTPUT_DIR).records
    assert len(records) == 6
    for record in records:
        assert record.fitness == record.metrics["classification/top1"]
        assert record.fitness in HITS
    assert best.fitness == max(record.fitness for record in records)

    found = load_config(f"{cfg.OUTPUT_DIR}/best.yaml")
    assert best.path == found.MODEL.DETNAS.PATH
    found.MODEL.WEIGHTS = cfg.MODEL.WEIGHTS
    found.SOLVER.MAX_ITER = 1
    found.OUTPUT_DIR = str(tmp_path / "best")
    prepare(found, ARGS)
    results = train(found, resume=False)
    assert results["classification"]["top1"] in HITS
