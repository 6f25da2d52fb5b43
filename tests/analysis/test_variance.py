"""Variance components, and the ceiling of Kendall's tau that follows from them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from detnas_d2.analysis.variance import Spread


def simulated(networks: int, seeds: int, sigma: float, s: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    common = rng.normal(0, 5, (1, seeds))  # of a seed, on all networks alike
    true = rng.normal(50, sigma, (networks, 1))
    return true + common + rng.normal(0, s, (networks, seeds))


def test_by_hand() -> None:
    # Means 1, 3 and 8; the residuals of networks and seeds are 1/3, -1/6, -1/6 and their opposites.
    found = Spread.of([[0.0, 2.0], [2.5, 3.5], [7.5, 8.5]])
    noise = 2 * (1 / 3**2 + 2 / 6**2) / 2
    assert found.within == pytest.approx(math.sqrt(noise))
    assert found.between == pytest.approx(math.sqrt(13 - noise / 2))
    assert (found.networks, found.seeds) == (3, 2)


def test_simulated_components_are_recovered() -> None:
    found = [Spread.of(simulated(12, 2, 2.0, 1.0, seed)) for seed in range(400)]
    assert np.mean([f.within**2 for f in found]) == pytest.approx(1, abs=0.06)
    assert np.mean([f.between**2 for f in found]) == pytest.approx(4, abs=0.3)


@pytest.mark.parametrize(
    ("sigma", "ceilings"),
    [(1, {1: 0.50, 3: 0.67, 5: 0.73}), (2, {1: 0.70, 3: 0.82, 5: 0.86}), (3, {1: 0.80, 3: 0.88})],
)
def test_ceiling(sigma: float, ceilings: dict[int, float]) -> None:
    spread = Spread(50, 3, sigma, 1.0)
    assert {seeds: round(spread.ceiling(seeds), 2) for seeds in ceilings} == ceilings


def test_ceiling_is_the_tau_of_the_true_scores() -> None:
    rng = np.random.default_rng(0)
    true = rng.normal(0, 2, 4000)
    measured = true + rng.normal(0, 1 / math.sqrt(3), 4000)
    tau = stats.kendalltau(true, measured).statistic
    assert Spread(4000, 3, 2.0, 1.0).ceiling(3) == pytest.approx(tau, abs=0.015)


def test_extremes() -> None:
    assert Spread.of([[1.0, 1.0], [1.0, 1.0]]).ratio == 0
    assert Spread.of([[1.0, 1.0], [1.0, 1.0]]).ceiling(2) == 0
    assert Spread.of([[1.0, 2.0], [3.0, 4.0]]).ratio == math.inf  # a seed's effect is no noise
    assert Spread.of([[1.0, 2.0], [3.0, 4.0]]).ceiling(2) == 1
    assert Spread.of([[0.0, 9.0], [9.0, 0.0]]).between == 0
    assert math.isnan(Spread.of([[1.0], [3.0]]).within)
