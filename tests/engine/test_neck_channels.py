"""Supernets and searches with several numbers of channels of neck and head, head depth included."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from detnas_d2.analysis.complexity import analyze
from detnas_d2.config.tools import base_config, load_config
from detnas_d2.drawing import draw_genotype, draw_path
from detnas_d2.engine import Trainer, latency_table, train
from detnas_d2.engine.architectures import (
    architectures_of,
    network_config,
    searched_space,
    space_costs,
)
from detnas_d2.engine.checks.models import Models
from detnas_d2.engine.checks.run import check_run
from detnas_d2.engine.evolution_search import load_supernet
from detnas_d2.engine.latency import Latency, Picture
from detnas_d2.engine.latency_table import Target, detector_table
from detnas_d2.engine.proposals import Proposals, read_latency
from detnas_d2.engine.trainers.path_sampling import SandwichPathSampler, build_path_sampler
from detnas_d2.evaluation.build import candidate_evaluator, sequential_evaluator
from detnas_d2.evaluation.settings import EvaluationSettings
from detnas_d2.programs.latency_table import text as table_text
from detnas_d2.programs.networks import read_networks
from detnas_d2.search import FingerprintMismatch, History
from detnas_d2.search_space import LatencyTable
from detnas_d2.search_space import Path as SpacePath
from detnas_d2.search_space.elastic_latency import ElasticLatency
from detnas_d2.search_space.elastic_space import ElasticHitSpace
from detnas_d2.search_space.space import space_digest
from detnas_d2.utils.errors import InputError
from tests.engine.hit_runs import scene_config
from tests.engine.test_inherited import evaluated
from tests.engine.test_resolutions import run, stop_after
from tests.engine.test_trainer import Interrupt, final, same
from tests.modeling.hit.test_narrow import CHANNELS, elastic

KEYS = ("MODEL.HIT.STRATEGY", "sampling", "MODEL.HIT.NECK_CHANNELS", [12, 32])
SANDWICH = (
    *("SUPERNET.PATH_SAMPLING", "sandwich", "SUPERNET.DISTILL_WEIGHT", 0.0),
    *("SUPERNET.CHECK.PATHS", 0, "SUPERNET.SANDWICH_PATHS", 1),
)


def scenes(root: Path, output: str, *opts: object) -> CfgNode:
    """A search of six candidates on built-in scenes."""
    small = ("SEARCH.MAX_MACS_INPUT", [64, 64], "SEARCH.POPULATION", 3, "SEARCH.GENERATIONS", 2)
    images = ("SEARCH.CALIBRATION.IMAGES", 4, "SEARCH.CALIBRATION.BATCH_SIZE", 2)
    scores = ("SEARCH.VAL", "digits_scenes_train@search_val", "SEARCH.SCORING_WORKERS", 0)
    everything = ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "SEARCH.CHUNK", 2)
    weights = ("MODEL.WEIGHTS", str(root / "supernet.pth"), "HIT_SEARCH.ARCH_START_ITER", -1)
    ours = (*small, *images, *scores, *everything, *weights)
    cfg = scene_config(root, "search.yaml", output, *KEYS, *ours, *opts)
    if cfg.MODEL.WEIGHTS and not os.path.exists(cfg.MODEL.WEIGHTS):
        torch.manual_seed(0)
        torch.save({"model": build_model(cfg).state_dict()}, cfg.MODEL.WEIGHTS)
    return cfg


def with_gene(space: ElasticHitSpace, path: SpacePath, number: int) -> list[int]:
    """The choices of a path with others of the channels."""
    genes = list(path.choices)
    genes[space.gene] = number
    return genes


def some_paths(space: ElasticHitSpace, seed: int) -> list[SpacePath]:
    """A random path with each number of channels."""
    rng, count = random.Random(seed), len(space.neck_channels)
    return [space.path(with_gene(space, space.random_path(rng), n)) for n in range(count)]


# -- costs and training -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["faster", "retinanet"])
def test_costs_are_those_of_the_whole_networks(kind: str) -> None:
    cfg = elastic(kind)
    cfg.SEARCH.MAX_MACS_INPUT = [100, 140]  # padded to what the neck divides by
    cfg.HIT_SEARCH.COST_PROPOSALS = 7
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 5
    space = searched_space(cfg)
    costs, previous = space_costs(cfg, space), 0
    for path in some_paths(space, 1):
        network = network_config(cfg, path)
        assert [space.channels(path)] == network.MODEL.HIT.NECK_CHANNELS
        found = analyze(network, input_size=(100, 140), proposals=7)["total"]
        assert costs.cost(path) == found
        assert costs.macs.total(path.choices) == found.macs
        parameters = build_model(network).parameters()
        assert costs.params.total(path.choices) == sum(p.numel() for p in parameters)
        (same_path,) = architectures_of(network)
        assert same_path == space.genotype(path)
        narrower = space.path(with_gene(space, path, previous))
        assert costs.cost(narrower).params <= found.params
        previous = path.choices[space.gene]
    assert space.counted == "the whole detector"


def test_sandwich_has_the_widest_and_the_narrowest() -> None:
    cfg = elastic()
    cfg.merge_from_list(list(SANDWICH))
    space = searched_space(cfg)
    sampler = build_path_sampler(cfg, space)
    assert isinstance(sampler, SandwichPathSampler)
    costs, drawn = space_costs(cfg, space).macs, set()
    for iteration in range(40):
        most, least, other = sampler(iteration)
        assert (space.channels(most), space.channels(least)) == (CHANNELS[-1], CHANNELS[0])
        assert costs.total(most.choices) == costs.most_expensive()
        assert costs.total(least.choices) == costs.cheapest()
        drawn.add(space.channels(other))
    assert drawn == set(CHANNELS)
    # The head may be as deep as it has layers that are not skipped: none at the least.
    assert space.genotype(sampler.cheapest).head == ("skip", "skip")
    # A space in which the channels alone are elastic will do too.
    for part in ("BACKBONE", "NECK", "HEAD"):
        cfg.MODEL.HIT.OPS[part] = ["conv_k1", "sep_k3_d1"]
    build_path_sampler(cfg, searched_space(cfg))
    cfg.SUPERNET.DISTILL_WEIGHT = 0.5
    with pytest.raises(InputError, match=r"WEIGHT 0.5: with MODEL.HIT.NECK_CHANNELS .* 0"):
        build_path_sampler(cfg, space)


def test_resumed_training_is_the_uninterrupted_one(tmp_path: Path) -> None:
    opts = (*SANDWICH, "SOLVER.MAX_ITER", 3, "SOLVER.CHECKPOINT_PERIOD", 1, "MODEL.WEIGHTS", "")
    opts = (*opts, "DATASETS.TEST", ())
    whole, torn = (scenes(tmp_path, name, *opts) for name in ("whole", "torn"))
    torch.manual_seed(0)
    train(whole, resume=False)
    torch.manual_seed(0)
    trainer = Trainer(torn)
    trainer.register_hooks([Interrupt(2)])
    trainer.resume_or_load(resume=True)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    train(torn, resume=True)
    assert same(final(torn), final(whole))


# -- searches -----------------------------------------------------------------------------------


def test_a_population_is_scored_as_one_by_one(tmp_path: Path) -> None:
    cfg = scenes(tmp_path, "search")
    model, space = load_supernet(cfg), searched_space(cfg)
    first, second = some_paths(space, 4)
    # Two differ in the channels alone.
    paths = [second, first, space.path(with_gene(space, first, 1))]
    settings = EvaluationSettings.from_config(cfg)
    alone = sequential_evaluator(settings, model)
    with candidate_evaluator(settings, model) as evaluator:
        found = dict(evaluator.evaluate_many(paths))
        statistics = evaluator.statistics(paths)
    for path in paths:
        expected = alone.evaluate(path)
        assert found[path].fitness == expected.fitness
        assert str(dict(found[path].metrics)) == str(dict(expected.metrics))
        for name, moments in alone.statistics(path).moments.items():
            assert torch.equal(moments.mean, statistics[path].moments[name].mean), name
    # Searches that were begun before there was the key go on.
    assert "HIT.NECK_CHANNELS" in settings.described["model"]
    plain = EvaluationSettings.from_config(scenes(tmp_path, "search", KEYS[2], []))
    assert "HIT.NECK_CHANNELS" not in plain.described["model"]


def test_a_search_resumes_and_its_networks_have_their_fitness(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objectives = ("SEARCH.OBJECTIVES", ["fitness", "macs"])
    cfg, torn = (scenes(tmp_path, name, *objectives) for name in ("whole", "torn"))
    check_run(cfg, "search", Models(), config_dir="")
    whole, space = run(cfg.clone()), searched_space(cfg)
    assert len(whole) == 6
    assert {space.channels(space.path(record.path)) for record in whole} == {12, 32}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(3, patch)
        run(torn.clone())
    assert 2 <= len(History.read(torn.OUTPUT_DIR)) <= 3
    assert run(torn.clone(), resume=True).identity() == whole.identity()
    with pytest.raises(FingerprintMismatch, match="space"):
        run(scenes(tmp_path, "torn", *objectives, *KEYS[2:3], [20, 32]), resume=True)

    folder, by_path = Path(cfg.OUTPUT_DIR), {record.path: record for record in whole}
    members = sorted(folder.glob("front/*.yaml"))
    assert members
    for file in (folder / "best_inherited.yaml", members[0]):
        network = load_config(str(file))
        (genotype,) = architectures_of(network)
        record = next(r for r in whole if space.genotype(space.path(r.path)) == genotype)
        assert by_path[record.path] is record
        assert [genotype.neck_channels] == network.MODEL.HIT.NECK_CHANNELS
        assert network.MODEL.HIT.SEARCHABLE_PARTS == []
        assert "parameters of the whole detector." in file.read_text()
        assert evaluated(str(file))["bbox/AP"] == pytest.approx(record.fitness, abs=1e-6)
    best = load_config(str(folder / "best.yaml"))
    check_run(best, "train", Models(), config_dir="")
    # The supernet's checkpoint itself starts it, too.
    best = load_config(str(folder / "best.yaml"), ["MODEL.WEIGHTS", cfg.MODEL.WEIGHTS])
    check_run(best, "train", Models(), config_dir="")
    # It is drawn, from its config and as a text.
    drawn = read_networks(f"found={folder}", None)[0].architecture
    assert f"neck and head of {drawn.neck_channels} channels" in draw_genotype(drawn)
    (named,) = read_networks(str(drawn), cfg)
    assert named.architecture == drawn
    path = space.path(members and whole.best()[0].path)
    assert draw_path(path, "t") == draw_genotype(space.genotype(path), "t")


def test_costs_need_the_config_of_the_detector(tmp_path: Path) -> None:
    """A search of a model without one (``detnas_d2.engine.library``) cannot count."""
    space = searched_space(scenes(tmp_path, "search"))
    with pytest.raises(InputError, match=r"whole detectors; .* MODEL.HIT.NECK_CHANNELS \[12, 32\]"):
        Proposals.from_config(base_config(), space)


def test_footprints_are_of_one_number_of_channels(tmp_path: Path) -> None:
    cfg = scenes(tmp_path, "search", "SEARCH.OBJECTIVES", ["fitness", "file_bytes"])
    with pytest.raises(InputError, match="^SEARCH.OBJECTIVES: memory_bytes and file_bytes are of"):
        Proposals.from_config(cfg)


# -- latency ------------------------------------------------------------------------------------


def test_the_latency_table_has_a_line_for_each_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a made-up machine: a millisecond for each channel, blocks that count twice."""
    cfg = scenes(tmp_path, "search", "SEARCH.MAX_LATENCY_MS", 60.0)
    space = searched_space(cfg)

    def blocks(own: object, **options: object) -> LatencyTable:
        rows = tuple(tuple(0.1 + 0.2 * op for op in range(3)) for _ in own.layers)
        return LatencyTable(0.0, rows, own.name, (64, 64), 1, "cpu", space_digest(own))

    def detector(target: Target, path: SpacePath, *_: object) -> float:
        channels = path.space.network.neck_channels
        network_config(target.cfg, path)
        return channels + 2 * blocks(path.space).total(path.choices)

    def whole(runs: list[float], repeats: int) -> list[Latency]:
        return [Latency(value, 0, 0, 0, 0, 0) for value in runs]

    monkeypatch.setattr(latency_table, "measure_latency", blocks)
    monkeypatch.setattr(latency_table, "latencies", whole)
    monkeypatch.setattr(latency_table, "_run", detector)
    table = detector_table(Target(cfg, Picture.of_config(cfg, size=(64, 64))), fitted=3, checked=5)
    assert isinstance(table, ElasticLatency) and len(table.check["detectors"]) == 6
    assert table.check["tau"] == pytest.approx(1) and table.check["largest_error"] < 1e-9
    for path in some_paths(space, 3):
        ops = blocks(space.widest).total(table.taken_out(path.choices)[1])
        expected = space.channels(path) + 2 * ops
        assert table.total(path.choices) == pytest.approx(expected)
    for row in table.check["detectors"]:
        assert space.path(row["path"]) and row["table"] == pytest.approx(row["measured"])
    file = tmp_path / "latency.json"
    file.write_text(table.to_json())
    assert read_latency(str(file), space) == table
    cfg.defrost()
    cfg.SEARCH.LATENCY_TABLE = str(file)
    proposals = Proposals.from_config(cfg).measured()
    path = some_paths(space, 3)[1]
    told = proposals.constraint.costs_of(proposals.candidates.genes(path))
    assert told["latency_ms"] == table.total(path.choices)
    fits = [
        {"channels": channels, "rest": part.detector["rest"], "slope": part.detector["slope"]}
        for channels, part in zip(table.neck_channels, table.tables, strict=True)
    ]
    result = {
        "table": "t.json",
        "space": table.space,
        "version": "1",
        "cpus": [0],
        "threads": 1,
        "machine": {"processor": "p"},
        "cheapest": 1.0,
        "most_expensive": 2.0,
        **table.tables[-1].detector,
        "check": table.check,
        "neck_channels": fits,
    }
    assert "12.00 and blocks 2.00 times at 12 channels; 32.00 and" in table_text(result)
