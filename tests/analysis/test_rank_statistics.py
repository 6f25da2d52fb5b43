"""Statistics of rankings, against SciPy, brute force and simulated truth."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from detnas_d2.analysis.rank_statistics import (
    Interval,
    best_of_random,
    centred,
    interval,
    mean_ranks,
    regret,
    sparse,
    spearman,
    split_ceiling,
    tau_b,
    tau_samples,
)
from detnas_d2.analysis.variance import Spread
from tests.analysis.test_variance import simulated


@pytest.mark.parametrize("seed", range(5))
def test_tau_is_scipys_with_ties(seed: int) -> None:
    rng = np.random.default_rng(seed)
    first, second = rng.integers(6, size=(2, 15))
    assert tau_b(first, second) == pytest.approx(stats.kendalltau(first, second).statistic)
    assert spearman(first, second) == pytest.approx(stats.spearmanr(first, second).statistic)


def test_weighted_tau_counts_pairs_of_different_networks() -> None:
    rng = np.random.default_rng(1)
    first, second = rng.integers(5, size=(2, 8))
    weights = np.array([2, 0, 1, 3, 0, 1, 1, 0])
    total = untied = others = 0
    for i, j in itertools.permutations(range(8), 2):
        a, b = np.sign(first[i] - first[j]), np.sign(second[i] - second[j])
        pairs = weights[i] * weights[j]
        total, untied, others = (
            total + pairs * a * b,
            untied + pairs * a * a,
            others + pairs * b * b,
        )
    assert tau_b(first, second, weights) == pytest.approx(total / math.sqrt(untied * others))


def test_equal_scores_have_no_rank() -> None:
    assert math.isnan(tau_b([1, 1, 1], [1, 2, 3])) and math.isnan(spearman([1, 1], [1, 2]))


def test_regret_and_sparse_truth() -> None:
    truth, fitness = np.array([40.0, 43, 42, 41.2]), np.array([9.0, 1, 5, 7])
    assert [regret(truth, fitness, top) for top in (1, 2, 3, 4)] == pytest.approx([3, 1.8, 1, 0])
    assert sparse(truth, 2).tolist() == [20, 22, 21, 21]
    assert sparse(truth, 0) is truth
    assert mean_ranks([fitness, -fitness]).tolist() == [2.5] * 4


def test_seeds_are_centred() -> None:
    scores = np.array([[1.0, 5], [3, 9]])
    assert centred(scores).tolist() == [[3.5, 2.5], [5.5, 6.5]]


def test_interval_is_moved_to_the_estimate_and_stays_within_its_limits() -> None:
    samples = np.append(np.linspace(0.2, 0.8, 601), math.nan)
    found = interval(0.6, samples)
    assert (found.low, found.high) == pytest.approx((0.315, 0.885))
    assert interval(0.9, samples).high == 1.0
    assert str(Interval(-0.001, -0.25, 0.75)) == "0.00 (-0.25 to 0.75)"
    assert math.isnan(interval(math.nan, samples).low)


def test_intervals_cover_the_tau_of_endless_networks() -> None:
    """With 3 seeds of noise 1, a spread of 2, and a predictor with noise 2."""
    rng = np.random.default_rng(0)
    correlation = (1 / math.sqrt(2)) / math.sqrt(1 + 1 / 12)
    wanted = 2 / math.pi * math.asin(correlation)
    covered, widths = [], []
    for number in range(120):
        true = rng.normal(0, 2, (30, 1))
        truth = true + rng.normal(0, 1, (30, 3)) + rng.normal(0, 3, (1, 3))
        fitness = true[:, 0] + rng.normal(0, 2, 30)
        samples = tau_samples(truth, {"a": fitness}, seed=number, resamples=200)["a"]
        found = interval(tau_b(truth.mean(1), fitness), samples)
        covered.append(found.low <= wanted <= found.high)
        widths.append(found.high - found.low)
    assert 0.90 <= np.mean(covered) <= 0.99
    assert 0.3 < np.mean(widths) < 0.5


def test_predictors_share_their_resamples() -> None:
    truth = simulated(20, 3, 2.0, 1.0)
    same = truth.mean(1)
    samples = tau_samples(truth, {"a": same, "b": 2 * same, "c": -same}, resamples=20)
    assert (samples["a"] == samples["b"]).all() and (samples["a"] == -samples["c"]).all()
    again = tau_samples(truth, {"c": -same}, resamples=20)
    assert (samples["c"] == again["c"]).all()


@pytest.mark.parametrize("seeds", [2, 3, 4, 5])
def test_split_of_seeds_gives_the_ceiling_of_the_components(seeds: int) -> None:
    found = split_ceiling(simulated(1500, seeds, 1.5, 1.0))
    assert found == pytest.approx(Spread(1500, seeds, 1.5, 1.0).ceiling(seeds), abs=0.02)


def test_split_of_noise_gives_no_ceiling() -> None:
    assert split_ceiling(np.array([[0.0, 3], [1, 2], [2, 1], [3, 0]])) == 0
    assert math.isnan(split_ceiling(np.array([[1.0], [2.0]])))


def test_best_of_random_networks_by_brute_force() -> None:
    scores = np.array([[50.0, 41, 43], [49, 47, 45], [48, 44, 44], [47, 40, 42]])
    values = centred(scores)
    truth = values[:, 1:].mean(axis=1)
    expected = [
        truth[max(chosen, key=lambda i: values[i, 0])]
        for chosen in itertools.combinations(range(4), 2)
    ]
    assert best_of_random(scores, 2, draws=20000) == pytest.approx(np.mean(expected), abs=0.03)
    assert best_of_random(scores, 9) == pytest.approx(truth[0])
    assert best_of_random(scores[:, :1], 4) == 50
