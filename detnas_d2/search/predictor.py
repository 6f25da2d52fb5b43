"""Search guided by a regression of fitness on choices, fitted anew for every generation."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from detnas_d2.search.one_hot import one_hot
from detnas_d2.search.searcher import Draft, SettingsSearcher, draw
from detnas_d2.search.variation import change_one, cross
from detnas_d2.search_space import Choices
from detnas_d2.utils.errors import InputError

Predict = Callable[[Sequence[Choices]], list[float]]

# Strengths of the ridge penalty that leave-one-out errors choose from, in evaluations of an
# operation: a worth that is seen as often as this is believed by half.
ALPHAS = (0.1, 1.0, 10.0, 100.0, 1000.0)
# The pool is drawn in as many parts, each bred from the best by prediction so far.
_ROUNDS = 3
# Draws for each place in the pool; a pool that stays smaller does no harm.
_POOL_ATTEMPTS = 3
# Decimals of a prediction in standard deviations of the fitness. Coarser than rounding errors, so
# that another machine or library ranks alike.
_DECIMALS = 6


@dataclass(frozen=True)
class PredictorSettings:
    """The numbers of a predictor-guided search.

    Attributes:
        population: candidates per generation.
        generations: generations evaluated, the random first one included.
        parents: how many of the best by prediction have children in the pool.
        pool: paths that the regression looks at per candidate, a third each by mutation,
            crossover and at random.
        random_share: part of every generation that is drawn at random whatever is predicted.
        attempts: random draws per wanted candidate before giving up.
    """

    population: int
    generations: int
    parents: int
    pool: int
    random_share: float
    attempts: int = 1000

    def __post_init__(self) -> None:
        for name in ("population", "generations", "parents", "pool", "attempts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0.0 <= self.random_share < 1.0:
            raise ValueError(f"random_share must be in [0, 1), got {self.random_share}")


class PredictorSearch(SettingsSearcher[PredictorSettings]):
    """Predictor-guided search as an ask/tell object; see `GenerationSearcher` for the interface.

    After a random first generation, ridge regression (scikit-learn's, the penalty chosen by
    leave-one-out errors) learns from all evaluated candidates what every operation is worth in
    every layer. A pool of paths is bred from those of the best predictions, and the best of it
    by prediction are evaluated, next to a share of random paths. The regression averages the
    noise of the fitness over all paths with an operation; what operations are worth only together
    it does not see, and what the fitness gets wrong about an operation it believes.

    Predictions are rounded and ties broken by order, so proposals do not hang on rounding errors.
    A version of scikit-learn that computes something else would propose other paths: resuming a
    search then ends with a `ReplayError`, never with a mixture.

    Raises:
        InputError: scikit-learn is not installed.
    """

    strategy = "predictor"

    def __init__(
        self, cardinalities: Sequence[int], settings: PredictorSettings, **options: Any
    ) -> None:
        try:
            from sklearn.linear_model import RidgeCV
        except ImportError:
            raise InputError(
                'a search by "predictor" needs scikit-learn: pip install scikit-learn'
            ) from None
        self._regression = RidgeCV
        super().__init__(cardinalities, settings, **options)

    def _breed(self, draft: Draft, rng: random.Random) -> None:
        told = [c for c in self._order if self._results[c] is not None]  # in order of proposal
        if len(told) < 2:  # the first generation, or nearly everything failed so far
            return
        settings = self.settings
        # As many random ones as the share says, but one predicted candidate at least.
        wanted = settings.population - int(settings.random_share * settings.population)
        for choices in self._pool(told, self._fit(told), rng)[:wanted]:
            draft.offer(choices, "predicted")

    def _pool(self, told: list[Choices], predict: Predict, rng: random.Random) -> list[Choices]:
        """New feasible paths, the best by prediction first, ties in order of their draw."""
        pool = Draft(self._results, self._feasible, _POOL_ATTEMPTS)
        known, predicted = list(told), predict(told)
        ranked = _order(predicted)
        for size in _shares(self.settings.pool * self.settings.population, _ROUNDS):
            self._draw([known[i] for i in ranked[: self.settings.parents]], size, pool, rng)
            found = list(pool.members)[len(known) - len(told) :]
            if found:
                known += found
                predicted += predict(found)
                ranked = _order(predicted)
        return [known[i] for i in ranked if i >= len(told)]

    def _draw(self, parents: Sequence[Choices], size: int, pool: Draft, rng: random.Random) -> None:
        """Adds up to `size` paths to the pool, a third each from changes, crossover and chance."""
        kinds = (
            lambda: change_one(_one_of(parents, rng), self.cardinalities, rng),
            lambda: cross(_one_of(parents, rng), _one_of(parents, rng), rng),
            lambda: self._random(rng),
        )
        for kind, count in zip(kinds, _shares(size, len(kinds)), strict=True):
            pool.fill("predicted", count, kind)

    def _fit(self, told: Sequence[Choices]) -> Predict:
        """A regression of the fitness of `told`; predictions are rounded, of no unit."""
        fitness = np.array([self._results[c] for c in told], float)
        unit = fitness.std() or 1.0
        target = (fitness - fitness.mean()) / unit
        model = self._regression(alphas=ALPHAS).fit(one_hot(told, self.cardinalities), target)
        weights, base = model.coef_, model.intercept_

        def predict(paths: Sequence[Choices]) -> list[float]:
            values = one_hot(paths, self.cardinalities) @ weights + base
            return [float(value) for value in np.round(values, _DECIMALS)]

        return predict


def _order(values: Sequence[float]) -> list[int]:
    """Positions of the values, largest first, equal ones in order."""
    return sorted(range(len(values)), key=lambda i: -values[i])


def _one_of(paths: Sequence[Choices], rng: random.Random) -> Choices:
    return paths[draw(rng, len(paths))]


def _shares(total: int, parts: int) -> list[int]:
    """The total in parts that differ by one at most."""
    return [(total * (i + 1)) // parts - (total * i) // parts for i in range(parts)]
