"""Networks that are trained together are those of trainings apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode

from detnas_d2.engine import prepare
from detnas_d2.engine.architectures import decode_backbones
from detnas_d2.engine.checkpoint_files import read_checkpoint
from detnas_d2.engine.trainers.trainer import Trainer
from detnas_d2.engine.training import train, train_several
from detnas_d2.utils.errors import InputError
from tests.engine.tiny_runs import Configs
from tests.engine.two_processes import ARGS

PATHS = (
    "3x3 / 5x5 / 7x7 xception / 3x3",
    "7x7 / 3x3 / 3x3 5x5 / xception",
    "3x3 / 3x3 / 3x3 3x3 / 3x3",
)
ITERATIONS = 4
_TIMES = ("time", "eta_seconds")


def network(configs: Configs, number: int, folder: Path, *opts: object) -> CfgNode:
    cfg = configs("faster", "SOLVER.MAX_ITER", ITERATIONS, "SOLVER.STEPS", (3,), *opts)
    decode_backbones(cfg)
    cfg.MODEL.DETNAS.PATH = PATHS[number]
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0  # an AP above zero
    cfg.TEST.EVAL_PERIOD = 2
    cfg.TEST.PRECISE_BN.ENABLED, cfg.TEST.PRECISE_BN.NUM_ITER = True, 2
    cfg.OUTPUT_DIR = str(folder / str(number))
    return cfg


def prepared(configs: Configs, folder: Path, *opts: object) -> list[CfgNode]:
    found = [network(configs, number, folder, *opts) for number in range(3)]
    for cfg in found:
        prepare(cfg, ARGS)
    return found


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def losses(folder: str) -> list[Any]:
    lines = Path(folder, "metrics.json").read_text().splitlines()
    return [
        {key: value for key, value in json.loads(line).items() if not key.endswith(_TIMES)}
        for line in lines
    ]


@pytest.mark.parametrize("workers", [0, 2])
def test_to_the_bit(
    workers: int, configs: Configs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opts = ("DATALOADER.NUM_WORKERS", workers)
    apart = [network(configs, number, tmp_path / "apart", *opts) for number in range(3)]
    results = []
    for cfg in apart:
        prepare(cfg, ARGS)
        results.append(train(cfg, resume=True))
    assert len({str(found) for found in results}) > 1  # they differ

    loaded, batches = [], Trainer.batches

    def counting(self: Trainer, start_iter: int) -> Any:
        loaded.append(start_iter)
        return batches(self, start_iter)

    monkeypatch.setattr(Trainer, "batches", counting)
    together = prepared(configs, tmp_path / "together", *opts)
    assert str(train_several(together)) == str(results)  # with NaN
    assert loaded == [0]
    for one, other in zip(apart, together, strict=True):
        a, b = (read_checkpoint(f"{cfg.OUTPUT_DIR}/model_final.pth") for cfg in (one, other))
        assert same(a["model"], b["model"]) and same(a["trainer"], b["trainer"])
        assert a["iteration"] == b["iteration"] == ITERATIONS - 1
        assert losses(one.OUTPUT_DIR) == losses(other.OUTPUT_DIR)


class Killed(BaseException):
    pass


def test_resumed_at_different_iterations(
    configs: Configs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after a checkpoint of the first network of three, and before that of the second."""
    whole = str(train_several(prepared(configs, tmp_path / "whole")))
    killed, step = prepared(configs, tmp_path / "killed"), Trainer.run_step
    second = killed[1].OUTPUT_DIR

    def dies(self: Trainer) -> None:
        if second == self.cfg.OUTPUT_DIR and self.iter == 1:
            raise Killed
        step(self)

    with monkeypatch.context() as once, pytest.raises(Killed):
        once.setattr(Trainer, "run_step", dies)
        train_several(killed)
    kept = [sorted(p.name for p in Path(cfg.OUTPUT_DIR).glob("*.pth")) for cfg in killed]
    assert kept == [["model_0000001.pth"], [], []]
    steps = []

    def counting(self: Trainer) -> None:
        steps.append((Path(self.cfg.OUTPUT_DIR).name, self.iter))
        step(self)

    monkeypatch.setattr(Trainer, "run_step", counting)
    assert str(train_several(killed)) == whole
    assert steps == [
        *((name, n) for n in (0, 1) for name in "12"),
        *((name, n) for n in (2, 3) for name in "012"),
    ]
    for number in range(3):
        files = (tmp_path / name / str(number) / "model_final.pth" for name in ("whole", "killed"))
        a, b = (read_checkpoint(str(file)) for file in files)
        assert same(a["model"], b["model"]) and same(a["trainer"], b["trainer"])
    steps.clear()
    assert str(train_several(killed)) == whole and steps == []  # finished: evaluated again


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (("SEED", 3), "trained together differ in SEED: .* expected the same images"),
        (("SOLVER.MAX_ITER", 3), "differ in SOLVER.MAX_ITER"),
        (("INPUT.MIN_SIZE_TEST", 64), "differ in INPUT.MIN_SIZE_TEST"),
    ],
)
def test_other_batches(
    opts: tuple[object, ...], message: str, configs: Configs, tmp_path: Path
) -> None:
    pair = [network(configs, 0, tmp_path), network(configs, 1, tmp_path, *opts)]
    with pytest.raises(InputError, match=message):
        train_several(pair)


def test_a_supernet_is_trained_alone(configs: Configs) -> None:
    cfg = configs("faster")
    prepare(cfg, ARGS)
    with pytest.raises(InputError, match="a supernet is trained alone"):
        train_several([cfg, cfg])
