"""NSGA-II: who survives, who has children, and what it finds."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from detnas_d2.search.dominance import hypervolume
from detnas_d2.search.evolution import Evolution, EvolutionSettings
from detnas_d2.search.nsga2 import NSGA2, NSGA2Settings
from detnas_d2.search.random_search import RandomSearch
from tests.search.test_dominance import by_definition, peeled

SPACE = (4,) * 10
SETTINGS = NSGA2Settings(
    population=12,
    generations=6,
    mutation=5,
    crossover=5,
    random=2,
    mutation_prob=0.2,
    objectives=("fitness", "macs"),
)


def build(costs_of=lambda choices: (float(sum(choices)),), seed=0, **changes):
    return NSGA2(SPACE, replace(SETTINGS, **changes), seed=seed, costs_of=costs_of)


def generation(searcher, fitness):
    """Tells a generation; returns it in order of proposal."""
    asked = searcher.ask()
    for choices in asked:
        searcher.tell(choices, fitness(choices))
    return asked


def selected(points, count):
    """Survivors by the paper: front after front, the last one by crowding distance; the best of
    equals is the first.
    """
    ranks, distances = peeled(points), [0.0] * len(points)
    for rank in set(ranks):
        members = [i for i in range(len(points)) if ranks[i] == rank]
        for i, distance in zip(members, by_definition([points[i] for i in members]), strict=True):
            distances[i] = distance
    return sorted(range(len(points)), key=lambda i: (ranks[i], -distances[i], i))[:count]


@pytest.mark.parametrize("values", [2, 4, 1000])
@pytest.mark.parametrize("costs", [1, 2])
def test_parents_and_children_compete(values, costs):
    """Over whole searches, with few values and so with ties, and a candidate that fails."""
    rng = random.Random(values)
    table = {}

    def told(choices):
        return table.setdefault(choices, [float(rng.randrange(values)) for _ in range(costs + 1)])

    def fitness(choices):
        return None if len(table) % 7 == 3 else told(choices)[0]

    searcher, survivors = build(lambda choices: told(choices)[1:], generations=8), []
    while not searcher.done:
        asked = generation(searcher, fitness)
        alive = survivors + [c for c in asked if searcher._results[c] is not None]
        if searcher.done:
            break
        points = [(-table[c][0], *table[c][1:]) for c in alive]
        order = sorted(range(len(alive)), key=lambda i: searcher._order[alive[i]])
        chosen = selected([points[i] for i in order], 12)
        survivors = [alive[order[i]] for i in chosen]
        assert searcher._survivors == survivors


def test_survivors_are_optunas():
    """Of distinct values: of equal ones Optuna takes whichever its sorting leaves first."""
    nsga2 = pytest.importorskip("optuna.samplers.nsgaii._elite_population_selection_strategy")
    from optuna.study import StudyDirection
    from optuna.trial import create_trial

    rng = np.random.default_rng(0)
    paths = [tuple(row) for row in np.unique(rng.integers(0, 4, (90, 10)), axis=0).tolist()]
    points = dict(zip(paths, rng.normal(size=(len(paths), 3)).tolist(), strict=True))
    searcher = build(lambda choices: points[choices][1:], population=40)
    for number, path in enumerate(paths):
        searcher._results[path], searcher._order[path] = points[path][0], number
    trials = [create_trial(values=points[path]) for path in paths]
    for number, trial in enumerate(trials):
        trial.number = number
    directions = [StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE, StudyDirection.MINIMIZE]
    expected: list[int] = []
    for front in nsga2._rank_population(trials, directions):
        if len(expected) + len(front) > 40:
            nsga2._crowding_distance_sort(front)
        expected += [trial.number for trial in front[: 40 - len(expected)]]
    assert set(searcher._selected(paths)) == {paths[number] for number in expected}


def test_children_are_of_survivors():
    searcher = build()
    generation(searcher, lambda choices: float(choices[0]))
    while not searcher.done:
        parents = searcher._survivors
        assert Counter(searcher.origins) == {"mutation": 5, "crossover": 5, "random": 2}
        for child, origin in zip(searcher.population, searcher.origins, strict=True):
            if origin == "crossover":
                assert any(
                    all(gene in pair for gene, *pair in zip(child, one, other, strict=True))
                    for one in parents
                    for other in parents
                )
        generation(searcher, lambda choices: float(choices[0]))


def test_a_tournament_takes_the_better_of_two():
    """Of n survivors in order, number i wins with probability (2 (n - i) - 1) / n^2."""
    searcher = build()
    generation(searcher, lambda choices: float(choices[0]))
    rng, count = random.Random(0), len(searcher._survivors)
    won = Counter(searcher._survivors.index(searcher._parent(rng)) for _ in range(20_000))
    expected = [20_000 * (2 * (count - i) - 1) / count**2 for i in range(count)]
    assert stats.chisquare([won[i] for i in range(count)], expected).pvalue > 1e-6


def test_one_parent_has_no_crossover(caplog):
    searcher = build()
    first = searcher.ask()[3]
    generation(searcher, lambda choices: 1.0 if choices == first else None)
    assert searcher._survivors == [first]
    assert Counter(searcher.origins) == {"mutation": 5, "random": 7}
    assert "one parent has a fitness, so no crossover" in caplog.text
    searcher = build()
    generation(searcher, lambda choices: None)
    assert Counter(searcher.origins) == {"random": 12}


def covered(strategy, seed):
    """Hypervolume after 300 evaluations in a landscape where fitness costs something."""
    rng = random.Random(f"landscape {seed}")
    cost = [[scale * step for step in (1.0, 1.4, 2.0, 2.6)] for scale in np.linspace(0.5, 2, 10)]
    worth = [[rng.gauss(0.3 * value, 0.4) for value in row] for row in cost]

    def total(table, choices):
        return sum(row[op] for row, op in zip(table, choices, strict=True))

    sizes = {"population": 20, "generations": 15, "attempts": 20}
    if strategy == "random":
        searcher = RandomSearch(SPACE, samples=300, batch=20, seed=seed)
    elif strategy == "evolution":
        searcher = Evolution(SPACE, EvolutionSettings.preset("paper", **sizes), seed=seed)
    else:
        kinds = {"mutation": 10, "crossover": 10, "random": 0}
        searcher = build(lambda choices: (total(cost, choices),), seed=seed, **sizes, **kinds)
    points = []
    while not searcher.done:
        for choices in searcher.ask():
            fitness = total(worth, choices) + random.Random(f"{seed} {choices}").gauss(0, 0.3)
            searcher.tell(choices, fitness)
            points.append((-fitness, total(cost, choices)))
    return hypervolume(points, (0.0, sum(row[-1] for row in cost)))


@pytest.mark.parametrize("other", ["random", "evolution"])
def test_covers_more_than_what_knows_no_costs(other):
    gains = np.array([covered("nsga2", seed) - covered(other, seed) for seed in range(12)])
    low, _ = stats.t.interval(0.99, len(gains) - 1, gains.mean(), stats.sem(gains))
    assert low > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"population": 0}, "population must be at least 1, got 0"),
        ({"mutation": 8}, r"mutation 8 \+ crossover 5 \+ random 2 = 15 exceeds the population"),
        ({"crossover": -1}, "crossover must not be negative, got -1"),
        ({"mutation_prob": 1.5}, r"mutation_prob must be in \[0, 1\], got 1.5"),
        ({"mutation_prob": 0.0}, "mutation 5 with mutation_prob 0.0 changes nothing"),
        (
            {"population": 1, "mutation": 0, "crossover": 1, "random": 0},
            "crossover 1 with population 1: a child of one parent",
        ),
    ],
)
def test_settings_are_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(SETTINGS, **changes)


def test_describes_what_decides_the_proposals():
    assert build(seed=3).describe() == {
        "strategy": "nsga2",
        "seed": 3,
        "settings": {
            "population": 12,
            "generations": 6,
            "mutation": 5,
            "crossover": 5,
            "random": 2,
            "mutation_prob": 0.2,
            "objectives": ("fitness", "macs"),
            "attempts": 1000,
        },
    }
