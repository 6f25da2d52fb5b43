"""What a search by table sees: a surrogate's scores with errors, as those of a supernet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import optimize, special

from detnas_d2.search.surrogate import Floats, Paths, Surrogate
from detnas_d2.utils.errors import InputError


@dataclass(frozen=True)
class Landscape:
    """What the searches of all seeds see.

    Attributes:
        best: score of the best path within the limit.
        error: standard deviation of the difference between fitness and score.
        shared: part of the error's variance that is a sum over layers.
    """

    surrogate: Surrogate
    best: float
    error: float
    shared: float

    def fitness(self, paths: Paths, seed: int) -> Floats:
        """Fitness of paths int64[n, layers] by the supernet of a seed: float64[n]."""
        sizes = [len(row) for row in self.surrogate.rows]
        error = math.sqrt(1 - self.shared) * path_normals(paths, sizes, seed)
        if self.shared:
            tables = operation_errors(tuple(sizes), seed)
            common = sum(table[paths[:, layer]] for layer, table in enumerate(tables))
            error += math.sqrt(self.shared) * common
        return self.surrogate.scores(paths) + self.error * error

    def regret(self, paths: Paths) -> Floats:
        return self.best - self.surrogate.scores(paths)


@lru_cache(maxsize=4)
def operation_errors(sizes: tuple[int, ...], seed: int) -> list[Floats]:
    """For each layer errors of its operations; those of all paths have mean 0, variance 1."""
    rng = np.random.default_rng(seed)
    tables = [rng.normal(size=size) for size in sizes]
    spread = math.sqrt(sum(table.var() for table in tables))
    return [(table - table.mean()) / spread for table in tables]


def path_normals(paths: Paths, sizes: Sequence[int], seed: int) -> Floats:
    """A standard normal number for each path, a function of the path and the seed alone."""
    key = np.full(len(paths), seed, np.uint64)
    for layer, size in enumerate(sizes):
        key = key * np.uint64(size) + paths[:, layer].astype(np.uint64)
        for shift in (30, 27, 31):  # SplitMix64, a step for each layer
            key = (key ^ (key >> np.uint64(shift))) * np.uint64(0x9E3779B97F4A7C15)
    return special.ndtri(((key >> np.uint64(11)).astype(np.float64) + 0.5) / 2**53)


def expected_tau(truth: Floats, error: float) -> float:
    """Mean of Kendall's tau between scores and the scores with independent normal errors."""
    distance = np.abs(truth[:, None] - truth)[np.triu_indices(len(truth), 1)]
    return float(np.mean(2 * special.ndtr(distance / (math.sqrt(2) * error)) - 1))


def error_for(truth: Floats, tau: float) -> float:
    """Standard deviation of the errors with which the tau of the fitness is expected."""
    if tau == 1:
        return 0.0
    spread = float(np.std(truth))
    if not spread or not 0 < tau < expected_tau(truth, 1e-6 * spread):
        raise InputError(f"tau {tau:g}: expected one above 0, at most 1, and scores that differ")

    def excess(log: float) -> float:
        return expected_tau(truth, math.exp(log) * spread) - tau

    return math.exp(optimize.brentq(excess, -13.0, 13.0)) * spread
