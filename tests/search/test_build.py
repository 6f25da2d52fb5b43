"""Searchers and limits from a config."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from detectron2.config import CfgNode

from detnas_d2.config.search_config import add_search_config
from detnas_d2.search.build import (
    build_constraint,
    build_searcher,
    search_fingerprint,
    settings_from_config,
)
from detnas_d2.search.constraints import UnsatisfiableLimit
from detnas_d2.search.evolution import PRESETS, Evolution, EvolutionSettings
from detnas_d2.search.history import History
from detnas_d2.search.random_search import RandomSearch
from detnas_d2.search_space.costs import build_cost_table
from detnas_d2.search_space.space import SPACES

SPACE = SPACES["detnas_small"]


def config(**search):
    cfg = CfgNode()
    add_search_config(cfg)
    for key, value in search.items():
        assert key in cfg.SEARCH
        cfg.SEARCH[key] = value
    return cfg


def test_defaults_are_the_papers():
    assert settings_from_config(config()) == PRESETS["paper"]
    assert settings_from_config(config(PRESET="release")) == PRESETS["release"]


def test_overrides():
    cfg = config(
        POPULATION=10,
        GENERATIONS=3,
        PARENTS=4,
        MUTATION=2,
        CROSSOVER=0,
        RANDOM=1,
        MUTATION_PROB=0.25,
        ATTEMPTS=7,
        PRESET="release",
    )
    assert settings_from_config(cfg) == EvolutionSettings(10, 3, 4, 2, 0, 1, 0.25, "history", 7)


def test_build_evolution():
    constraint = build_constraint(config(MAX_MACS=300_000_000), build_cost_table(SPACE))
    searcher = build_searcher(config(SEED=3, POPULATION=10), SPACE, constraint)
    assert isinstance(searcher, Evolution)
    assert len(searcher.ask()) == 10
    assert all(constraint(choices) for choices in searcher.ask())
    assert searcher.ask() != build_searcher(config(SEED=4, POPULATION=10), SPACE, constraint).ask()


def test_build_random():
    constraint = build_constraint(config(), build_cost_table(SPACE))
    same_budget = build_searcher(config(STRATEGY="random"), SPACE, constraint)
    assert isinstance(same_budget, RandomSearch)
    assert (same_budget.expected, len(same_budget.ask())) == (1000, 50)
    cfg = config(STRATEGY="random", NUM_SAMPLES=7, POPULATION=4)
    assert (build_searcher(cfg, SPACE, constraint).expected) == 7


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({"STRATEGY": "annealing"}, "cfg.SEARCH.STRATEGY is 'annealing'"),
        ({"PRESET": "fast"}, "unknown SEARCH.PRESET 'fast', expected one of"),
        (
            {"POPULATION": 4, "MUTATION": 9},
            r"SEARCH.MUTATION 9 \+ SEARCH.CROSSOVER 2 .* exceeds the population of 4",
        ),
        (
            {"MUTATION_PROB": 0.0},
            "SEARCH.MUTATION 25 with SEARCH.MUTATION_PROB 0.0 changes nothing: expected a positive "
            "probability, or SEARCH.MUTATION 0",
        ),
        ({"MUTATION_PROB": 1.5}, r"SEARCH.MUTATION_PROB must be in \[0, 1\], got 1.5"),
        ({"PARENTS": 1}, "SEARCH.CROSSOVER 25 with SEARCH.PARENTS 1: a child of one parent"),
    ],
)
def test_errors_name_the_config(search, message):
    with pytest.raises(ValueError, match=message):
        build_searcher(config(**search), SPACE, lambda choices: True)


def test_limits_are_checked_before_the_search():
    table = build_cost_table(SPACE)
    with pytest.raises(UnsatisfiableLimit, match="SEARCH.MAX_MACS is 200000000, but the"):
        build_constraint(config(MAX_MACS=200_000_000), table)
    with pytest.raises(ValueError, match="SEARCH.MAX_LATENCY_MS is set, but there is no table"):
        build_constraint(config(MAX_LATENCY_MS=5.0), table)
    latency = SimpleNamespace(base=1.0, entries=[[0.5] * 4] * SPACE.num_layers)
    assert build_constraint(config(MAX_LATENCY_MS=11.0), table, latency)((0,) * 20)


def test_a_limit_that_excludes_nothing_is_told(caplog):
    table = build_cost_table(SPACE)  # 237 to 365 million
    build_constraint(config(MAX_MACS=365_472_575, MIN_MACS=237_222_721), table)
    assert caplog.messages == []
    build_constraint(config(MAX_MACS=365_472_576, MIN_MACS=1), table)
    first, second = caplog.messages
    assert "SEARCH.MAX_MACS 3.65473e+08 excludes nothing: the paths of the space have " in first
    assert "2.37223e+08" in first
    assert "SEARCH.MIN_MACS 1 excludes nothing" in second


def test_fingerprint_survives_the_disk(tmp_path):
    cfg = config(MAX_MACS=300_000_000, POPULATION=5)
    constraint = build_constraint(cfg, build_cost_table(SPACE))

    def fingerprint(seed):
        searcher = build_searcher(config(SEED=seed, POPULATION=5), SPACE, constraint)
        return search_fingerprint(
            space=SPACE,
            searcher=searcher,
            limits=constraint.limits,
            checkpoint_sha256="ab",
            metric="bbox/AP",
        )

    History.open(tmp_path, fingerprint(1), resume=False)
    History.open(tmp_path, fingerprint(1), resume=True)
    with pytest.raises(ValueError, match=r"searcher\.seed: 2 \(here\), 1 \(on disk\)$"):
        History.open(tmp_path, fingerprint(2), resume=True)
    stored = json.loads((tmp_path / "search.json").read_text())["fingerprint"]
    assert stored["limits"]["max_macs"] == 300_000_000
    assert stored["space"]["stage_channels"] == [64, 160, 320, 640]
