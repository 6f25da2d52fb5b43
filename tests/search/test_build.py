"""Searchers and limits from a config."""

from __future__ import annotations

import json

import pytest
from detectron2.config import CfgNode

from detnas_d2.config.search_config import add_search_config
from detnas_d2.search.build import SearcherSettings, limits_from_config, search_fingerprint
from detnas_d2.search.constraints import Constraint, Limits
from detnas_d2.search.evolution import PRESETS, Evolution, EvolutionSettings
from detnas_d2.search.history import History
from detnas_d2.search.nsga2 import NSGA2, NSGA2Settings
from detnas_d2.search.predictor import PredictorSearch, PredictorSettings
from detnas_d2.search.random_search import RandomSearch
from detnas_d2.search.regularized import RegularizedEvolution, RegularizedSettings
from detnas_d2.search_space.costs import build_cost_table
from detnas_d2.search_space.space import SPACES
from detnas_d2.utils.errors import InputError

SPACE = SPACES["detnas_small"]


def config(**search):
    cfg = CfgNode()
    add_search_config(cfg)
    for key, value in search.items():
        node = cfg.SEARCH
        *nodes, name = key.split("__")
        for inner in nodes:
            node = node[inner]
        assert name in node
        node[name] = value
    return cfg


def searcher(feasible=lambda choices: True, **search):
    return SearcherSettings.from_config(config(**search)).build(SPACE.cardinalities, feasible)


def test_defaults_are_the_papers():
    assert SearcherSettings.from_config(config()).evolution == PRESETS["paper"]
    assert SearcherSettings.from_config(config(PRESET="release")).evolution == PRESETS["release"]


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
        SEED=5,
    )
    settings = SearcherSettings.from_config(cfg)
    assert settings.evolution == EvolutionSettings(10, 3, 4, 2, 0, 1, 0.25, "history", 7)
    assert (settings.strategy, settings.samples, settings.seed) == ("evolution", 30, 5)


def test_build_evolution():
    limits = limits_from_config(config(MAX_MACS=300_000_000))
    constraint = Constraint(limits, build_cost_table(SPACE))
    found = searcher(constraint, SEED=3, POPULATION=10)
    assert isinstance(found, Evolution)
    assert len(found.ask()) == 10
    assert all(constraint(choices) for choices in found.ask())
    assert found.ask() != searcher(constraint, SEED=4, POPULATION=10).ask()


def test_build_random():
    same_budget = searcher(STRATEGY="random")
    assert isinstance(same_budget, RandomSearch)
    assert (same_budget.expected, len(same_budget.ask())) == (1000, 50)
    assert searcher(STRATEGY="random", NUM_SAMPLES=7, POPULATION=4).expected == 7


def test_build_regularized():
    """By default the paper's 100 alive and tournaments of 25, or as much in proportion."""
    found = searcher(STRATEGY="regularized")
    assert isinstance(found, RegularizedEvolution)
    assert found.settings == RegularizedSettings(50, 20, alive=100, sample=25)
    small = searcher(STRATEGY="regularized", POPULATION=4, GENERATIONS=3, ATTEMPTS=7)
    assert small.settings == RegularizedSettings(4, 3, alive=8, sample=2, attempts=7)
    own = searcher(STRATEGY="regularized", REGULARIZED__ALIVE=30, REGULARIZED__SAMPLE=5)
    assert (own.settings.alive, own.settings.sample) == (30, 5)


def test_build_predictor():
    found = searcher(STRATEGY="predictor", POPULATION=10, GENERATIONS=3, PARENTS=4, ATTEMPTS=7)
    assert isinstance(found, PredictorSearch)
    assert found.settings == PredictorSettings(10, 3, 4, pool=6, random_share=0.1, attempts=7)
    own = searcher(STRATEGY="predictor", PREDICTOR__POOL=9, PREDICTOR__RANDOM_SHARE=0.5)
    assert (own.settings.pool, own.settings.random_share) == (9, 0.5)
    assert own.describe() == {
        "strategy": "predictor",
        "seed": 0,
        "settings": {
            "population": 50,
            "generations": 20,
            "parents": 10,
            "pool": 9,
            "random_share": 0.5,
            "attempts": 1000,
        },
    }


