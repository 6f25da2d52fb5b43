"""The predictor-guided search."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from detnas_d2.search.predictor import ALPHAS, PredictorSearch, PredictorSettings
from detnas_d2.utils.errors import InputError

SPACE = (4,) * 12
SETTINGS = PredictorSettings(population=20, generations=5, parents=5, pool=6, random_share=0.1)


def worth(choices):
    return sum(((7 * layer + 3 * op) % 11) / 10 for layer, op in enumerate(choices))


BEST = tuple(max(range(4), key=lambda op: (7 * layer + 3 * op) % 11) for layer in range(12))


def told(searcher, generations=1, fitness=worth):
    for _ in range(generations):
        for choices in searcher.ask():
            searcher.tell(choices, fitness(choices))
    return searcher


def test_a_tenth_of_a_generation_is_random():
    searcher = told(PredictorSearch(SPACE, SETTINGS, seed=0))
    assert searcher.origins == ("predicted",) * 18 + ("random",) * 2
    shares = [replace(SETTINGS, random_share=share) for share in (0.0, 0.96)]
    for settings, random in zip(shares, (0, 19), strict=True):
        assert told(PredictorSearch(SPACE, settings, seed=0)).origins.count("random") == random


def test_an_additive_fitness_is_learned():
    """The optimum, one of 4^12 paths, from 20 random ones and four generations by prediction."""
    searcher = told(PredictorSearch(SPACE, SETTINGS, seed=0), generations=5)
    assert searcher.best == (BEST, worth(BEST))


def test_what_is_predicted_best_is_proposed():
    """The proposals against scikit-learn's ridge regression on hand-made features."""
    searcher = PredictorSearch(SPACE, replace(SETTINGS, pool=40), seed=3)
    first = searcher.ask()
    told(searcher, fitness=lambda choices: worth(choices) + hash(choices) % 100 / 100)
    features = np.array([[c == op for c in choices for op in range(4)] for choices in first], float)
    fitness = np.array([searcher._results[choices] for choices in first])
    errors = []
    for alpha in ALPHAS:
        left_out = [
            Ridge(alpha)
            .fit(np.delete(features, i, 0), np.delete(fitness, i))
            .predict(features[i:][:1])
            for i in range(20)
        ]
        errors.append(np.mean((np.ravel(left_out) - fitness) ** 2))
    model = Ridge(ALPHAS[int(np.argmin(errors))]).fit(features, fitness)
    chosen = [
        c
        for c, origin in zip(searcher.population, searcher.origins, strict=True)
        if origin == "predicted"
    ]
    predicted = model.predict([[c == op for c in choices for op in range(4)] for choices in chosen])
    assert list(predicted) == sorted(predicted, reverse=True)
    assert predicted.min() > model.predict(features).max()


def test_rounding_errors_change_nothing():
    exact = told(PredictorSearch(SPACE, SETTINGS, seed=1), 3)
    disturbed = told(
        PredictorSearch(SPACE, SETTINGS, seed=1),
        3,
        lambda choices: worth(choices) * (1 + 1e-14 * (hash(choices) % 7 - 3)),
    )
    assert disturbed.population == exact.population


@pytest.mark.parametrize("scale", [1e-12, 1e9])
def test_the_unit_of_the_fitness_does_not_matter(scale):
    searcher = told(PredictorSearch(SPACE, SETTINGS, seed=1), 3)
    scaled = told(PredictorSearch(SPACE, SETTINGS, seed=1), 3, lambda c: scale * worth(c))
    assert scaled.population == searcher.population


def test_a_fitness_that_is_always_the_same():
    searcher = told(PredictorSearch(SPACE, SETTINGS, seed=1), 5, lambda choices: 1.0)
    assert searcher.done
    assert len(searcher._results) == 100


def test_one_fitness_alone_teaches_nothing():
    searcher = PredictorSearch(SPACE, SETTINGS, seed=1)
    first = searcher.ask()[0]
    told(searcher, fitness=lambda choices: 1.0 if choices == first else None)
    assert searcher.origins == ("random",) * 20


def test_without_scikit_learn_it_does_not_start(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(InputError, match="needs scikit-learn: pip install scikit-learn"):
        PredictorSearch(SPACE, SETTINGS, seed=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pool": 0}, "pool must be at least 1, got 0"),
        ({"parents": 0}, "parents must be at least 1, got 0"),
        ({"random_share": 1.0}, r"random_share must be in \[0, 1\), got 1.0"),
    ],
)
def test_settings_are_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(SETTINGS, **changes)
