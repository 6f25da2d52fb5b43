"""Supernets trained at several resolutions, and searches of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.modeling import build_model

from detnas_d2.config.resolutions import at_resolution
from detnas_d2.config.tools import load_config
from detnas_d2.data import register_datasets
from detnas_d2.engine import Trainer, prepare, search, train, train_main
from detnas_d2.engine.evolution_search import load_supernet
from detnas_d2.engine.outlook import work_of
from detnas_d2.engine.plan import SearchPlan
from detnas_d2.engine.proposals import Proposals
from detnas_d2.engine.trainers.path_sampling import (
    FairPathSampler,
    ResolutionSampler,
    SandwichPathSampler,
    UniformPathSampler,
    build_path_sampler,
)
from detnas_d2.evaluation.build import resized_evaluator, sequential_evaluator
from detnas_d2.evaluation.population import PopulationEvaluator
from detnas_d2.evaluation.settings import EvaluationSettings, resized_settings
from detnas_d2.programs.diagnose import main as diagnose
from detnas_d2.search import FingerprintMismatch, History
from detnas_d2.search_space import SPACES, LatencyTable, PathError, space_of
from detnas_d2.search_space.candidates import Candidates
from detnas_d2.utils.errors import InputError
from tests.engine.sizes_apart import updated_both_ways
from tests.engine.test_trainer import Interrupt, final, same
from tests.engine.tiny_runs import Configs, arguments, write_config

TINY = SPACES["detnas_tiny"]
SIZES = (32, 48, 64)
KEYS = ("SEARCH.RESOLUTIONS", list(SIZES))
ELASTIC = [
    {
        "NAME": "elastic",
        "STEM": 8,
        "LAST": 32,
        "OPS": ["3x3", "3x3_e2", "skip"],
        "STAGES": [{"CHANNELS": channels, "DEPTH": 2} for channels in (24, 48, 96, 192)],
    }
]
SANDWICH = (
    *("MODEL.DETNAS.SPACES", ELASTIC, "MODEL.DETNAS.SPACE", "elastic"),
    *("SUPERNET.PATH_SAMPLING", "sandwich", "SUPERNET.DISTILL_WEIGHT", 0.0),
)


# -- training -----------------------------------------------------------------------------------


def test_resolutions_of_updates() -> None:
    sampler = ResolutionSampler(UniformPathSampler(TINY, 3), SIZES, 3)
    updates = [sampler(iteration) for iteration in range(300)]
    assert [sampler(iteration) for iteration in reversed(range(300))] == updates[::-1]
    plain = [UniformPathSampler(TINY, 3)(iteration) for iteration in range(300)]
    assert [(path.at(None),) for (path,) in updates] == plain
    counts = [sum(path.resolution == size for (path,) in updates) for size in SIZES]
    assert min(counts) > 70
    assert [sampler.sizes(i) for i in range(300)] == [(p.resolution,) for (p,) in updates]
    # Checkpoints of interrupted trainings rely on the sequence.
    assert [SIZES.index(path.resolution) for (path,) in updates[:9]] == [2, 2, 2, 0, 2, 0, 0, 0, 1]
    fair = ResolutionSampler(FairPathSampler(TINY, 0), SIZES, 0)
    assert all(len({path.resolution for path in fair(i)}) == 1 for i in range(20))


def test_sandwich_has_the_largest_and_the_smallest(configs: Configs) -> None:
    cfg = configs("faster", *KEYS, *SANDWICH)
    sampler = build_path_sampler(cfg, space_of(cfg))
    assert isinstance(sampler, ResolutionSampler)
    assert isinstance(sampler.paths, SandwichPathSampler)
    drawn = set()
    for iteration in range(60):
        dearest, cheapest, *others = sampler(iteration)
        assert dearest == sampler.paths.dearest.at(64) and cheapest.resolution == 32
        drawn.add(tuple(path.resolution for path in others))
        assert sampler.sizes(iteration) == tuple(p.resolution for p in sampler(iteration))
    assert len(drawn) == 9  # of two random paths each
    cfg.SUPERNET.DISTILL_WEIGHT = 0.5
    with pytest.raises(InputError, match=r"DISTILL_WEIGHT 0.5: with SEARCH.RESOLUTIONS .* 0"):
        build_path_sampler(cfg, space_of(cfg))


@pytest.mark.parametrize("opts", [(), SANDWICH], ids=["uniform", "sandwich"])
def test_a_step_is_that_of_plain_batches(opts: tuple[Any, ...], configs: Configs) -> None:
    """The slow way: each path's batch out of the loader of a config at its resolution."""
    cfg = configs("faster", *KEYS, *opts)
    register_datasets(cfg)
    states, _ = updated_both_ways(cfg, SIZES, 3)
    assert same(*states)


