"""Datasets with several processes."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.engine import launch
from detectron2.utils import comm

from detnas_d2.data import (
    build_calibration_batches,
    build_eval_loader,
    build_train_loader,
    register_datasets,
)
from detnas_d2.engine.launching import call_and_leave
from detnas_d2.evaluation.classification import ClassificationEvaluator
from detnas_d2.utils.errors import InputError


def _work(cfg: CfgNode, out: str) -> None:
    register_datasets(cfg, ["pets@search_val"])
    rank = comm.get_rank()
    batches = iter(build_train_loader(cfg, start_iter=2))
    evaluator = ClassificationEvaluator()
    label = torch.tensor([0.0, 1.0])
    evaluator.process([{"label": rank}], [{"scores": label}])
    result = {
        "val": [d["image_id"] for d in DatasetCatalog.get("pets@search_val")],
        "train": [[d["file_name"] for d in next(batches)] for _ in range(2)],
        "calibration": build_calibration_batches(cfg, "pets@search_val", 3, 1, 0).batch_ids,
        "eval": [d["image_id"] for b in build_eval_loader(cfg, "pets@search_val", 2) for d in b],
        "accuracy": evaluator.evaluate(),
    }
    comm.synchronize()
    Path(cfg.DATASETS.REGISTER[0]["IMAGES"], "1.png").unlink(missing_ok=True)
    comm.synchronize()
    try:
        register_datasets(cfg)
        result["error"] = ""
    except InputError as caught:
        result["error"] = str(caught)
    Path(out, f"{rank}.json").write_text(json.dumps(result))


def test_two_processes(make_cfg, coco, tmp_path):
    declaration = {**coco.declaration, "IMAGES": str(coco.root / "pets")}
    cfg = make_cfg(declaration, train=["pets"])
    out = tmp_path / "out"
    out.mkdir()
    launch(call_and_leave, 2, dist_url="auto", args=(_work, cfg, str(out)))
    first, second = (json.loads((out / f"{rank}.json").read_text()) for rank in range(2))
    assert first["val"] == second["val"]
    assert sorted(first["eval"] + second["eval"]) == sorted(first["val"])
    for mine, other in zip(first["train"], second["train"], strict=True):
        assert len(mine) == len(other) == 2
    assert (first["calibration"], second["calibration"]) == ([0, 2], [1])
    assert first["accuracy"] == second["accuracy"] == {"classification": {"top1": 50, "top5": 100}}
    # The writer's error reaches the other process, which would wait forever otherwise.
    for result in (first, second):
        assert "missing_image" in result["error"]
