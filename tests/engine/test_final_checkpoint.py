"""A training that ended between its last periodic checkpoint and model_final.pth."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode

from detnas_d2.data import register_datasets
from detnas_d2.engine import train
from detnas_d2.engine.gradient_search import gradient_search, screen
from tests.campaigns.outcome import differences
from tests.engine.hit_runs import scene_config
from tests.engine.tiny_runs import Configs

SHORT = ("SOLVER.MAX_ITER", 2, "SOLVER.STEPS", ())


def supernet(kind: str) -> Callable[[Path], CfgNode]:
    def config(root: Path) -> CfgNode:
        cfg = Configs(root)(kind, *SHORT)
        register_datasets(cfg)
        return cfg

    return config


def hit(name: str, *opts: object) -> Callable[[Path], CfgNode]:
    return lambda root: scene_config(root, name, "out", *SHORT[:2], *opts)


SCREENING = (
    ("HIT_SEARCH.ARCH_START_ITER", 0, "MODEL.HIT.SEARCHABLE_PARTS", ["head"])
    + ("HIT_SEARCH.SCREENING.REMOVE_START", 1, "HIT_SEARCH.SCREENING.REMOVE_END", 2)
    + ("HIT_SEARCH.SCREENING.KEEP", 2)
)


@pytest.mark.parametrize(
    ("config", "run", "product"),
    [
        (supernet("faster"), train, ""),
        (supernet("classifier"), train, ""),
        (hit("screen.yaml", *SCREENING), screen, "sub_space.yaml"),
        (hit("search.yaml"), gradient_search, "genotype.yaml"),
        (hit("search.yaml", "HIT_SEARCH.ARCH_START_ITER", -1), train, ""),
    ],
    ids=["supernet", "classifier", "screening", "gradient search", "relaxed pre-training"],
)
def test_final_weights_are_written_by_the_resumed_run(
    config: Callable, run: Callable, product: str, tmp_path: Path
) -> None:
    cfg = config(tmp_path)
    out = Path(cfg.OUTPUT_DIR)
    out.mkdir(exist_ok=True)
    run(cfg, resume=True)
    final = torch.load(out / "model_final.pth", weights_only=True)
    (out / "model_final.pth").unlink()
    (out / "last_checkpoint").write_text("model_0000001.pth")
    if product:
        (out / product).unlink()
    run(cfg, resume=True)
    assert differences(torch.load(out / "model_final.pth", weights_only=True), final) == []
    assert (out / "last_checkpoint").read_text() == "model_final.pth"
    assert not product or (out / product).exists()