def test_resumed_training_is_the_uninterrupted_one(configs: Configs, tmp_path: Path) -> None:
    whole = configs("faster", *KEYS)
    torn = whole.clone()
    whole.OUTPUT_DIR, torn.OUTPUT_DIR = str(tmp_path / "whole"), str(tmp_path / "torn")
    prepare(whole, arguments())
    train(whole, resume=False)
    prepare(torn, arguments())
    trainer = Trainer(torn)
    trainer.register_hooks([Interrupt(5)])
    trainer.resume_or_load(resume=True)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    train(torn, resume=True)
    assert same(final(torn), final(whole))


# -- evaluation ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "gib"), [("faster", 0.1), ("retinanet", 0.0)])
def test_a_population_is_scored_as_one_by_one_at_their_resolutions(
    kind: str, gib: float, configs: Configs
) -> None:
    opts = ("SEARCH.CHUNK", 2, "SEARCH.IMAGE_CACHE_GIB", gib)
    cfg = configs.search(*KEYS, *opts, kind=kind)
    register_datasets(cfg)
    model = load_supernet(cfg)
    # Two that differ in the last layer, each at all resolutions, and another one.
    first = TINY.path([0, 1, 2, 3, 0])
    paths = [TINY.path([0, 1, 2, 3, op]).at(size) for size in SIZES for op in (0, 1)]
    paths += [TINY.uniform_path("5x5").at(48)]
    with resized_evaluator(resized_settings(cfg), model) as evaluator:
        found = dict(evaluator.evaluate_many(paths[::-1]))
        statistics = evaluator.statistics(paths)
        with pytest.raises(PathError, match=r"expected a resolution of \[32, 48, 64\]"):
            list(evaluator.evaluate_many([first]))
    caches = {f"images_{size}.cache" for size in SIZES if gib}
    folder = Path(cfg.OUTPUT_DIR)
    assert {p.name for p in folder.glob("*.cache")} == caches
    assert found.keys() == set(paths)
    for path in paths:
        alone = sequential_evaluator(
            EvaluationSettings.from_config(at_resolution(cfg, path.resolution)), model
        )
        expected = alone.evaluate(path.at(None))
        assert found[path].fitness == expected.fitness
        assert str(dict(found[path].metrics)) == str(dict(expected.metrics))
        moments = alone.statistics(path.at(None)).moments
        assert all(
            torch.equal(moments[name].mean, own.mean)
            for name, own in statistics[path].moments.items()
        )
    assert len({found[first.at(size)].fitness for size in SIZES}) == 3


# -- searches -----------------------------------------------------------------------------------


def run(cfg: CfgNode, *, resume: bool = False) -> History:
    prepare(cfg, arguments())
    search(cfg, resume=resume)
    return History.read(cfg.OUTPUT_DIR)


def evaluated(file: Path, *opts: str) -> dict[str, float]:
    """Results of train_net.py --eval-only."""
    args = arguments(str(file), *opts)
    args.eval_only = True
    return dict(flatten_results_dict(train_main(args)))


