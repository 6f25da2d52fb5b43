"""Evolution and its ask/tell bookkeeping."""

from __future__ import annotations

import itertools
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detnas_d2.search.evolution import Evolution, EvolutionSettings
from detnas_d2.search.searcher import SearchSpaceExhausted

SMALL = (4,) * 20


def separable(choices):
    """A noise-free sum of per-layer gains: the fitness on which the released code hangs."""
    return sum(((7 * layer + 3 * op) % 11) / 10 for layer, op in enumerate(choices))


def small_settings(**overrides):
    base = {"population": 12, "generations": 6, "attempts": 100}
    return EvolutionSettings.preset("paper", **{**base, **overrides})


def run(searcher, fitness=separable, order=None):
    """All generations as lists of (choices, origin); `order` shuffles the telling."""
    generations = []
    while not searcher.done:
        generations.append(list(zip(searcher.population, searcher.origins, strict=True)))
        asked = searcher.ask()
        if order is not None:
            order.shuffle(asked)
        for choices in asked:
            searcher.tell(choices, fitness(choices))
    return generations


@pytest.mark.parametrize(
    ("preset", "counts"),
    [
        ("paper", {"mutation": 25, "crossover": 25}),
        ("release", {"mutation": 20, "crossover": 20, "random": 10}),
    ],
)
def test_preset_counts(preset, counts):
    # A rough fitness keeps the parents apart, so that no kind of child falls short.
    generations = run(
        Evolution(SMALL, EvolutionSettings.preset(preset), seed=3),
        lambda choices: random.Random(str(choices)).random(),
    )
    assert [len(generation) for generation in generations] == [50] * 20
    assert {origin for _, origin in generations[0]} == {"random"}
    for generation in generations[1:]:
        assert Counter(origin for _, origin in generation) == counts


