"""Surrogates of truth sets, against looking at every path."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from sklearn.linear_model import RidgeCV
from sklearn.metrics import r2_score
from sklearn.model_selection import KFold, cross_val_predict

from detnas_d2.search import surrogate
from detnas_d2.search.surrogate import costs, fit_surrogate
from detnas_d2.search_space import AdditiveTable
from detnas_d2.utils.errors import InputError

SIZES = (3, 4, 2, 3)
EVERY = np.array(list(itertools.product(*map(range, SIZES))))
RNG = np.random.default_rng(0)
MACS = AdditiveTable(7, tuple(tuple(map(int, RNG.integers(1, 30, n))) for n in SIZES))
WORTH = [RNG.normal(size=n) for n in SIZES]
TOGETHER = RNG.normal(size=(3, 4))
COST = np.array([MACS.total(path) for path in EVERY])


def worth(paths):
    return sum(row[paths[:, layer]] for layer, row in enumerate(WORTH))


def squared(paths):
    return -3 * ((costs(MACS, paths) - 50) / 15) ** 2 + worth(paths)


def paired(paths):
    return 3 * TOGETHER[paths[:, 0], paths[:, 1]] + worth(paths)


def fitted(truth, count=60, noise=0.0, seed=1):
    rng = np.random.default_rng(seed)
    paths = EVERY[rng.choice(len(EVERY), count, replace=False)]
    scores = truth(paths) + noise * rng.normal(size=count)
    return fit_surrogate([tuple(map(int, p)) for p in paths], list(scores), MACS)


def test_costs_are_those_of_the_table():
    assert costs(MACS, EVERY).tolist() == COST.tolist()


@pytest.mark.parametrize(
    ("truth", "kind"),
    [
        (worth, "choices"),
        (squared, "choices and squared cost"),
        (paired, "choices and neighbours"),
    ],
)
def test_what_scores_depend_on_is_found_and_learned(truth, kind):
    found = fitted(truth, noise=0.1)
    assert found.kind == kind
    assert np.abs(found.scores(EVERY) - truth(EVERY)).max() < 0.4
    assert found.r2 > 0.98
    assert found.tau > 0.9


@pytest.mark.parametrize("truth", [worth, squared, paired])
@pytest.mark.parametrize("share", [0.0, 0.03, 0.3, 0.7, 1.0])
def test_the_best_within_a_limit_is_that_of_all_paths(truth, share, monkeypatch):
    monkeypatch.setattr(surrogate, "_CHUNK", 5)
    found, limit = fitted(truth), int(np.quantile(COST, share))
    assert found.best(limit) == pytest.approx(found.scores(EVERY[limit >= COST]).max(), abs=1e-9)


def test_no_limit_and_an_impossible_one():
    found = fitted(worth)
    assert found.best() == pytest.approx(found.scores(EVERY).max(), abs=1e-9)
    with pytest.raises(InputError, match=f"max_macs 10: the cheapest path .* {COST.min()}"):
        found.best(10)


def test_layers_with_equal_costs_and_many_ties():
    macs = AdditiveTable(0, ((1, 1, 1),) * 4)
    every = np.array(list(itertools.product(range(3), repeat=4)))
    found = fit_surrogate([tuple(map(int, p)) for p in every], list(every.sum(axis=1)), macs)
    assert found.best(4) == pytest.approx(8, abs=0.1)


def test_cross_validation_is_scikit_learns(monkeypatch):
    """Of large spaces only the choices are learned, so the reference is one call."""
    monkeypatch.setattr(surrogate, "ENUMERABLE", 71)
    found = fitted(paired, count=40, noise=1.0)
    assert found.kind == "choices"
    rng = np.random.default_rng(1)
    paths = EVERY[rng.choice(len(EVERY), 40, replace=False)]
    scores = paired(paths) + rng.normal(size=40)
    features = np.concatenate([np.eye(n)[paths[:, i]] for i, n in enumerate(SIZES)], axis=1)
    model = RidgeCV(alphas=np.logspace(-2, 3, 11))
    predicted = cross_val_predict(
        model, features, scores, cv=KFold(10, shuffle=True, random_state=0)
    )
    assert found.r2 == pytest.approx(r2_score(scores, predicted), abs=1e-9)
    assert found.scores(EVERY[:9]) == pytest.approx(
        model.fit(features, scores).predict(
            np.concatenate([np.eye(n)[EVERY[:9, i]] for i, n in enumerate(SIZES)], axis=1)
        )
    )


def test_noise_explains_nothing():
    assert fitted(lambda paths: np.zeros(len(paths)), noise=1.0).r2 < 0.15


def test_networks_that_teach_nothing_are_refused():
    paths = [tuple(map(int, path)) for path in EVERY[:12]]
    with pytest.raises(InputError, match="9 networks with 9 scores: expected at least 10"):
        fit_surrogate(paths[:9], list(range(9)), MACS)
    with pytest.raises(InputError, match="12 networks with 1 scores"):
        fit_surrogate(paths, [1.0] * 12, MACS)
