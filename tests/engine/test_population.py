"""A population evaluated together against its paths evaluated one by one."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.evaluation import inference_context
from torch import nn

from detnas_d2.data import register_datasets
from detnas_d2.engine.evolution_search import load_supernet
from detnas_d2.evaluation.build import candidate_evaluator, sequential_evaluator
from detnas_d2.evaluation.calibration_steps import CalibrationStep
from detnas_d2.evaluation.candidate import Evaluation
from detnas_d2.evaluation.graphs import GraphedCalls
from detnas_d2.evaluation.population import Chunk, PopulationEvaluator
from detnas_d2.evaluation.predictions import Predictions
from detnas_d2.evaluation.recalibration import override_bn_stats, recalibrate
from detnas_d2.evaluation.settings import EvaluationSettings
from detnas_d2.layers import folded_norm
from detnas_d2.modeling import activate, find_supernet
from detnas_d2.search_space import SPACES, Path
from detnas_d2.utils.errors import CandidateFailed
from tests.engine.tiny_runs import Configs
from tests.evaluation.graph_tape import Prefers, TapeGraphs
from tests.helpers import changed, snapshot

TINY = SPACES["detnas_tiny"]


def population(size: int, seed: int) -> list[Path]:
    """Distinct paths, most of them one step from another."""
    rng = random.Random(seed)
    paths = [TINY.random_path(rng)]
    while len(paths) < size:
        choices = list(rng.choice(paths).choices)
        choices[rng.randrange(len(choices))] = rng.randrange(4)
        if TINY.path(choices) not in paths:
            paths.append(TINY.path(choices))
    rng.shuffle(paths)
    return paths


def setting(
    configs: Configs, kind: str, *opts: object, norm: str = ""
) -> tuple[CfgNode, nn.Module]:
    """``norm``: of neck and box head."""
    cfg = configs.search(*opts, kind=kind, norm=norm)
    register_datasets(cfg)
    return cfg, load_supernet(cfg)


def all_of(cfg: CfgNode, model: nn.Module, paths: list[Path], kind: str) -> dict[Path, Evaluation]:
    settings = EvaluationSettings.from_config(cfg)
    if kind == "sequential":
        reference = sequential_evaluator(settings, model)
        return {path: reference.evaluate(path) for path in paths}
    with candidate_evaluator(settings, model) as evaluator:
        found = dict(evaluator.evaluate_many(paths))
    assert found.keys() == set(paths)
    return found


def same(ours: Evaluation, theirs: Evaluation) -> bool:
    # As text, for which a NaN is a NaN.
    return (ours.fitness, str(dict(ours.metrics))) == (theirs.fitness, str(dict(theirs.metrics)))


@torch.no_grad()
def predicted(model: nn.Module, evaluator: PopulationEvaluator, path: Path) -> Predictions:
    """What the path predicts on its own."""
    batches = zip(evaluator.calibration.batch_ids, evaluator.calibration, strict=True)
    collector = evaluator.scoring.collector()
    with activate(model, path):
        statistics = recalibrate(model, batches, seed=evaluator.seed)
        with override_bn_stats(model, statistics), inference_context(model):
            for inputs in evaluator.data_loader:
                collector.process(inputs, model(inputs))
    return collector.finish()


def assert_identical(ours: Any, theirs: Any) -> None:
    for field in fields(ours):
        a, b = getattr(ours, field.name), getattr(theirs, field.name)
        if isinstance(a, dict):
            assert a.keys() == b.keys()
            assert all(np.array_equal(a[key], b[key]) for key in a)
        else:
            assert np.array_equal(a, b)


@pytest.mark.parametrize(
    ("kind", "norm", "chunk"),
    [("faster", "BN", 3), ("faster", "", 9), ("mask", "", 2), ("retinanet", "", 4)],
)
def test_detections_and_figures_are_those_of_one_by_one(
    configs: Configs, kind: str, norm: str, chunk: int
) -> None:
    cfg, model = setting(configs, kind, "SEARCH.CHUNK", chunk, norm=norm)
    paths, before = population(5, seed=chunk), snapshot(model)
    together = all_of(cfg, model, paths, "population")
    assert changed(model, before) == set() and not model.training
    alone = all_of(cfg, model, paths, "sequential")
    assert all(same(together[path], alone[path]) for path in paths)
    assert len({found.fitness for found in together.values()}) > 1
    assert ("segm/AP" in together[paths[0]].metrics) == (kind == "mask")
    with candidate_evaluator(EvaluationSettings.from_config(cfg), model) as evaluator:
        chunk = Chunk(model, evaluator.scoring, paths, evaluator.statistics(paths))
        found = chunk.infer(evaluator.data_loader)
        for path in paths[:3]:
            assert_identical(found[path], predicted(model, evaluator, path))


def test_calibration_batches_that_run_together(
    configs: Configs, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_one_size = ("INPUT.MIN_SIZE_TEST", 64, "INPUT.MAX_SIZE_TEST", 64)
    calibration = ("SEARCH.CALIBRATION.IMAGES", 6, "SEARCH.CALIBRATION.BATCH_SIZE", 1)
    cfg, model = setting(configs, "faster", *of_one_size, *calibration)
    paths, steps = population(5, seed=2), []
    run = CalibrationStep.run

    def spied(step: CalibrationStep, seed: int) -> None:
        steps.append(len(step.numbers))
        run(step, seed)

    monkeypatch.setattr(CalibrationStep, "run", spied)
    cfg.SEARCH.CALIBRATION.TOGETHER = 4
    together = all_of(cfg, model, paths, "population")
    assert max(steps) > 1
    steps.clear()
    cfg.SEARCH.CALIBRATION.TOGETHER = 1
    alone = all_of(cfg, model, paths, "population")
    assert set(steps) == {1}
    assert all(same(together[path], alone[path]) for path in paths)
    assert len({found.fitness for found in together.values()}) > 1


def test_candidates_replayed_from_graphs(configs: Configs) -> None:
    of_one_size = ("INPUT.MIN_SIZE_TEST", 64, "INPUT.MAX_SIZE_TEST", 64)
    calibration = ("SEARCH.CALIBRATION.IMAGES", 6, "SEARCH.CALIBRATION.BATCH_SIZE", 1)
    cfg, model = setting(configs, "faster", "SEARCH.CHUNK", 3, *of_one_size, *calibration)
    paths, settings = population(5, seed=6), EvaluationSettings.from_config(cfg)
    expected = all_of(cfg, model, paths, "population")
    graphs = GraphedCalls(TapeGraphs(), Prefers(), after=1)
    with candidate_evaluator(settings, model) as evaluator:
        assert evaluator.graphs is None  # there is no GPU
        evaluator.graphs = graphs
        evaluator.statistics(paths)
        replays = graphs.replays
        found = dict(evaluator.evaluate_many(paths))
    assert all(same(found[path], expected[path]) for path in paths)
    assert 0 < replays < graphs.replays


def test_classification(configs: Configs) -> None:
    cfg, model = setting(configs, "classifier", "SEARCH.CHUNK", 3)
    paths = population(5, seed=1)
    together = all_of(cfg, model, paths, "population")
    alone = all_of(cfg, model, paths, "sequential")
    assert all(same(together[path], alone[path]) for path in paths)


def test_images_are_read_and_every_prefix_runs_once_per_chunk(configs: Configs) -> None:
    cfg, model = setting(configs, "faster")
    paths, runs = population(6, seed=5), Counter()
    preprocess = model.preprocess_image
    model.preprocess_image = lambda batch: runs.update(["batch"]) or preprocess(batch)
    supernet = find_supernet(model)
    supernet.stem.register_forward_hook(lambda *_: runs.update(["stem"]))
    with candidate_evaluator(EvaluationSettings.from_config(cfg), model) as evaluator:
        batches = len(evaluator.calibration) + len(evaluator.data_loader)
        assert len(dict(evaluator.evaluate_many(paths))) == 6
        assert runs == {"batch": batches, "stem": batches}
        runs.clear()
        assert len(dict(evaluator.evaluate_many(paths[:2]))) == 2
    # What was calibrated is remembered.
    assert runs["stem"] == len(evaluator.data_loader)


def test_weights_are_looked_up_once_per_chunk(
    configs: Configs, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg, model = setting(configs, "classifier")
    paths, looked_up = population(4, seed=6), Counter()
    digest = folded_norm._digest

    def counted(tensors: list[torch.Tensor], counts: list[int]) -> list[int]:
        looked_up["modules"] += len(counts)
        return digest(tensors, counts)

    monkeypatch.setattr(folded_norm, "_digest", counted)
    with candidate_evaluator(EvaluationSettings.from_config(cfg), model) as evaluator:
        batches = [[image] for batch in evaluator.data_loader for image in batch]
        assert len(batches) > 1
        for images in (batches[:1], batches):
            evaluator.data_loader = images
            looked_up.clear()
            assert len(list(evaluator.predictions(paths))) == 4
            # Of every prefix, the stem's among them, and the last convolution of every path.
            prefixes = {path.choices[:n] for path in paths for n in range(TINY.num_layers + 1)}
            assert looked_up["modules"] == len(prefixes) + len(paths)


def test_a_failing_candidate_is_recorded_and_the_others_go_on(
    configs: Configs, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg, model = setting(configs, "faster")
    paths = population(5, seed=7)
    expected = all_of(cfg, model, paths, "population")
    diverged, short = paths[1], paths[3]
    inference = type(model).inference

    def failing(self: nn.Module, inputs: list[dict], *args: Any, **kwargs: Any) -> Any:
        path = find_supernet(self).active_path
        if path == short and inputs[0]["image_id"] % 2:
            raise RuntimeError("out of something")
        features = self.backbone(self.preprocess_image(inputs).tensor)
        if path == diverged:
            features["p6"].fill_(float("nan"))
            for hook in self.backbone._forward_hooks.values():
                hook(self.backbone, (), features)
        return inference(self, inputs, *args, **kwargs)

    monkeypatch.setattr(type(model), "inference", failing)
    found = all_of(cfg, model, paths, "population")
    assert str(found[diverged]) == "FloatingPointError: feature p6 of the backbone is not finite"
    assert str(found[short]) == "RuntimeError: out of something"
    for path in paths:
        if path not in (diverged, short):
            assert same(found[path], expected[path])


def test_short_memory_is_tried_again_without_what_is_shared(
    configs: Configs, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg, model = setting(configs, "faster")
    paths = population(5, seed=8)
    expected = all_of(cfg, model, paths, "population")
    supernet = find_supernet(model)
    run, stopped = supernet._run, []

    def short(x: torch.Tensor, outputs: dict, wanted: set[int]) -> torch.Tensor | None:
        # A path that continues from another's outputs has no room beside them.
        if outputs and len(stopped) < 4:
            stopped.append(supernet.active_path)
            raise MemoryError("no room")
        return run(x, outputs, wanted)

    monkeypatch.setattr(supernet, "_run", short)
    found = all_of(cfg, model, paths, "population")
    assert len(stopped) == 4
    assert all(same(found[path], expected[path]) for path in paths)


def test_statistics_that_fail_are_failures_of_their_candidates(configs: Configs) -> None:
    cfg, model = setting(configs, "faster")
    with torch.no_grad():
        find_supernet(model).blocks[0].candidates["7x7"].main[0].conv.weight.fill_(float("inf"))
    paths = [TINY.uniform_path(op) for op in ("3x3", "7x7")]
    found = all_of(cfg, model, paths, "population")
    assert isinstance(found[paths[0]], Evaluation) and isinstance(found[paths[1]], CandidateFailed)
    assert "blocks.0.candidates.7x7.main.0.norm are not finite" in str(found[paths[1]])


def test_unknown_metric_lists_the_known_ones(configs: Configs) -> None:
    cfg, model = setting(configs, "faster", "SEARCH.METRIC", "bbox/mAP")
    with pytest.raises(KeyError, match="no metric 'bbox/mAP'; the evaluator reports bbox/AP"):
        all_of(cfg, model, population(2, seed=0), "population")