@pytest.mark.parametrize("preset", ["paper", "release"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ends_on_a_noise_free_separable_fitness(preset, seed):
    searcher = Evolution(SMALL, EvolutionSettings.preset(preset, attempts=200), seed=seed)
    generations = run(searcher)
    evaluated = [choices for generation in generations for choices, _ in generation]
    assert len(evaluated) == len(set(evaluated)) == 1000
    assert searcher.best == (max(evaluated, key=separable), max(map(separable, evaluated)))
    optimum = sum(max((7 * layer + 3 * op) % 11 for op in range(4)) / 10 for layer in range(20))
    first_best = max(separable(choices) for choices, _ in generations[0])
    assert first_best < 0.8 * optimum
    assert searcher.best[1] > 0.97 * optimum


def crosses(child, parents):
    """Can `child` be a crossover of two of `parents`?"""
    return any(
        all(gene in genes for gene, *genes in zip(child, one, other, strict=True))
        for one, other in itertools.combinations(parents, 2)
    )


def changes(child, parents):
    """Genes in which `child` differs from the nearest of `parents`."""
    return min(sum(x != y for x, y in zip(child, p, strict=True)) for p in parents)


def test_children_come_from_the_ten_fittest():
    searcher = Evolution(SMALL, EvolutionSettings.preset("paper"), seed=5)
    first = searcher.ask()
    for choices in first:
        searcher.tell(choices, separable(choices))
    parents = sorted(first, key=separable, reverse=True)[:10]
    for child, origin in zip(searcher.population, searcher.origins, strict=True):
        assert crosses(child, parents) if origin == "crossover" else changes(child, parents) <= 10


@pytest.mark.parametrize("source", ["population", "history"])
def test_parents_of_population_and_of_history(source):
    """Every later generation is worse: only the history still knows the first one's best."""
    searcher = Evolution(SMALL, small_settings(parents_from=source, parents=3), seed=1)
    best_of = []
    for generation in range(2):
        asked = searcher.ask()
        for choices in asked:
            searcher.tell(choices, separable(choices) - 100 * generation)
        best_of.append(sorted(asked, key=separable, reverse=True)[:3])
    crossed = [
        child
        for child, origin in zip(searcher.population, searcher.origins, strict=True)
        if origin == "crossover"
    ]
    assert len(crossed) == 6
    bred_by = [all(crosses(child, parents) for child in crossed) for parents in best_of]
    assert bred_by == [source == "history", source == "population"]


def test_mutation_rate():
    """A gene changes with probability 0.1 * 3/4; children that change nothing are refused."""
    searcher = Evolution(SMALL, EvolutionSettings.preset("paper"), seed=0)
    rng, parent = random.Random(0), (0,) * 20
    children = [searcher._mutate([parent], rng) for _ in range(4000)]
    changed = sum(gene != 0 for child in children for gene in child) / (4000 * 20)
    assert changed == pytest.approx(0.075, abs=0.004)
    assert children.count(parent) / 4000 == pytest.approx(0.925**20, abs=0.03)


def test_no_child_repeats_its_parent():
    """With a tiny probability nearly every mutation is one; random paths take their places."""
    searcher = Evolution(SMALL, small_settings(mutation_prob=1e-9, attempts=5), seed=0)
    generations = run(searcher)
    origins = Counter(origin for generation in generations[1:] for _, origin in generation)
    assert origins["mutation"] == 0
    assert [len(generation) for generation in generations] == [12] * 6


@given(
    cardinalities=st.lists(st.integers(1, 4), min_size=1, max_size=6),
    preset=st.sampled_from(["paper", "release"]),
    population=st.integers(1, 12),
    generations=st.integers(1, 5),
    seed=st.integers(-(2**40), 2**40),
    modulus=st.integers(1, 3),
    failing=st.integers(1, 5),
)
@settings(max_examples=60, deadline=None)
def test_any_search_ends_without_repeats(
    cardinalities, preset, population, generations, seed, modulus, failing
):
    space = set(itertools.product(*(range(n) for n in cardinalities)))
    feasible = {c for c in space if sum(c) % modulus == 0}  # always holds (0, ..., 0)
    chosen = EvolutionSettings.preset(
        preset, population=population, generations=generations, attempts=10
    )

    def fitness(choices):
        return None if sum(choices) % failing == failing - 1 else separable(choices)

    def search(order):
        searcher = Evolution(cardinalities, chosen, seed=seed, feasible=feasible.__contains__)
        return run(searcher, fitness, order), searcher.best

    in_order, best = search(None)
    evaluated = [choices for generation in in_order for choices, _ in generation]
    assert len(evaluated) == len(set(evaluated))
    assert set(evaluated) <= feasible
    assert len(evaluated) == min(len(feasible), population * generations)
    assert search(random.Random(seed)) == (in_order, best)


def test_depends_on_the_seed():
    first, second = (run(Evolution(SMALL, small_settings(), seed=s)) for s in (0, 1))
    assert first != second


_REPLAY = """
from detnas_d2.search.evolution import Evolution, EvolutionSettings as S
s = Evolution((4,) * 20, S.preset('release', population=10, generations=4), seed=7)
while not s.done:
    for c in s.ask():
        print(c)
        s.tell(c, sum(c) % 7)
"""


def test_replays_across_processes(capsys):
    """Hash randomisation and set order must not leak in."""
    exec(_REPLAY, {})
    here = capsys.readouterr().out
    seed = "1" if os.getenv("PYTHONHASHSEED") != "1" else "2"
    there = subprocess.run(
        [sys.executable, "-c", _REPLAY],
        env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[2])},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert here == there
    assert here.count("\n") == 40


def test_ask_is_stable_and_tell_is_checked():
    searcher = Evolution(SMALL, small_settings(), seed=0)
    asked = searcher.ask()
    assert searcher.ask() == asked == list(searcher.population)
    assert searcher.best is None
    searcher.tell(list(asked[3]), 1.0)
    assert searcher.ask() == asked[:3] + asked[4:]
    assert searcher.best == (asked[3], 1.0)
    with pytest.raises(ValueError, match="told already"):
        searcher.tell(asked[3], 2.0)
    with pytest.raises(ValueError, match="not asked for in generation 1"):
        searcher.tell((0,) * 19, 2.0)
    with pytest.raises(ValueError, match="tell None"):
        searcher.tell(asked[0], float("nan"))


def test_failed_candidates_have_no_children():
    searcher = Evolution(SMALL, small_settings(), seed=2)
    asked = searcher.ask()
    for position, choices in enumerate(asked):
        searcher.tell(choices, 1.0 if position == 4 else None)
    # One living parent: crossover has nothing to cross, mutation changes that parent alone.
    for child, origin in zip(searcher.population, searcher.origins, strict=True):
        assert origin in ("mutation", "random")
        if origin == "mutation":
            assert sum(x != y for x, y in zip(child, asked[4], strict=True)) <= 10
    assert searcher.best == (asked[4], 1.0)


def test_a_generation_that_failed_altogether_is_survived():
    searcher = Evolution(SMALL, small_settings(), seed=2)
    for choices in searcher.ask():
        searcher.tell(choices, separable(choices))
    best = searcher.best
    for choices in searcher.ask():
        searcher.tell(choices, None)
    assert searcher.origins.count("mutation") == 6  # bred from the history
    for choices in searcher.ask():
        searcher.tell(choices, None)
    assert searcher.best == best
    assert not searcher.done

    hopeless = Evolution(SMALL, small_settings(), seed=2)
    assert sum(map(len, run(hopeless, lambda choices: None))) == 72
    assert hopeless.best is None


def test_ties_go_to_the_earlier_proposal():
    searcher = Evolution(SMALL, small_settings(generations=1), seed=2)
    asked = searcher.ask()
    for choices in reversed(asked):
        searcher.tell(choices, 1.0)
    assert searcher.best == (asked[0], 1.0)


def test_a_space_smaller_than_the_population(caplog):
    searcher = Evolution((2, 2), small_settings(), seed=0)
    assert sorted(searcher.population) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert "4 of 12 candidates" in caplog.text
    for choices in searcher.ask():
        searcher.tell(choices, separable(choices))
    assert searcher.done
    assert searcher.ask() == []
    assert "the search ends here" in caplog.text
    assert len(searcher.population) == 4


def test_a_constraint_without_paths():
    with pytest.raises(
        SearchSpaceExhausted, match=r"found 0 of the 12 .*0\.000% satisfy max_macs=1 .*all 16 paths"
    ):
        Evolution(
            (4, 4), small_settings(), seed=0, feasible=lambda c: False, constraint="max_macs=1"
        )


def test_a_constraint_too_tight_to_draw_from():
    def feasible(choices):
        return sum(choices) == 0  # one path of 4^20

    with pytest.raises(
        SearchSpaceExhausted, match=r"found 0 of the 12 .* 1200 draws.*100 per path"
    ):
        Evolution(SMALL, small_settings(), seed=0, feasible=feasible)


def test_enumeration_finds_what_drawing_misses():
    def feasible(choices):
        return set(choices) == {3}

    searcher = Evolution((4,) * 8, small_settings(attempts=1), seed=0, feasible=feasible)
    assert searcher.population == ((3,) * 8,)
    assert searcher.origins == ("enumeration",)


def test_population_scales_the_preset():
    paper = EvolutionSettings.preset("paper", population=7)
    assert (paper.mutation, paper.crossover, paper.random, paper.parents) == (3, 4, 0, 2)
    release = EvolutionSettings.preset("release", population=10, random=0)
    assert (release.mutation, release.crossover, release.random, release.parents) == (4, 4, 0, 2)


@pytest.mark.parametrize("preset", ["paper", "release"])
@pytest.mark.parametrize("population", [1, 2, 4, 6, 7, 8, 20])
def test_small_populations_breed(preset, population):
    """What the preset asks for is bred, not replaced by random paths."""
    searcher = Evolution(
        SMALL, EvolutionSettings.preset(preset, population=population, generations=8), seed=1
    )
    assert not searcher.settings.crossover or searcher.settings.parents >= 2
    origins = Counter(origin for generation in run(searcher)[1:] for _, origin in generation)
    assert not searcher.settings.crossover or origins["crossover"] > 0
    assert not searcher.settings.mutation or origins["mutation"] > 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"mutation": 40}, "mutation 40 .* exceeds the population of 50"),
        ({"mutation_prob": 1.5}, r"mutation_prob must be in \[0, 1\], got 1.5"),
        ({"population": 0}, "population must be at least 1, got 0"),
        ({"crossover": -1}, "crossover must not be negative"),
        ({"parents_from": "nowhere"}, "parents_from must be in"),
        ({"parents": 1}, "crossover 25 with parents 1: .* 2 parents or more, or crossover 0"),
        ({"population": 1, "mutation": 0, "crossover": 1, "parents": 2}, "a generation of one"),
        ({"mutation_prob": 0.0}, "mutation 25 with mutation_prob 0.0 changes nothing"),
    ],
)
def test_settings_are_checked(overrides, message):
    with pytest.raises(ValueError, match=message):
        EvolutionSettings.preset("paper", **overrides)


def test_unknown_preset():
    with pytest.raises(ValueError, match=r"unknown preset 'fast', expected one of \['paper', "):
        EvolutionSettings.preset("fast")
