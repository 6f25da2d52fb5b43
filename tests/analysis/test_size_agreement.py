"""Agreement of two image sizes, against SciPy and on scores whose order is known."""

from __future__ import annotations

import itertools
import math
import statistics

import numpy as np
import pytest
from scipy import stats

from detnas_d2.analysis.size_agreement import agreement


def scores(rng: np.random.Generator, truth: np.ndarray, noise: float, supernets: int) -> np.ndarray:
    """[S, N], a truth with noise of its own for each supernet."""
    return truth + noise * rng.normal(size=(supernets, len(truth)))


def tau(a: np.ndarray, b: np.ndarray) -> float:
    return float(stats.kendalltau(a, b).statistic)


@pytest.mark.parametrize("supernets", [2, 4])
def test_taus_are_means_over_pairs_of_supernets(supernets: int) -> None:
    rng = np.random.default_rng()
    a, b = (scores(rng, rng.normal(size=15), 0.5, supernets) for _ in range(2))
    a[0, 3] = a[0, 4]  # a tie
    found = agreement(a, b, resamples=20)
    pairs = list(itertools.combinations(range(supernets), 2))
    for value, own in ((found.at_first, a), (found.at_second, b)):
        taus = [tau(own[i], own[j]) for i, j in pairs]
        assert value.value == pytest.approx(statistics.fmean(taus))
    across = [tau(a[i], b[j]) for i, j in itertools.permutations(range(supernets), 2)]
    assert found.across.value == pytest.approx(statistics.fmean(across))
    assert found.loss.value == pytest.approx(found.expected.value - found.across.value)


def test_one_order_at_both_sizes_is_what_is_expected() -> None:
    """Normal deviates, more noise at one size: without a size of its own, nothing is lost."""
    rng = np.random.default_rng(1)
    truth = rng.normal(size=1000)
    found = agreement(scores(rng, truth, 0.5, 3), scores(rng, truth, 1.5, 3), resamples=2)
    assert found.loss.value == pytest.approx(0, abs=0.02)
    # r is 1 / (1 + noise^2) at a size, and 1 / sqrt of the product of both across.
    for value, r in ((found.at_first, 0.8), (found.at_second, 1 / 3.25)):
        assert value.value == pytest.approx(2 / math.pi * math.asin(r), abs=0.03)


def test_another_order_is_told_from_noise() -> None:
    rng = np.random.default_rng(2)
    truth, other = rng.normal(size=(2, 40))
    same = agreement(scores(rng, truth, 0.7, 3), scores(rng, truth, 0.7, 3), resamples=400)
    assert same.loss.low < 0 < same.loss.high and same.verdict == "no difference shown"
    apart = agreement(scores(rng, truth, 0.7, 3), scores(rng, other, 0.7, 3), resamples=400)
    assert apart.loss.low > 0 and apart.verdict == "they are ranked otherwise"
    assert apart.loss.low < apart.loss.value < apart.loss.high


def test_supernets_that_agree_in_nothing_expect_nothing() -> None:
    order = np.arange(10.0)
    found = agreement(np.array([order, -order]), np.array([order, order]), resamples=5)
    assert (found.at_first.value, found.at_second.value) == (-1, 1)
    assert found.expected.value == 0 and found.across.value == 0