def stop_after(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupts the evaluation after ``count`` candidates."""
    evaluate_many, seen = PopulationEvaluator.evaluate_many, []

    def stopping(self: PopulationEvaluator, paths: Any) -> Any:
        for found in evaluate_many(self, paths):
            yield found
            seen.append(found)
            if len(seen) == count:
                raise KeyboardInterrupt

    monkeypatch.setattr(PopulationEvaluator, "evaluate_many", stopping)


def test_a_search_resumes_and_its_networks_have_their_fitness(
    configs: Configs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    retrain = configs("faster", "INPUT.MIN_SIZE_TRAIN", (96,), "INPUT.MIN_SIZE_TEST", 96)
    retrain.MODEL.BACKBONE.NAME = "build_detnas_fpn_backbone"
    keys = (*KEYS, "SEARCH.OBJECTIVES", ["fitness", "macs"], "SEARCH.CHUNK", 2)
    cfg = configs.search(*keys, "SEARCH.GENERATIONS", 2)
    torn = cfg.clone()
    cfg.OUTPUT_DIR, torn.OUTPUT_DIR = str(tmp_path / "whole"), str(tmp_path / "torn")
    whole = run(cfg)
    assert len(whole) == 8 and len({record.resolution for record in whole}) > 1
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(5, patch)
        run(torn.clone())
    assert 4 <= len(History.read(torn.OUTPUT_DIR)) <= 5
    assert run(torn, resume=True).identity() == whole.identity()
    assert not list(Path(cfg.OUTPUT_DIR).glob("images*"))
    with pytest.raises(FingerprintMismatch, match="resolutions"):
        run(configs.search(*keys, "OUTPUT_DIR", torn.OUTPUT_DIR, *KEYS[:1], [32, 48]), resume=True)

    folder = Path(cfg.OUTPUT_DIR)
    members = sorted(folder.glob("front/*.yaml"))
    by_path = {record.path: record for record in whole}
    assert members
    for file in (folder / "best_inherited.yaml", *members):
        network = load_config(str(file))
        size, path = network.INPUT.MIN_SIZE_TEST, network.MODEL.DETNAS.PATH
        record = by_path[f"{path} @{size}"]
        assert (size, round(size * 64 / 48)) == network.INPUT.MIN_SIZE_TRAIN
        assert network.SEARCH.RESOLUTIONS == []
        assert f"for images of shortest side {size}." in file.read_text()
        results = evaluated(file)
        assert results["bbox/AP"] == pytest.approx(record.fitness, abs=1e-6)
    best = load_config(str(folder / "best.yaml"))
    assert f"{best.MODEL.DETNAS.PATH} @{best.INPUT.MIN_SIZE_TEST}" in by_path

    # What the search did not see is scored as it would have been.
    config = write_config(cfg, folder / "config.yaml")
    assert Path(config).exists()
    capsys.readouterr()
    diagnose(["resolutions", str(folder), "--evaluate", "--json", str(tmp_path / "r.json")])
    told = capsys.readouterr().out
    assert "at 32" in told and " - " not in told
    with resized_evaluator(resized_settings(cfg), load_supernet(cfg)) as evaluator:
        line = next(text for text in told.splitlines() if text.split()[0] == str(SIZES[0]))
        path = TINY.path(line.split("  ")[-1])
        found = dict(evaluator.evaluate_many([path.at(size) for size in SIZES]))
    assert [f"{found[path.at(s)].fitness:.3f}" for s in SIZES] == line.split()[3:6]


def test_the_config_to_train_follows_the_resolution(configs: Configs, tmp_path: Path) -> None:
    retrain = configs("faster")
    retrain.MODEL.BACKBONE.NAME = "build_detnas_fpn_backbone"
    retrain.INPUT.MIN_SIZE_TEST, retrain.INPUT.MAX_SIZE_TEST = 96, 192
    retrain.INPUT.MIN_SIZE_TRAIN, retrain.INPUT.MAX_SIZE_TRAIN = (96, 120), 192
    write_config(retrain, tmp_path / "retrain.yaml")
    cfg = configs.search(*KEYS, "SEARCH.RETRAIN_CONFIG", "retrain.yaml")
    plan = SearchPlan.from_config(cfg, str(tmp_path))
    path = TINY.uniform_path("3x3")
    images = plan.completed(str(path.at(64))).INPUT
    assert (images.MIN_SIZE_TEST, images.MAX_SIZE_TEST) == (64, 128)
    assert (images.MIN_SIZE_TRAIN, images.MAX_SIZE_TRAIN) == ((64, 80), 128)
    inherited = plan.inherited(str(path.at(64)), "w.pth")
    assert inherited.INPUT.MIN_SIZE_TEST == 64 and str(path) == inherited.MODEL.DETNAS.PATH
    assert plan.completed(str(path)).INPUT == retrain.INPUT
    retrain.INPUT.MIN_SIZE_TEST = 0
    write_config(retrain, tmp_path / "retrain.yaml")
    with pytest.raises(InputError, match=r"retrain.yaml .*: INPUT.MIN_SIZE_TEST is 0"):
        SearchPlan.from_config(cfg, str(tmp_path))


def test_a_path_in_a_config_has_no_resolution(configs: Configs) -> None:
    cfg = configs("faster", "MODEL.BACKBONE.NAME", "build_detnas_fpn_backbone")
    cfg.MODEL.DETNAS.PATH = f"{TINY.first_path()} @64"
    with pytest.raises(PathError, match="expected the operations alone; INPUT.MIN_SIZE_TEST"):
        build_model(cfg)


def table(size: int, factor: float = 1.0) -> LatencyTable:
    rows = tuple(tuple(factor * (op + 1) for op in range(4)) for _ in TINY.layers)
    return LatencyTable(0.0, rows, TINY.name, (size, size), 1, "cpu")


def test_latency_has_a_table_for_each_resolution(configs: Configs, tmp_path: Path) -> None:
    for size in SIZES:
        (tmp_path / f"ms_{size}.json").write_text(table(size, size / 10).to_json())
    limit = ("SEARCH.MAX_LATENCY_MS", 30.0, "SEARCH.LATENCY_TABLE")
    cfg = configs.search(*KEYS, *limit, str(tmp_path / "ms_{resolution}.json"))
    proposals = Proposals.from_config(cfg).measured()
    candidates = Candidates(TINY, SIZES)
    path = TINY.first_path()
    costs = [proposals.constraint.costs_of(candidates.genes(path.at(s))) for s in SIZES]
    assert [cost["latency_ms"] for cost in costs] == pytest.approx([16.0, 24.0, 32.0])
    assert [proposals.constraint(candidates.genes(path.at(s))) for s in SIZES] == [1, 1, 0]
    with pytest.raises(InputError, match=r"is one table; .* a name with \{resolution\} in it"):
        Proposals.from_config(configs.search(*KEYS, *limit, str(tmp_path / "ms_48.json")))
    (tmp_path / "ms_64.json").write_text(table(48).to_json())
    with pytest.raises(InputError, match="ms_48.json was measured on images as large as"):
        Proposals.from_config(cfg)
    (tmp_path / "ms_64.json").unlink()
    with pytest.raises(InputError, match="ms_64.json' does not exist"):
        Proposals.from_config(cfg)


def test_latency_is_measured_at_each_resolution(
    configs: Configs, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []

    def measure(space: Any, *, input_size: tuple[int, int], **options: Any) -> LatencyTable:
        sizes.append(input_size)
        return table(input_size[0])

    monkeypatch.setattr("detnas_d2.engine.proposals.measure_latency", measure)
    keys = (*KEYS, "SEARCH.OBJECTIVES", ["fitness", "latency_ms"])
    cfg = configs.search(*keys, "SEARCH.MAX_MACS_INPUT", [48, 60])
    os.makedirs(cfg.OUTPUT_DIR)
    proposals = Proposals.from_config(cfg).measured()
    assert sizes == [(32, 40), (48, 60), (64, 80)]
    names = {path.name for path in Path(cfg.OUTPUT_DIR).glob("latency*")}
    assert names == {f"latency_{size}.json" for size in SIZES}
    assert proposals.objectives is not None
    proposals.measured()
    assert len(sizes) == 3


def test_work_grows_with_the_pixels(configs: Configs) -> None:
    for kind, plain in (("train", configs("faster")), ("search", configs.search())):
        resized = plain.clone()
        resized.SEARCH.RESOLUTIONS = [32, 48]
        assert work_of(resized, kind) == pytest.approx(
            work_of(plain, kind) * (1 + (2 / 3) ** 2) / 2
        )