def test_build_nsga2():
    """The numbers of the evolution, with costs instead of PARENTS."""
    constraint = Constraint(Limits(max_macs=300_000_000), build_cost_table(SPACE))
    objectives = ["fitness", "macs", "params"]
    found = searcher(constraint, OBJECTIVES=objectives, POPULATION=10, PRESET="release", SEED=3)
    assert isinstance(found, NSGA2)
    assert found.settings == NSGA2Settings(10, 20, 4, 4, 2, 0.1, tuple(objectives))
    assert all(constraint(choices) for choices in found.ask())
    choices = found.ask()[0]
    costs = constraint.costs_of(choices)
    assert found._costs_of(choices) == (costs["macs"], costs["params"])
    baseline = searcher(constraint, STRATEGY="random", OBJECTIVES=objectives)
    assert isinstance(baseline, RandomSearch)
    with pytest.raises(TypeError, match="expected a Constraint"):
        searcher(OBJECTIVES=objectives)


def test_one_objective_is_the_search_as_it_was():
    """Histories of before there were objectives go on."""
    assert searcher(OBJECTIVES=("fitness",)).describe() == searcher().describe()
    assert "objectives" not in searcher().describe()["settings"]


@pytest.mark.parametrize(
    ("search", "message"),
    [
        (
            {"OBJECTIVES": ["fitness", "memory"]},
            r"OBJECTIVES is \['fitness', 'memory'\]: expected \['fitness'\], or with it one or two "
            "costs of 'macs', 'params', 'latency_ms'",
        ),
        ({"OBJECTIVES": []}, r"OBJECTIVES is \[\]: expected"),
        ({"OBJECTIVES": ["macs", "fitness"]}, "OBJECTIVES is .*: expected"),
        ({"OBJECTIVES": ["fitness", "macs", "macs"]}, "OBJECTIVES is .*: expected"),
        ({"OBJECTIVES": ["fitness", "macs", "params", "latency_ms"]}, "OBJECTIVES is .*: expected"),
        (
            {"OBJECTIVES": ["fitness", "macs"], "STRATEGY": "predictor"},
            r"STRATEGY 'predictor' has one objective, SEARCH.OBJECTIVES is \['fitness', 'macs'\]: "
            "expected 'evolution', which is NSGA-II then, or 'random'",
        ),
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
        (
            {"STRATEGY": "regularized", "GENERATIONS": 2},
            "SEARCH.REGULARIZED.ALIVE 100 with SEARCH.POPULATION 50 and SEARCH.GENERATIONS 2: all",
        ),
        (
            {"STRATEGY": "regularized", "REGULARIZED__SAMPLE": 101},
            "SEARCH.REGULARIZED.SAMPLE 101 exceeds the 100 candidates alive",
        ),
        (
            {"STRATEGY": "predictor", "PREDICTOR__RANDOM_SHARE": 1.0},
            r"SEARCH.PREDICTOR.RANDOM_SHARE must be in \[0, 1\), got 1.0",
        ),
        ({"POPULATION": 5, "PARENTS": 6}, "PARENTS 6: expected at most the population of 5"),
    ],
)
def test_errors_name_the_config(search, message):
    with pytest.raises(ValueError, match=message):
        searcher(**search)


def test_a_population_larger_than_the_space_is_refused():
    settings = SearcherSettings.from_config(config(POPULATION=9))
    assert len(settings.build((3, 3), lambda choices: True).ask()) == 9
    with pytest.raises(ValueError, match="POPULATION 9: the space has 8 paths"):
        settings.build((2, 4), lambda choices: True)


def test_limits():
    assert limits_from_config(config()) == Limits()
    found = limits_from_config(config(MAX_MACS=3, MIN_MACS=1, MAX_PARAMS=2, MAX_LATENCY_MS=5.0))
    assert found == Limits(max_macs=3, min_macs=1, max_params=2, max_latency_ms=5.0)
    with pytest.raises(InputError, match=r"SEARCH.MIN_MACS 3 exceeds SEARCH.MAX_MACS 2"):
        limits_from_config(config(MAX_MACS=2, MIN_MACS=3))


def test_fingerprint_survives_the_disk(tmp_path):
    limits = limits_from_config(config(MAX_MACS=300_000_000))
    constraint = Constraint(limits, build_cost_table(SPACE))

    def fingerprint(seed):
        return search_fingerprint(
            space=SPACE,
            searcher=searcher(constraint, SEED=seed, POPULATION=5),
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
