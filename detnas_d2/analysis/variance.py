"""How much of the spread of scores lies between networks, and how much between trainings of one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Spread:
    """Variance components of scores, one per network and seed.

    Attributes:
        networks, seeds: how many.
        between: standard deviation of the networks' true scores.
        within: standard deviation of one training's score around its network's true score, without
            what a seed does to all networks alike; NaN with one seed.
    """

    networks: int
    seeds: int
    between: float
    within: float

    @classmethod
    def of(cls, scores: np.ndarray | Sequence[Sequence[float]]) -> Spread:
        """From ``scores[network][seed]``, two networks or more with the same seeds each.

        A two-way layout without replication: what is left of the scores after the means of
        networks and of seeds is the noise, with (n - 1) (k - 1) degrees of freedom; the variance
        of the means less its share of the noise, not below 0, is that of the networks.
        """
        values = np.asarray(scores, dtype=float)
        networks, seeds = values.shape
        means = values.mean(axis=1)
        if seeds == 1:
            return cls(networks, seeds, float(means.std(ddof=1)), math.nan)
        rest = values - means[:, None] - values.mean(axis=0) + values.mean()
        noise = float((rest**2).sum()) / ((networks - 1) * (seeds - 1))
        between = max(0.0, float(means.var(ddof=1)) - noise / seeds)
        return cls(networks, seeds, math.sqrt(between), math.sqrt(noise))

    @property
    def ratio(self) -> float:
        """``between / within``; infinite without noise, 0 if there is neither."""
        if self.within == 0:
            return math.inf if self.between > 0 else 0.0
        return self.between / self.within

    def ceiling(self, seeds: int) -> float:
        """Kendall's tau that a perfect ranker reaches against means of ``seeds`` trainings.

        2/pi asin(r), where r is the correlation of the means with the true scores, for normal
        deviates (Greiner's relation). 0 without a spread between networks.
        """
        variance = self.between**2 + self.within**2 / seeds
        if variance == 0:
            return 0.0
        return 2 / math.pi * math.asin(math.sqrt(self.between**2 / variance))
