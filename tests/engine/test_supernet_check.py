"""Whether a supernet learned: scores of fixed paths, chance level, one path alone, the verdict."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import HookBase
from detectron2.modeling import build_model

from detnas_d2.config.reading import ConfigError
from detnas_d2.config.tools import base_config
from detnas_d2.config.values import check_values
from detnas_d2.data import register_datasets
from detnas_d2.engine import Trainer, train
from detnas_d2.engine.checks.models import check_training
from detnas_d2.engine.supernet_check import ending, hook
from detnas_d2.engine.supernet_check.ending import SupernetAtChance
from detnas_d2.engine.supernet_check.plan import (
    constant_answer,
    equal_updates,
    fixed_paths,
    plan_of,
)
from detnas_d2.engine.supernet_check.scores import PathScore, initial_scores, score_paths
from detnas_d2.engine.supernet_check.standalone import standalone_config
from detnas_d2.engine.supernet_check.verdict import judge
from detnas_d2.engine.trainers.iteration import loss_normalizers
from detnas_d2.evaluation.build import sequential_evaluator
from detnas_d2.search_space import SPACES, SearchSpace
from detnas_d2.utils.errors import InputError
from tests.engine.tiny_runs import Configs
from tests.helpers import changed, snapshot

TINY = SPACES["detnas_tiny"]
CHECK = {"PATHS": 2, "CALIBRATION_IMAGES": 4, "PERIOD": 2, "STANDALONE": 0, "REQUIRED": False}


def checked(configs: Configs, kind: str = "classifier", **check: object) -> CfgNode:
    cfg = configs(kind)
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0  # some boxes are right by chance
    for key, value in {**CHECK, **check}.items():
        cfg.SUPERNET.CHECK[key] = value
    return cfg


def begin(cfg: CfgNode) -> None:
    """What a command does before a training, without its log files."""
    os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
    register_datasets(cfg)
    torch.manual_seed(cfg.SEED)


def trained(cfg: CfgNode, folder: Path, **check: object) -> dict[str, Any]:
    """The final checkpoint of a training in ``folder``."""
    cfg = cfg.clone()
    for key, value in check.items():
        cfg.SUPERNET.CHECK[key] = value
    cfg.OUTPUT_DIR = str(folder)
    begin(cfg)
    train(cfg, resume=False)
    return torch.load(folder / "model_final.pth", weights_only=True)


def record_in(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "supernet.json").read_text())


def same(ours: object, theirs: object) -> bool:
    if isinstance(ours, torch.Tensor):
        return torch.equal(ours, theirs)
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(same(ours[k], theirs[k]) for k in ours)
    return ours == theirs


def scores(*values: float | None) -> list[PathScore]:
    return [PathScore(str(n), v, "NaN" if v is None else None) for n, v in enumerate(values)]


def test_fixed_paths_are_those_of_space_and_seed() -> None:
    found = fixed_paths(TINY, 0, 4)
    assert fixed_paths(TINY, 0, 4) == found and len(set(found)) == 4
    assert fixed_paths(TINY, 0, 2) == found[:2] and fixed_paths(TINY, 1, 4) != found
    assert str(found[0]) == "xception / 3x3 / 5x5 7x7 / xception"
    small = SearchSpace("two", 8, (16,), (1,), 32, ops=("3x3", "5x5"))
    assert {str(path) for path in fixed_paths(small, 0, 5)} == {"3x3", "5x5"}


def test_verdict_on_classification() -> None:
    # sqrt(0.1 * 0.9 / 400) = 0.015: chance 10, threshold 10 + 3 * 1.5.
    assert judge(scores(14, 15), scores(50), 400, 10.0).threshold == pytest.approx(14.5)
    assert not judge(scores(14, 15), scores(50), 400, 10.0).learned
    assert judge(scores(14.1, 15), scores(50), 400, 10.0).learned
    # sqrt(0.25 / 9) = 1/6: nine images of two classes say nothing, ten do.
    assert judge(scores(0), scores(0), 9, 50.0).threshold is None
    assert not judge(scores(97), scores(0), 10, 50.0).learned
    assert judge(scores(98), scores(0), 10, 50.0).learned
    assert judge(scores(100), scores(0), 500, 100.0).threshold is None  # top-5 of five classes


def test_verdict_on_detection() -> None:
    verdict = judge(scores(0.2, 1.5), scores(0.4, 0.9), 100, None)
    assert (verdict.chance, verdict.threshold, verdict.value) == (0.9, 1.4, 1.5)
    assert verdict.learned and not judge(scores(0.2, 1.4), scores(0.4, 0.9), 100, None).learned
    broken = judge(scores(30, None), scores(0, 0), 100, None)
    assert not broken.learned and broken.value is None


def test_a_constant_answer_is_the_most_frequent_class() -> None:
    for name, labels in {"c_train": [0, 1, 1, 2, 1, 3], "c_val": [1, 1, 1, 2, 0]}.items():
        DatasetCatalog.register(name, lambda labels=labels: [{"label": n} for n in labels])
        MetadataCatalog.get(name).set(thing_classes=list("abcd"))
    assert constant_answer("classification/top1", "c_val", "c_train") == 60.0
    assert constant_answer("classification/top1", "c_train", "c_val") == 50.0
    assert constant_answer("classification/top5", "c_val", "c_train") == 100.0
    assert constant_answer("bbox/AP", "c_val", "c_train") is None


@pytest.mark.parametrize("kind", ["faster", "classifier"])
def test_scores_are_those_of_a_search(kind: str, configs: Configs) -> None:
    cfg = checked(configs, kind)
    register_datasets(cfg)
    plan = plan_of(cfg, TINY)
    assert (plan.images, plan.whole.calibration.images, plan.part.calibration.images) == (4, 4, 1)
    torch.manual_seed(1)
    model = build_model(cfg)
    found = score_paths(plan.whole, model, plan.paths)
    reference = sequential_evaluator(plan.whole, model)
    assert [PathScore(str(p), reference.evaluate(p).fitness) for p in plan.paths] == list(found)
    assert len(score_paths(plan.part, model, plan.paths)) == 2
    initial = initial_scores(plan.whole, cfg, plan.paths)
    assert initial == initial_scores(plan.whole, cfg, plan.paths) != found


def test_a_path_that_cannot_be_scored_says_why(configs: Configs) -> None:
    cfg = checked(configs)
    register_datasets(cfg)
    plan, model = plan_of(cfg, TINY), build_model(cfg)
    with torch.no_grad():
        model.backbone.stem.conv.weight.fill_(torch.nan)
    (found, _) = score_paths(plan.whole, model, plan.paths)
    assert found.score is None and "not finite" in found.error


@pytest.mark.parametrize("kind", ["classifier", "retinanet"])
def test_checks_do_not_change_the_training(kind: str, configs: Configs, tmp_path: Path) -> None:
    cfg = checked(configs, kind)
    alone = trained(cfg, tmp_path / "without", PATHS=0)
    assert not list(tmp_path.glob("without/supernet.json"))
    cfg.OUTPUT_DIR = str(tmp_path / "with")
    begin(cfg)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    final = torch.load(tmp_path / "with" / "model_final.pth", weights_only=True)
    assert final["trainer"]["hooks"].pop("SupernetCheck")["key"]
    assert same(final, alone)
    points = {n: trainer.storage.history(f"supernet/score_{n}").values() for n in ("mean", "max")}
    assert [iteration for _, iteration in points["mean"]] == [0, 1, 3, 5]
    ending.conclude(trainer)
    record = record_in(tmp_path / "with")
    found = [path["score"] for path in record["paths"]]
    assert record["mean"] == points["mean"][-1][0] == sum(found) / 2
    assert max(found) == points["max"][-1][0]
    assert record["start"] == record["initial"]
    last = json.loads((tmp_path / "with" / "metrics.json").read_text().splitlines()[-1])
    assert last["supernet/score_mean"] == record["mean"]


def test_a_model_is_as_it_was(configs: Configs) -> None:
    cfg = checked(configs, "retinanet")
    cfg.MODEL.FPN.NORM = "BN"  # so that calibration runs the losses, which count their anchors
    register_datasets(cfg)
    plan, model = plan_of(cfg, TINY), build_model(cfg)
    model.train()
    model.backbone.bottom_up.stem.eval()
    modes = [module.training for module in model.modules()]
    before, normalizers = snapshot(model), loss_normalizers(model)
    draws = []
    for score in (True, False):
        torch.manual_seed(3), random.seed(3), np.random.seed(3)
        if score:
            score_paths(plan.whole, model, plan.paths)
        draws.append((float(torch.rand(1)), random.random(), float(np.random.rand())))
    assert draws[0] == draws[1] and not changed(model, before)
    assert [module.training for module in model.modules()] == modes
    assert loss_normalizers(model) == normalizers


class Stop(HookBase):
    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def before_step(self) -> None:
        if self.trainer.iter == self.iteration:
            raise KeyboardInterrupt


def test_resumed_checks_are_those_of_one_run(configs: Configs, tmp_path: Path) -> None:
    """The scores at the start come from the checkpoint; the path alone goes on too."""
    cfg = checked(configs, STANDALONE=4)
    whole = trained(cfg, tmp_path / "whole")
    cfg.OUTPUT_DIR = str(tmp_path / "torn")
    begin(cfg)
    trainer = Trainer(cfg)
    trainer.register_hooks([Stop(3)])
    trainer.resume_or_load(resume=False)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    torch.manual_seed(12345)  # of a process that has done other things before
    stop_alone(3, lambda: train(cfg, resume=True))
    assert (tmp_path / "torn" / "standalone" / "model_0000001.pth").exists()
    torch.manual_seed(54321)
    train(cfg, resume=True)
    final = torch.load(tmp_path / "torn" / "model_final.pth", weights_only=True)
    assert same(final, whole)
    assert record_in(tmp_path / "torn") == record_in(tmp_path / "whole")
    assert record_in(tmp_path / "whole")["standalone"]["updates"] == 4


def stop_alone(iteration: int, run: Callable[[], object]) -> None:
    """Interrupts the training of a path alone."""
    with pytest.MonkeyPatch.context() as patch:
        build = Trainer.build_hooks

        def build_hooks(trainer: Trainer) -> list[Any]:
            alone = trainer.cfg.OUTPUT_DIR.endswith("standalone")
            return [*build(trainer), *([Stop(iteration)] if alone else [])]

        patch.setattr(Trainer, "build_hooks", build_hooks)
        with pytest.raises(KeyboardInterrupt):
            run()


def test_one_path_alone(configs: Configs, tmp_path: Path) -> None:
    """It starts as the supernet does, and learns what a supernet of this path alone would."""
    cfg = checked(configs, STANDALONE=-1, PERIOD=0)
    cfg.SOLVER.MAX_ITER = 9
    cfg.OUTPUT_DIR = str(tmp_path)
    begin(cfg)
    torch.manual_seed(0)
    start = Trainer(cfg).model.state_dict()
    train(cfg, resume=False)
    record = record_in(tmp_path)
    path = TINY.path(record["paths"][0]["path"])
    assert record["standalone"]["path"] == str(path) and record["standalone"]["updates"] == 2
    alone = torch.load(tmp_path / "standalone" / "model_final.pth", weights_only=True)
    assert alone["iteration"] == 1
    moved = {n for n, value in alone["model"].items() if not torch.equal(value, start[n])}
    on_path = {f"backbone.blocks.{i}.candidates.{op}." for i, op in enumerate(path.ops)}
    assert all(any(name.startswith(place) for name in moved) for place in on_path)
    assert all(any(p in n for p in on_path) for n in moved if ".candidates." in n)
    short = standalone_config(cfg, 2)
    assert (short.SOLVER.MAX_ITER, short.SOLVER.STEPS, short.SOLVER.WARMUP_ITERS) == (2, (1,), 0)
    short.OUTPUT_DIR = str(tmp_path / "reference")
    begin(short)
    torch.manual_seed(0)
    reference = Trainer(short)
    reference.step.path_sampler = lambda iteration: (path,)
    reference.resume_or_load(resume=False)
    reference.train()
    assert same(reference.model.state_dict(), alone["model"])


def test_updates_of_one_path_alone(configs: Configs) -> None:
    cfg = configs("classifier", "SOLVER.MAX_ITER", 902)
    assert equal_updates(cfg, TINY, 1) == 226  # 902 / 4
    assert equal_updates(cfg, TINY, 4) == 902
    cfg.SUPERNET.CHECK.STANDALONE = 7
    assert equal_updates(cfg, TINY, 4) == 7
    cfg.SOLVER.STEPS, cfg.SOLVER.WARMUP_ITERS = (700, 850), 90
    short = standalone_config(cfg, 225)
    assert (short.SOLVER.STEPS, short.SOLVER.WARMUP_ITERS) == ((175, 212), 22)
    assert short.SUPERNET.CHECK.PATHS == 0


def test_a_supernet_at_chance_ends_the_run(
    configs: Configs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = checked(configs, "faster", REQUIRED=True, PERIOD=0)
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS = 2, ()
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.9  # nothing is found
    cfg.OUTPUT_DIR = str(tmp_path / "out")
    begin(cfg)
    text = (
        rf"{cfg.OUTPUT_DIR}: the supernet has not learned: bbox/AP of its 2 fixed paths is 0.00 "
        r"\(0.00-0.00\), chance level 0.00; expected the best path above 0.50"
    )
    with pytest.raises(SupernetAtChance, match=text) as caught:
        train(cfg, resume=False)
    for key in ("BASE_LR", "MAX_ITER", "INIT", "CLIP_GRADIENTS", "CHECK.REQUIRED False"):
        assert key in str(caught.value)
    assert (tmp_path / "out" / "model_final.pth").exists()
    written = record_in(tmp_path / "out")
    assert not written["learned"] and written["threshold"] == 0.5
    # Again: the same verdict, and nothing is computed.
    scored = []
    monkeypatch.setattr(hook, "score_paths", lambda *_: scored.append(1) or scores(60.0, 61.0))
    with pytest.raises(SupernetAtChance, match=text):
        train(cfg, resume=True)
    cfg.SUPERNET.CHECK.REQUIRED = False
    assert train(cfg, resume=True)["supernet"]["score_mean"] == 0.0
    assert not scored
    # Other images: another question.
    cfg.SUPERNET.CHECK.REQUIRED, cfg.SUPERNET.CHECK.IMAGES = True, 3
    assert train(cfg, resume=True)["supernet"]["score_mean"] == 60.5 and scored
    assert record_in(tmp_path / "out")["learned"]


def test_a_training_that_starts_over_forgets(configs: Configs, tmp_path: Path) -> None:
    cfg = checked(configs, STANDALONE=1, PERIOD=0)
    first = trained(cfg, tmp_path / "out")
    (tmp_path / "out" / "supernet.json").write_text("{}")
    (tmp_path / "out" / "standalone" / "model_final.pth").write_bytes(b"of another time")
    assert same(trained(cfg, tmp_path / "out"), first)
    assert record_in(tmp_path / "out")["standalone"]["updates"] == 1


def test_a_supernet_that_starts_from_weights(configs: Configs, tmp_path: Path) -> None:
    """It has scores at the start, and chance is that of random weights all the same."""
    cfg = checked(configs, PERIOD=0)
    torch.manual_seed(7)
    model = build_model(cfg)
    torch.save({"model": model.state_dict()}, tmp_path / "start.pth")
    cfg.MODEL.WEIGHTS = str(tmp_path / "start.pth")
    trained(cfg, tmp_path / "out")
    record, plan = record_in(tmp_path / "out"), plan_of(cfg, TINY)
    assert record["start"] == [f.score for f in score_paths(plan.whole, model, plan.paths)]
    assert record["initial"] == [f.score for f in initial_scores(plan.whole, cfg, plan.paths)]
    assert record["start"] != record["initial"]


def test_a_finished_training_is_checked_later(configs: Configs, tmp_path: Path) -> None:
    """One of before the check, or without it."""
    cfg = checked(configs, PERIOD=0)
    trained(cfg, tmp_path / "later", PATHS=0)
    trained(cfg, tmp_path / "whole")
    cfg.OUTPUT_DIR = str(tmp_path / "later")
    train(cfg, resume=True)
    later, whole = record_in(tmp_path / "later"), record_in(tmp_path / "whole")
    assert later.pop("start") is None and whole.pop("start") == whole["initial"]
    assert later == whole


@pytest.mark.parametrize(
    ("check", "message"),
    [
        ({"VAL": "shapes@search_vall"}, "a search split is written"),
        ({"VAL": "shape"}, "'shape' is neither in DATASETS.REGISTER"),
    ],
)
def test_datasets_of_the_check_are_known(check: dict, message: str, configs: Configs) -> None:
    with pytest.raises(InputError, match=message):
        register_datasets(checked(configs, "faster", **check))


def test_what_a_check_needs(configs: Configs) -> None:
    cfg = checked(configs, "faster")
    cfg.SEARCH.METRIC = "classification/top1"  # of the search of another stage
    register_datasets(cfg)
    assert plan_of(cfg, TINY).metric == "bbox/AP"
    cfg.SEARCH.METRIC = "bbox/AP50"
    assert plan_of(cfg, TINY).metric == "bbox/AP50"
    model = build_model(cfg)
    cfg.DATASETS.TEST = ()
    with pytest.raises(InputError, match=r"CHECK.VAL and DATASETS.TEST are empty: .*PATHS 0"):
        check_training(cfg, model)
    cfg.SEARCH.METRIC, cfg.SUPERNET.CHECK.VAL = "bbox/APl", "shapes@search_val"
    with pytest.raises(InputError, match=r"cannot give bbox/APl: no object .*SUPERNET.CHECK.VAL"):
        check_training(cfg, model)
    DatasetCatalog.register("others", list)
    cfg.SUPERNET.CHECK.VAL = "others"
    with pytest.raises(InputError, match=r"evaluator_type None.*SUPERNET.CHECK.PATHS 0"):
        check_training(cfg, model)
    cfg.SUPERNET.CHECK.PATHS = 0
    check_training(cfg, model)


@pytest.mark.parametrize("key", ["PATHS", "IMAGES", "CALIBRATION_IMAGES", "PERIOD", "STANDALONE"])
def test_negative_numbers_are_refused(key: str) -> None:
    cfg = base_config()
    cfg.SUPERNET.CHECK[key] = -2
    with pytest.raises(ConfigError, match=f"SUPERNET.CHECK.{key}"):
        check_values(cfg, {}, "a file")
