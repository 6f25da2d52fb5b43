"""Paths with a resolution: their texts, their genes and their costs."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from detectron2.config import CfgNode
from fvcore.nn import FlopCountAnalysis

from detnas_d2.config.tools import load_config
from detnas_d2.engine.proposals import Proposals
from detnas_d2.layers import get_norm
from detnas_d2.modeling import DecodedBackbone
from detnas_d2.search_space import SPACES, Path, PathError, build_cost_table
from detnas_d2.search_space.candidates import Candidates, ConditionalCosts
from detnas_d2.search_space.footprint import footprints

TINY = SPACES["detnas_tiny"]
SIZES = (96, 128, 161)
CANDIDATES = Candidates(TINY, SIZES)


def config(*opts: object) -> CfgNode:
    """A search of the tiny space for images of the sizes."""
    keys = ("MODEL.DETNAS.SPACE", "detnas_tiny", "SEARCH.RESOLUTIONS", list(SIZES))
    images = ("INPUT.MIN_SIZE_TEST", 128, "SEARCH.MAX_MACS_INPUT", [128, 200])
    return load_config("", [*keys, *images, *opts])


def test_texts_of_paths_with_a_resolution() -> None:
    plain = TINY.random_path(random.Random(0))
    path = plain.at(160)
    assert str(path) == f"{plain} @160" and path != plain and path.at(None) == plain
    assert TINY.path(str(path)) == path == TINY.path(f"{plain}@160")
    assert TINY.path(str(plain)) == plain == Path(TINY, plain.choices)
    assert {path, path.at(128), plain} == {plain, TINY.path(f"{plain} @128"), path}


@pytest.mark.parametrize("end", ["@", "@0", "@-1", "@1.5", "@96 @128", "@ x"])
def test_texts_that_end_with_no_resolution(end: str) -> None:
    with pytest.raises(PathError, match=r"ends with '@.*': expected the shortest side"):
        TINY.path(f"{TINY.uniform_path('3x3')} {end}")


def test_genes() -> None:
    assert CANDIDATES.cardinalities == (4, 4, 4, 4, 4, 3)
    for seed in range(20):
        path = CANDIDATES.random_path(random.Random(seed))
        genes = CANDIDATES.genes(path)
        assert genes == (*path.choices, SIZES.index(path.resolution))
        assert CANDIDATES.path(genes) == path
    drawn = {CANDIDATES.random_path(random.Random(seed)).resolution for seed in range(40)}
    assert drawn == set(SIZES)
    for path in (TINY.first_path(), TINY.first_path().at(100)):
        with pytest.raises(PathError, match=r"expected one of \[96, 128, 161\]"):
            CANDIDATES.genes(path)


def test_without_resolutions_genes_are_choices() -> None:
    plain = Candidates(TINY)
    path = plain.random_path(random.Random(3))
    assert path == TINY.random_path(random.Random(3)) and plain.genes(path) == path.choices
    assert plain.cardinalities == TINY.cardinalities and plain.path(path.choices) == path
    with pytest.raises(PathError):
        plain.genes(path.at(96))


def test_costs_of_a_resolution_are_those_of_fvcore_at_its_size() -> None:
    proposals = Proposals.from_config(config())
    rng = random.Random(1)
    for size, expected in zip(SIZES, ((96, 150), (128, 200), (161, 252)), strict=True):
        assert proposals.costs_at(size) == build_cost_table(TINY, expected)
        path = CANDIDATES.random_path(rng).at(size)
        body = DecodedBackbone(
            path, norm=lambda c: get_norm("BN", c), shuffle_method=2, out_features=["stage4"]
        ).eval()
        count = FlopCountAnalysis(body, torch.zeros(1, 3, *expected))
        count.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        macs = count.by_operator()["conv"]
        told = proposals.constraint.costs_of(CANDIDATES.genes(path))
        assert (told["macs"], told["params"]) == (macs, sum(p.numel() for p in body.parameters()))


def test_memory_of_a_resolution() -> None:
    objectives = ("SEARCH.OBJECTIVES", ["fitness", "memory_bytes", "file_bytes"])
    constraint = Proposals.from_config(config(*objectives)).constraint
    path = CANDIDATES.random_path(random.Random(2))
    for size, expected in zip(SIZES, ((96, 150), (128, 200), (161, 252)), strict=True):
        told = constraint.costs_of(CANDIDATES.genes(path.at(size)))
        tables = footprints(TINY, expected)
        assert told["memory_bytes"] == tables.memory.total(path.choices)
        assert told["file_bytes"] == tables.file.total(path.choices)
    memory = constraint.tables["memory_bytes"]
    assert constraint.range_of("memory_bytes") == (memory.cheapest(), memory.most_expensive())
    assert set(Proposals.from_config(config()).constraint.tables) == {"macs", "params"}


def test_extremes_over_all_candidates() -> None:
    costs = ConditionalCosts(tuple(build_cost_table(TINY, (size, size)) for size in SIZES))
    every = list(itertools.product(*map(range, CANDIDATES.cardinalities)))
    for table in (costs.macs, costs.params):
        totals = [table.total(genes) for genes in every]
        assert (min(totals), max(totals)) == (table.cheapest(), table.most_expensive())


def test_limits_count_at_the_own_resolution() -> None:
    # Between the costs of one path at 96 and at 128.
    path = TINY.uniform_path("5x5")
    small, large = (build_cost_table(TINY, s).cost(path).macs for s in ((96, 150), (128, 200)))
    constraint = Proposals.from_config(config("SEARCH.MAX_MACS", (small + large) // 2)).constraint
    assert [constraint(CANDIDATES.genes(path.at(size))) for size in SIZES] == [True, False, False]
