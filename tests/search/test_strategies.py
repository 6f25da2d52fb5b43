"""What every strategy of a search promises, and regularised evolution."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from detnas_d2.search.driver import ReplayError
from detnas_d2.search.history import History
from detnas_d2.search.nsga2 import NSGA2, NSGA2Settings
from detnas_d2.search.predictor import PredictorSearch, PredictorSettings
from detnas_d2.search.random_search import RandomSearch
from detnas_d2.search.regularized import RegularizedEvolution, RegularizedSettings
from detnas_d2.search.variation import change_one
from tests.search import toy_search

SPACE = (4,) * 12
REGULARIZED = RegularizedSettings(population=12, generations=6, alive=24, sample=6, attempts=100)


def build(strategy, cardinalities=SPACE, *, seed=0, feasible=None, **sizes):
    chosen = {"population": 12, "generations": 6, "attempts": 100, **sizes}
    arguments = {"seed": seed, "feasible": feasible}
    population, generations = chosen["population"], chosen["generations"]
    if strategy == "random":
        samples, attempts = population * generations, chosen["attempts"]
        return RandomSearch(
            cardinalities, samples=samples, batch=population, attempts=attempts, **arguments
        )
    if strategy == "regularized":
        own = RegularizedSettings(alive=population + 1, sample=1 + population // 4, **chosen)
        return RegularizedEvolution(cardinalities, own, **arguments)
    if strategy == "nsga2":
        crossover = population // 2 if population > 1 else 0
        kinds = {"mutation": population - crossover, "crossover": crossover, "random": 0}
        own = NSGA2Settings(
            **kinds, mutation_prob=0.2, objectives=("fitness", "macs", "params"), **chosen
        )
        return NSGA2(cardinalities, own, costs_of=costs, **arguments)
    own = PredictorSettings(parents=5, pool=6, random_share=0.1, **chosen)
    return PredictorSearch(cardinalities, own, **arguments)


def worth(choices):
    """A sum over layers."""
    return sum(((7 * layer + 3 * op) % 11) / 10 for layer, op in enumerate(choices))


def costs(choices):
    """Two costs with many ties."""
    return sum(choices), sum(layer * op for layer, op in enumerate(choices)) % 5


def run(searcher, fitness=worth, order=None):
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


@pytest.mark.parametrize("strategy", ["regularized", "predictor", "nsga2"])
@given(
    cardinalities=st.lists(st.integers(1, 3), min_size=1, max_size=4),
    population=st.integers(1, 12),
    generations=st.integers(2, 5),
    seed=st.integers(-(2**40), 2**40),
    modulus=st.integers(1, 3),
    failing=st.integers(1, 5),
)
@settings(max_examples=40, deadline=None)
def test_any_search_ends_without_repeats_and_replays_in_any_order(
    strategy, cardinalities, population, generations, seed, modulus, failing
):
    space = set(itertools.product(*(range(n) for n in cardinalities)))
    feasible = {c for c in space if sum(c) % modulus == 0}  # always holds (0, ..., 0)
    sizes = {"population": population, "generations": generations + (population == 1)}

    def fitness(choices):
        return None if sum(choices) % failing == failing - 1 else worth(choices)

    def search(order):
        searcher = build(
            strategy, cardinalities, seed=seed, feasible=feasible.__contains__, **sizes
        )
        return run(searcher, fitness, order), searcher.best

    in_order, best = search(None)
    evaluated = [choices for generation in in_order for choices, _ in generation]
    assert len(evaluated) == len(set(evaluated))
    assert set(evaluated) <= feasible
    assert len(evaluated) == min(len(feasible), population * sizes["generations"])
    assert search(random.Random(seed)) == (in_order, best)


@pytest.mark.parametrize("strategy", ["regularized", "predictor", "nsga2"])
def test_proposals_follow_from_seed_and_fitness(strategy):
    again, other_seed = (run(build(strategy, seed=seed)) for seed in (0, 1))
    assert run(build(strategy)) == again
    assert again[0] != other_seed[0]
    otherwise = run(build(strategy), lambda choices: -worth(choices))
    assert otherwise[0] == again[0]
    assert otherwise[-1] != again[-1]


@pytest.mark.parametrize("strategy", ["regularized", "predictor", "nsga2"])
def test_a_killed_search_goes_on_to_the_same_end(strategy):
    """Through the driver, with what was finished told again in another order."""

    def searcher(seed=5):
        limits = toy_search.limits()
        return build(strategy, (4,) * toy_search.LAYERS, seed=seed, feasible=limits, generations=4)

    whole = History.in_memory()
    toy_search.search(whole, searcher=searcher())
    assert len(whole) == 48
    for stop in (5, 12, 31, 47):
        killed = History.in_memory()
        evaluator = toy_search.ToyEvaluator(stop_after=stop)
        with pytest.raises(KeyboardInterrupt):
            toy_search.search(killed, evaluator, searcher=searcher())
        shuffled = random.Random(stop).sample(killed.records, stop)
        resumed = History.in_memory([replace(r, index=i) for i, r in enumerate(shuffled)])
        toy_search.search(resumed, searcher=searcher())
        without = [{**record, "index": 0} for record in whole.identity()]
        assert [{**record, "index": 0} for record in resumed.identity()] == without
    with pytest.raises(ReplayError):
        toy_search.search(resumed, searcher=searcher(seed=6))


def found(strategy, seed):
    """What the fittest of 300 evaluations is worth, in a landscape of its own with noise."""
    rng = random.Random(f"landscape {seed}")
    table = [[rng.gauss(0, 1) for _ in range(n)] for n in SPACE]
    cost = [[rng.uniform(1, 5) for _ in range(n)] for n in SPACE]
    noise = 0.75 * len(SPACE) ** 0.5  # of the standard deviation of what paths are worth
    searcher = build(
        strategy,
        seed=seed,
        population=20,
        generations=15,
        feasible=lambda c: sum(row[op] for row, op in zip(cost, c, strict=True)) <= 36,
    )
    values = {}

    def fitness(choices):
        values[choices] = sum(row[op] for row, op in zip(table, choices, strict=True))
        return values[choices] + random.Random(f"{seed} {choices}").gauss(0, noise)

    run(searcher, fitness)
    return values[searcher.best[0]]


@pytest.mark.parametrize("strategy", ["regularized", "predictor"])
def test_finds_more_than_random_search(strategy):
    """Paired by landscape, with the interval of the mean difference; the noise is three quarters
    of the signal (a tau of 0.6).
    """
    gains = np.array([found(strategy, seed) - found("random", seed) for seed in range(20)])
    low, _ = stats.t.interval(0.99, len(gains) - 1, gains.mean(), stats.sem(gains))
    assert low > 0


class TestRegularizedEvolution:
    def test_children_have_one_other_operation_than_somebody_alive(self):
        searcher = RegularizedEvolution(SPACE, REGULARIZED, seed=1)
        generations = run(searcher)
        origins = [Counter(origin for _, origin in generation) for generation in generations]
        assert origins == [{"random": 12}] * 2 + [{"mutation": 12}] * 4
        born = [choices for generation in generations for choices, _ in generation]
        for start in range(24, 72, 12):
            alive = born[start - 24 : start]
            for child in born[start : start + 12]:
                assert min(distance(child, parent) for parent in alive) == 1

    def test_a_tournament_of_all_is_won_by_the_fittest_alive(self):
        """With replacement: of 24 alive, 600 draws leave out the fittest once in 10^11."""
        searcher = RegularizedEvolution(SPACE, replace(REGULARIZED, alive=23), seed=1)
        object.__setattr__(searcher.settings, "sample", 600)  # more than alive, on purpose
        born = [choices for generation in run(searcher) for choices, _ in generation]
        for start in range(24, 72, 12):
            fittest = max(born[start - 23 : start], key=worth)
            assert all(distance(child, fittest) == 1 for child in born[start : start + 12])

    def test_the_oldest_die_however_fit(self):
        """Every generation is worse than the last, so the fittest alive is the oldest alive."""
        settings = replace(REGULARIZED, alive=12, sample=12)
        searcher = RegularizedEvolution(SPACE, settings, seed=1)
        told = itertools.count()
        generations = [
            [choices for choices, _ in generation]
            for generation in run(searcher, lambda choices: -float(next(told)))
        ]
        for parents, children in itertools.pairwise(generations):
            assert all(min(distance(c, p) for p in parents) == 1 for c in children)

    def test_failed_candidates_win_nothing(self, caplog):
        searcher = RegularizedEvolution(SPACE, replace(REGULARIZED, alive=12), seed=2)
        asked = searcher.ask()
        for position, choices in enumerate(asked):
            searcher.tell(choices, 1.0 if position == 4 else None)
        assert all(distance(child, asked[4]) == 1 for child in searcher.population)
        for choices in searcher.ask():
            searcher.tell(choices, None)
        assert "none of the 12 candidates alive has a fitness; taking parents" in caplog.text
        assert all(distance(child, asked[4]) == 1 for child in searcher.population)
        assert (
            sum(map(len, run(RegularizedEvolution(SPACE, REGULARIZED, seed=2), no_fitness))) == 72
        )
        assert "random paths instead" in caplog.text

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"sample": 0}, "sample must be at least 1, got 0"),
            ({"sample": 25}, "sample 25 exceeds the 24 candidates alive"),
            ({"alive": 72}, "all candidates would be drawn at random; expected alive below 72"),
        ],
    )
    def test_settings_are_checked(self, changes, message):
        with pytest.raises(ValueError, match=message):
            replace(REGULARIZED, **changes)


def no_fitness(choices):
    return None


def distance(one, other):
    """Layers with different operations."""
    return sum(a != b for a, b in zip(one, other, strict=True))


def test_change_one_draws_layer_and_operation_uniformly():
    rng = random.Random(0)
    counts = Counter(change_one((2, 0, 1), (3, 1, 2), rng) for _ in range(6000))
    assert counts.keys() == {(0, 0, 1), (1, 0, 1), (2, 0, 0)}
    assert counts[2, 0, 0] == pytest.approx(3000, abs=190)  # 4.9 standard deviations
    assert counts[0, 0, 1] == pytest.approx(1500, abs=165)
    assert change_one((0, 0), (1, 1), rng) == (0, 0)
