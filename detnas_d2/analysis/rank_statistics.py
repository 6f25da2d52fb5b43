"""How well a score ranks networks whose true scores are known up to the noise of their trainings.

Truth is an array ``scores[network, seed]``: every network trained with the same seeds.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        value, low, high = (round(v, 2) + 0.0 for v in (self.value, self.low, self.high))
        return f"{value:.2f} ({low:.2f} to {high:.2f})"  # no -0.00


def tau_b(
    first: np.ndarray | Sequence[float],
    second: np.ndarray | Sequence[float],
    weights: np.ndarray | None = None,
) -> float:
    """Kendall's tau-b of two scores of the same networks, in [-1, 1].

    NaN if all values of a score are equal, or one of them is NaN.

    Args:
        weights: how often each network counts; its pairs with itself do not.
    """
    signs, others = _signs(first), _signs(second)
    pairs = 1 if weights is None else np.outer(weights, weights)
    scale = (pairs * signs**2).sum() * (pairs * others**2).sum()
    return float((pairs * signs * others).sum() / math.sqrt(scale)) if scale else math.nan


def _signs(values: np.ndarray | Sequence[float]) -> np.ndarray:
    values = np.asarray(values, dtype=float)
    return np.sign(values[:, None] - values[None, :])


def spearman(first: np.ndarray | Sequence[float], second: np.ndarray | Sequence[float]) -> float:
    """Spearman's rho, NaN if all values of a score are equal."""
    from scipy import stats  # here, so that a search does not need it

    if len(set(first)) == 1 or len(set(second)) == 1:
        return math.nan
    return float(stats.spearmanr(first, second).statistic)


def mean_ranks(columns: Sequence[np.ndarray]) -> np.ndarray:
    """Mean over several scores of the rank of each network, from 1 for the lowest."""
    from scipy import stats

    return np.mean([stats.rankdata(column) for column in columns], axis=0)


def centred(scores: np.ndarray) -> np.ndarray:
    """Scores without what a seed does to all networks alike; the mean of all stays."""
    return scores - scores.mean(axis=0, keepdims=True) + scores.mean()


def sparse(truth: np.ndarray, unit: float) -> np.ndarray:
    """Truth in whole units, so that differences below the noise are ties; as it is for unit 0."""
    return np.round(truth / unit) if unit > 0 else truth


def regret(truth: np.ndarray, predictor: np.ndarray, top: int) -> float:
    """Best truth of all networks less the best truth of the ``top`` that a score ranks highest."""
    chosen = np.argsort(-predictor, kind="stable")[:top]
    return float(truth.max() - truth[chosen].max())


def tau_samples(
    scores: np.ndarray,
    predictors: Mapping[str, np.ndarray],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, np.ndarray]:
    """tau-b of each predictor with resampled truth; the same resamples for all of them.

    A resample draws networks with replacement, and for each of them as many of its trainings, with
    replacement. A network that is drawn twice counts twice; it makes no pair with itself.
    """
    rng = np.random.default_rng(seed)
    networks, seeds = scores.shape
    values = centred(scores)
    signs = {name: _signs(predictor) for name, predictor in predictors.items()}
    found: dict[str, list[float]] = {name: [] for name in predictors}
    for _ in range(resamples):
        weights = rng.multinomial(networks, np.full(networks, 1 / networks))
        drawn = rng.integers(seeds, size=(networks, seeds))
        truth = _signs(np.take_along_axis(values, drawn, axis=1).mean(axis=1))
        pairs = np.outer(weights, weights)
        weighted, untied = pairs * truth, (pairs * truth**2).sum()
        for name, own in signs.items():
            scale = untied * (pairs * own**2).sum()
            tau = (weighted * own).sum() / math.sqrt(scale) if scale else math.nan
            found[name].append(float(tau))
    return {name: np.array(values) for name, values in found.items()}


def interval(estimate: float, samples: np.ndarray, limit: float = 1.0) -> Interval:
    """The interval of an estimate from its resamples, within ``-limit`` to ``limit``.

    Their quantiles, moved so that their median is the estimate: trainings that are drawn with
    replacement make truth noisier than it is, and every tau smaller.
    """
    samples = samples[np.isfinite(samples)]
    if math.isnan(estimate) or not len(samples):
        return Interval(estimate, math.nan, math.nan)
    tail = (1 - _CONFIDENCE) / 2
    low, middle, high = np.quantile(samples, [tail, 0.5, 1 - tail])
    ends = (estimate + low - middle, estimate + high - middle)
    return Interval(estimate, *(float(np.clip(end, -limit, limit)) for end in ends))


def split_ceiling(scores: np.ndarray) -> float:
    """:meth:`Spread.ceiling` of the means of all seeds, from how well trainings agree in ranks.

    The mean tau between the means of two groups of seeds, over all splits into halves (as equal as
    can be), is turned into the ratio of noise and spread that it would have for normal deviates,
    and that into the ceiling. NaN with one seed.
    """
    seeds = scores.shape[1]
    if seeds < 2:
        return math.nan
    values, half = centred(scores), seeds // 2
    taus = []
    for chosen in itertools.combinations(range(seeds), half):
        others = [seed for seed in range(seeds) if seed not in chosen]
        taus.append(tau_b(values[:, list(chosen)].mean(1), values[:, others].mean(1)))
    correlation = math.sin(math.pi / 2 * float(np.mean(taus)))
    if not correlation > 0:
        return 0.0
    # (1 + noise / m) (1 + noise / n) = 1 / correlation^2, with noise in squares of the spread.
    m, n = half, seeds - half
    a, b, c = 1 / (m * n), 1 / m + 1 / n, 1 - correlation**-2
    noise = (math.sqrt(b * b - 4 * a * c) - b) / (2 * a)
    return 2 / math.pi * math.asin(math.sqrt(1 / (1 + noise / seeds)))


def best_of_random(scores: np.ndarray, count: int, *, seed: int = 0, draws: int = 2000) -> float:
    """Expected truth of the network that does best in one training of ``count`` random ones.

    What the compute of ``count`` trainings buys without a supernet. The training that chooses is
    that of the first seed; the truth is the mean of the others, which are not chosen by (of the
    one, if there is one seed). All networks are drawn where there are fewer than ``count``.
    """
    values = centred(scores)
    truth = values[:, 1:].mean(axis=1) if values.shape[1] > 1 else values[:, 0]
    rng, networks = np.random.default_rng(seed), len(values)
    count = min(count, networks)
    found = []
    for _ in range(draws if count < networks else 1):
        chosen = rng.choice(networks, count, replace=False)
        found.append(truth[chosen[np.argmax(values[chosen, 0])]])
    return float(np.mean(found))
