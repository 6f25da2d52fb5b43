"""Whether the fitness of a supernet ranks networks as their own trainings do: the figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

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
from detnas_d2.search.truth import TruthNetwork, TruthSet
from detnas_d2.utils.errors import InputError

SUPERNET, MACS, PARAMS = "supernet", "multiply-adds", "parameters"
MEAN_RANKS = "mean rank of the supernets"
UNTRAINED, SHORT = "without training (ReLU codes)", "short training of the same total cost"
_LEAST_BAND = 5  # networks of which a tau is told


@dataclass(frozen=True)
class Ranker:
    """How well one score ranks the networks.

    Attributes:
        tau: Kendall's tau-b over the range of costs.
        above_macs: tau less that of multiply-adds, most first or fewest first, whichever ranks
            better; by the same resamples.
        sparse_tau: with truth in whole deviations of one training.
        regrets: k -> truth that its k highest networks miss, in units of the metric.
        band_tau: tau among networks of about the same cost; None with too few.
    """

    name: str
    tau: Interval
    above_macs: Interval
    sparse_tau: float
    spearman: float
    regrets: Mapping[int, float]
    band_tau: Interval | None


@dataclass(frozen=True)
class Certificate:
    """What a truth set says about the scores of its networks.

    Attributes:
        networks, band, seeds: how many: over the range of costs, in the band, trainings of each.
        left_out: networks with too few trainings, or without a score.
        spread: variance components of the networks over the range.
        deviation: standard deviation of their truth.
        ceiling, split_ceiling: tau of a perfect ranker, by the components and by halves of the
            seeds.
        rankers: by each score; the supernet's first, if it has one.
        best_of: number of random networks whose trainings cost what supernet and search do.
        best_of_truth: expected truth of the best of them; :func:`best_of_random`.
        chosen_truth: truth of the network that the supernet ranks highest.
    """

    metric: str
    networks: int
    band: int
    seeds: int
    left_out: int
    spread: Spread
    deviation: float
    ceiling: float
    split_ceiling: float
    rankers: tuple[Ranker, ...]
    best_of: int
    best_of_truth: float
    chosen_truth: float

    def ranker(self, name: str) -> Ranker | None:
        return next((ranker for ranker in self.rankers if ranker.name == name), None)

    def conditions(self) -> dict[str, dict[str, bool]]:
        """Level -> its conditions, each met or not, from the lowest level up.

        A level is reached with all those below it.
        """
        own = self.ranker(SUPERNET)
        if own is None:
            return {}
        tau, band = own.tau, own.band_tau
        ceiling = self.ceiling if math.isfinite(self.ceiling) else math.inf
        return {
            "floor": {
                "the interval of tau excludes 0": tau.low > 0,
                "tau is above that of multiply-adds, by an interval": own.above_macs.low > 0,
            },
            "credible": {
                "tau of 0.50 or more": tau.value >= 0.5,
                "50 networks or more": self.networks >= 50,
            },
            "strong": {"tau of 0.65 or more": tau.value >= 0.65},
            "goal": {
                "tau of 0.75 or more": tau.value >= 0.75,
                "lower bound of 0.65 or more": tau.low >= 0.65,
                "90 % of the ceiling or more": tau.value >= 0.9 * ceiling,
                "tau of 0.50 or more in the band": band is not None and band.value >= 0.5,
            },
        }

    @property
    def level(self) -> str:
        """The highest level whose conditions, and those of all below it, are met."""
        reached = "below the floor"
        for level, conditions in self.conditions().items():
            if not all(conditions.values()):
                break
            reached = level
        return reached


def certify(truth: TruthSet, *, best_of: float, resamples: int = 2000) -> Certificate:
    """The certificate of a truth set.

    Args:
        best_of: cost of supernet and search in trainings of one network.

    Raises:
        InputError: fewer than three networks over the range of costs.
    """
    columns = _columns(truth.networks)
    balanced = truth.balanced()
    whole = [n for n in balanced.ranged if _has_all(n, columns)]
    if len(whole) < 3:
        raise InputError(
            f"{len(whole)} networks with all scores: expected 3 or more to compare rankings"
        )
    scores = np.array([network.scores for network in whole])
    predictors = _predictors(whole, columns)
    means, spread = scores.mean(axis=1), Spread.of(scores)
    banded = [n for n in balanced.banded if _has_all(n, columns)]
    bands = _band_taus(banded, columns, resamples)
    samples = tau_samples(scores, predictors, resamples=resamples)
    macs = tau_b(means, predictors[MACS])
    sign = -1 if macs < 0 else 1  # where networks are trained briefly, cheap ones do better
    rankers = []
    for name, predictor in predictors.items():
        tau = tau_b(means, predictor)
        rankers.append(
            Ranker(
                name,
                interval(tau, samples[name]),
                interval(tau - sign * macs, samples[name] - sign * samples[MACS], limit=2),
                tau_b(sparse(means, spread.within), predictor),
                spearman(means, predictor),
                {top: regret(means, predictor, top) for top in (1, 3)},
                bands.get(name),
            )
        )
    count = max(1, round(best_of))
    own = predictors.get(SUPERNET)
    values = centred(scores).mean(axis=1)
    return Certificate(
        truth.metric,
        len(whole),
        len(banded),
        len(balanced.seeds),
        len(truth.networks) - sum(_has_all(n, columns) for n in balanced.networks),
        spread,
        float(means.std(ddof=1)),
        spread.ceiling(spread.seeds),
        split_ceiling(scores),
        tuple(rankers),
        count,
        best_of_random(scores, count),
        float(values[np.argmax(own)]) if own is not None else math.nan,
    )


def _columns(networks: Sequence[TruthNetwork]) -> list[str]:
    """Names of the scores that most networks have."""
    names = dict.fromkeys(name for network in networks for name in network.others)
    half = len(networks) / 2
    columns = [name for name in names if sum(name in n.others for n in networks) > half]
    supernet = sum(network.supernet is not None for network in networks) > half
    return [SUPERNET] * supernet + columns


def _score(network: TruthNetwork, column: str) -> float | None:
    return network.supernet if column == SUPERNET else network.others.get(column)


def _has_all(network: TruthNetwork, columns: Sequence[str]) -> bool:
    return all(_score(network, column) is not None for column in columns)


def _predictors(networks: Sequence[TruthNetwork], columns: Sequence[str]) -> dict[str, np.ndarray]:
    found = {
        column: np.array([_score(network, column) for network in networks], dtype=float)
        for column in columns
    }
    supernets = [name for name in columns if name.startswith(SUPERNET)]
    if len(supernets) > 1:
        found[MEAN_RANKS] = mean_ranks([found[name] for name in supernets])
    found[MACS] = np.array([network.macs for network in networks], dtype=float)
    found[PARAMS] = np.array([network.params for network in networks], dtype=float)
    return found


def _band_taus(
    networks: Sequence[TruthNetwork], columns: Sequence[str], resamples: int
) -> dict[str, Interval]:
    if len(networks) < _LEAST_BAND:
        return {}
    scores = np.array([network.scores for network in networks])
    predictors = _predictors(networks, columns)
    samples = tau_samples(scores, predictors, resamples=resamples)
    means = scores.mean(axis=1)
    return {
        name: interval(tau_b(means, predictor), samples[name])
        for name, predictor in predictors.items()
    }
