"""Hit-Detectors by sampling at several resolutions, in one width of the neck and in several."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from detnas_d2.analysis.complexity import analyze
from detnas_d2.config.resolutions import at_resolution, cost_input
from detnas_d2.config.tools import load_config
from detnas_d2.drawing.architectures import network_of
from detnas_d2.engine.architectures import architectures_of, network_config, searched_space
from detnas_d2.engine.checks.models import Models
from detnas_d2.engine.checks.run import check_run
from detnas_d2.engine.evolution_search import load_supernet
from detnas_d2.engine.gradient_search import gradient_search, screen
from detnas_d2.engine.outlook import work_of
from detnas_d2.engine.proposals import Proposals
from detnas_d2.engine.trainers.path_sampling import SandwichPathSampler
from detnas_d2.evaluation.build import resized_evaluator, sequential_evaluator
from detnas_d2.evaluation.settings import EvaluationSettings, resized_settings
from detnas_d2.search_space import LatencyTable
from detnas_d2.search_space.space import space_digest
from detnas_d2.utils.errors import InputError
from tests.engine.hit_runs import scene_config
from tests.engine.sizes_apart import updated_both_ways
from tests.engine.test_inherited import evaluated
from tests.engine.test_neck_channels import KEYS, SANDWICH, scenes, some_paths
from tests.engine.test_resolutions import run
from tests.engine.test_trainer import same

SIZES = (32, 64)
RESOLUTIONS = ("SEARCH.RESOLUTIONS", list(SIZES))
PLAIN = (*KEYS[2:3], [])
WIDTHS = pytest.mark.parametrize("opts", [(), PLAIN], ids=["elastic", "plain"])


@WIDTHS
def test_costs_are_those_of_the_networks_at_their_sizes(
    opts: tuple[Any, ...], tmp_path: Path
) -> None:
    sizes = ("SEARCH.MAX_MACS_INPUT", [100, 140], "HIT_SEARCH.COST_PROPOSALS", 7)
    sizes = (*sizes, "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 3)
    cfg = scenes(tmp_path, "search", *RESOLUTIONS, *sizes, *opts)
    proposals, rest = Proposals.from_config(cfg), set()
    candidates, constraint = proposals.candidates, proposals.constraint
    assert cost_input(cfg, 32) == (50, 70)  # padded as the networks pad it
    paths = some_paths(candidates.space, 1) if not opts else [candidates.space.uniform_path("skip")]
    paths += [] if not opts else [candidates.space.uniform_path("sep_k3_d1")]
    for path in paths:
        for size in SIZES:
            found = path.at(size)
            network = network_config(cfg, found)
            assert size == network.INPUT.MIN_SIZE_TEST and network.SEARCH.RESOLUTIONS == []
            own = analyze(network, input_size=cost_input(cfg, size), proposals=7)["total"]
            costs = constraint.costs_of(candidates.genes(found))
            assert proposals.costs_at(size).cost(path.choices).macs == costs["macs"]
            rest.add((size, own.macs - costs["macs"], own.params - costs["params"]))
    # What is not searched is in the costs of whole detectors alone.
    assert len(rest) == 2 and ({more[1:] for more in rest} == {(0, 0)}) == (not opts)
    for table in (constraint.tables["macs"], constraint.tables["params"]):
        assert table.total(table.cheapest_choices()) == table.cheapest() < table.most_expensive()
        assert table.total(table.most_expensive_choices()) == table.most_expensive()
    # Both widths and both sizes are among the genes.
    ends = [constraint.tables["macs"].cheapest_choices()]
    ends.append(constraint.tables["macs"].most_expensive_choices())
    assert [candidates.path(genes).resolution for genes in ends] == [32, 64]
    text = network_of("", paths[0].at(32)).cost
    assert text.endswith("for images of shortest side 32")


def test_memory_and_file_size_of_the_searched_layers(tmp_path: Path) -> None:
    keys = ("SEARCH.OBJECTIVES", ["fitness", "memory_bytes"], "HIT_SEARCH.COST_PROPOSALS", 7)
    proposals = Proposals.from_config(scenes(tmp_path, "search", *RESOLUTIONS, *PLAIN, *keys))
    candidates, costs_of = proposals.candidates, proposals.constraint.costs_of
    for seed in range(4):
        path = candidates.space.random_path(random.Random(seed))
        small, large = (costs_of(candidates.genes(path.at(size))) for size in SIZES)
        assert 0 < small["memory_bytes"] <= large["memory_bytes"]
        # Two numbers of each BatchNorm are one bias.
        assert 2 * small["params"] < small["file_bytes"] == large["file_bytes"]
        assert large["file_bytes"] <= 4 * small["params"]
    table = proposals.constraint.tables["memory_bytes"]
    assert table.total(table.cheapest_choices()) == table.cheapest() < table.most_expensive()


def test_a_step_is_that_of_plain_batches(tmp_path: Path) -> None:
    """The slow way: each path's batch out of the loader of a config at its resolution."""
    cfg = scenes(tmp_path, "search", *RESOLUTIONS, *SANDWICH)
    states, sampler = updated_both_ways(cfg, SIZES, 2)
    assert same(*states) and isinstance(sampler.paths, SandwichPathSampler)
    dearest, cheapest, _ = sampler(0)
    assert (dearest.resolution, cheapest.resolution) == (64, 32)
    plain_cfg = scenes(tmp_path, "search", *SANDWICH)
    assert work_of(cfg, "train") == pytest.approx(work_of(plain_cfg, "train") * (1 + 0.25) / 2)


