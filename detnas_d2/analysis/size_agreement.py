"""Whether two image sizes rank architectures alike, beyond the noise of the supernets that score.

Two supernets of one space rank the same architectures differently even at one size. So sizes are
compared across supernets, and with what supernets agree in at each size.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from detnas_d2.analysis.rank_statistics import RESAMPLES, Interval, interval, tau_b


@dataclass(frozen=True)
class Agreement:
    """Kendall's taus of the scores of the same architectures by two supernets, means over all pairs
    of supernets; intervals are about the choice of architectures.

    Attributes:
        at_first, at_second: both supernets at one of the two sizes.
        across: one at each.
        expected: what ``across`` would be if the order did not depend on the size.
        loss: ``expected`` less ``across``.
    """

    at_first: Interval
    at_second: Interval
    across: Interval
    expected: Interval
    loss: Interval

    @property
    def verdict(self) -> str:
        """What the interval of the loss shows."""
        if self.loss.low > 0:
            return "they are ranked otherwise"
        return "no difference shown"


def agreement(
    first: np.ndarray, second: np.ndarray, *, seed: int = 0, resamples: int = RESAMPLES
) -> Agreement:
    """The agreement of two sizes.

    Args:
        first, second: float[S, N], scores of N architectures at either size by S supernets, two at
            least.

    Of normal deviates tau is 2/pi asin(r), and a correlation r across sizes is at most the root of
    the product of those at each: hence ``expected``, which is 0 where the supernets do not agree.
    """
    rng = np.random.default_rng(seed)
    networks = first.shape[1]
    estimate = _taus(first, second, None)
    drawn = np.array(
        [
            _taus(first, second, rng.multinomial(networks, np.full(networks, 1 / networks)))
            for _ in range(resamples)
        ]
    )
    # A difference of taus goes to 2.
    limits = (1.0, 1.0, 1.0, 1.0, 2.0)
    columns = zip(estimate, drawn.T, limits, strict=True)
    return Agreement(*(interval(value, samples, limit) for value, samples, limit in columns))


def _taus(first: np.ndarray, second: np.ndarray, weights: np.ndarray | None) -> tuple[float, ...]:
    pairs = list(itertools.combinations(range(len(first)), 2))
    at_first = _mean(tau_b(first[i], first[j], weights) for i, j in pairs)
    at_second = _mean(tau_b(second[i], second[j], weights) for i, j in pairs)
    both_ways = [*pairs, *((j, i) for i, j in pairs)]
    across = _mean(tau_b(first[i], second[j], weights) for i, j in both_ways)
    r = _correlation(at_first) * _correlation(at_second)
    expected = 2 / math.pi * math.asin(math.sqrt(r))
    return at_first, at_second, across, expected, expected - across


def _mean(taus: Iterable[float]) -> float:
    return float(np.mean(list(taus)))


def _correlation(tau: float) -> float:
    return max(math.sin(math.pi / 2 * tau), 0.0)