@WIDTHS
def test_a_population_is_scored_as_one_by_one_at_their_resolutions(
    opts: tuple[Any, ...], tmp_path: Path
) -> None:
    cfg = scenes(tmp_path, "search", *RESOLUTIONS, *opts)
    model, space = load_supernet(cfg), searched_space(cfg)
    some = some_paths(space, 4) if not opts else [space.uniform_path("conv_k1")]
    paths = [path.at(size) for path in some for size in SIZES]
    with resized_evaluator(resized_settings(cfg), model) as evaluator:
        found = dict(evaluator.evaluate_many(paths))
        statistics = evaluator.statistics(paths)
    for path in paths:
        settings = EvaluationSettings.from_config(at_resolution(cfg, path.resolution))
        alone = sequential_evaluator(settings, model)
        expected = alone.evaluate(path.at(None))
        assert found[path].fitness == expected.fitness
        assert str(dict(found[path].metrics)) == str(dict(expected.metrics))
        for name, moments in alone.statistics(path.at(None)).moments.items():
            assert torch.equal(moments.mean, statistics[path].moments[name].mean), name


def test_networks_of_a_search_have_their_images_and_fitness(tmp_path: Path) -> None:
    few = ("SEARCH.POPULATION", 4, "SEARCH.GENERATIONS", 1)
    cfg = scenes(tmp_path, "search", *RESOLUTIONS, "SEARCH.OBJECTIVES", ["fitness", "macs"], *few)
    records, space = run(cfg.clone()), searched_space(cfg)
    assert {record.resolution for record in records} == set(SIZES)
    by_path = {record.path: record for record in records}
    folder = Path(cfg.OUTPUT_DIR)
    for file in (folder / "best_inherited.yaml", *sorted(folder.glob("front/*.yaml"))[-1:]):
        network = load_config(str(file))
        (genotype,), size = architectures_of(network), network.INPUT.MIN_SIZE_TEST
        (record,) = [
            known
            for path, known in by_path.items()
            if known.resolution == size and space.genotype(space.path(path)) == genotype
        ]
        assert (size,) == network.INPUT.MIN_SIZE_TRAIN and network.SEARCH.RESOLUTIONS == []
        assert evaluated(str(file))["bbox/AP"] == pytest.approx(record.fitness, abs=1e-6)


def test_latency_has_a_table_for_each_resolution(tmp_path: Path) -> None:
    limit = ("SEARCH.MAX_LATENCY_MS", 40.0, "SEARCH.LATENCY_TABLE")
    file = tmp_path / "ms_{resolution}.json"
    cfg = scenes(tmp_path, "search", *RESOLUTIONS, *PLAIN, *limit, str(file))
    space = searched_space(cfg)
    for size in SIZES:
        rows = tuple(tuple(size / 20 * (op + 1) for op in range(3)) for _ in space.layers)
        told = LatencyTable(0.0, rows, space.name, (size, size), 1, "cpu", space_digest(space))
        Path(str(file).format(resolution=size)).write_text(told.to_json())
    proposals = Proposals.from_config(cfg).measured()
    path = space.first_path()
    costs = [
        proposals.constraint.costs_of(proposals.candidates.genes(path.at(size)))["latency_ms"]
        for size in SIZES
    ]
    layers = len(path)
    assert costs == pytest.approx([1.6 * layers, 3.2 * layers])


def test_searches_by_gradient_have_images_of_one_size(tmp_path: Path) -> None:
    for name, start in (("search.yaml", gradient_search), ("screen.yaml", screen)):
        cfg = scene_config(tmp_path, name, "out", *RESOLUTIONS)
        with pytest.raises(InputError, match=r"^SEARCH.RESOLUTIONS \[32, 64\]: .* of one size"):
            start(cfg, resume=False)
    cfg = scene_config(tmp_path, "search.yaml", "out", *RESOLUTIONS)
    with pytest.raises(InputError, match="expected .*, or MODEL.HIT.STRATEGY sampling"):
        check_run(cfg, "gradient", Models(), config_dir="", data=False)  # before it starts
