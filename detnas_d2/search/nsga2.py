"""Evolutionary search of several objectives: NSGA-II (Deb et al., IEEE TEC 6(2), 2002)."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from detnas_d2.search.dominance import crowding_distances, dominance_ranks
from detnas_d2.search.searcher import Draft, SettingsSearcher, draw, logger
from detnas_d2.search.variation import check_children, cross, redraw
from detnas_d2.search_space import Choices

CostsOf = Callable[[Choices], Sequence[float]]


@dataclass(frozen=True)
class NSGA2Settings:
    """The numbers of the algorithm.

    Attributes:
        population: children per generation; as many survive as parents of the next.
        generations: generations evaluated, the random first one included.
        mutation, crossover, random: children of each kind per generation from the second one on.
            What is missing to `population` is drawn at random.
        mutation_prob: probability that a mutation draws a gene again, from all ops of the layer.
        objectives: "fitness", and the costs that are minimised.
        attempts: draws per wanted child before giving up.
    """

    population: int
    generations: int
    mutation: int
    crossover: int
    random: int
    mutation_prob: float
    objectives: tuple[str, ...]
    attempts: int = 1000

    def __post_init__(self) -> None:
        for name in ("population", "generations", "attempts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        check_children(self)
        if self.crossover and self.population < 2:
            raise ValueError(
                f"crossover {self.crossover} with population {self.population}: a child of one "
                "parent is that parent; take a larger population, or crossover 0"
            )


class NSGA2(SettingsSearcher[NSGA2Settings]):
    """NSGA-II as an ask/tell object; see `GenerationSearcher` for the interface.

    Parents and children compete together: by rank of dominance, within a rank by crowding distance,
    the farther the better, then by order of proposal, `population` of them survive. A parent is the
    better of two survivors that are drawn with replacement. Costs are known before anything is
    evaluated, so a candidate is told its fitness alone.

    What differs from the paper: a child is made by uniform crossover of two parents or by mutation
    of one, as the evolution of one objective makes them, instead of one after the other; no path is
    proposed twice; and the limits need no dominance of their own (section VI there), since paths
    that do not keep them are never proposed.

    Args:
        costs_of: what a path costs: numbers to be minimised, those of ``settings.objectives``.
        The others are those of `SettingsSearcher`.
    """

    strategy = "nsga2"

    def __init__(
        self,
        cardinalities: Sequence[int],
        settings: NSGA2Settings,
        *,
        costs_of: CostsOf,
        **options: Any,
    ) -> None:
        self._costs_of = costs_of
        self._survivors: list[Choices] = []  # best first
        super().__init__(cardinalities, settings, **options)

    def _breed(self, draft: Draft, rng: random.Random) -> None:
        born = [c for c in self._current if self._results[c] is not None]
        self._survivors = self._selected([*self._survivors, *born])
        parents, settings = self._survivors, self.settings
        if not parents:  # the first generation, or everything failed so far
            return
        draft.fill("mutation", settings.mutation, lambda: self._mutate(rng))
        if len(parents) > 1:
            draft.fill("crossover", settings.crossover, lambda: self._cross(rng))
        elif settings.crossover:
            logger.warning(
                "generation %d: one parent has a fitness, so no crossover; random paths instead",
                self.generation,
            )

    def _selected(self, among: list[Choices]) -> list[Choices]:
        """The survivors of those that have a fitness, best first."""
        if not among:
            return []
        among = sorted(among, key=self._order.__getitem__)
        points = np.array([self._point(c) for c in among], float)
        ranks = dominance_ranks(points)
        crowding = np.empty(len(among))
        for rank in range(ranks.max() + 1):
            front = ranks == rank
            crowding[front] = crowding_distances(points[front])
        best = np.lexsort((-crowding, ranks))  # stable: ties stay in order of proposal
        return [among[i] for i in best[: self.settings.population]]

    def _point(self, choices: Choices) -> tuple[float, ...]:
        """What is minimised."""
        fitness = self._results[choices]
        assert fitness is not None
        return (-fitness, *self._costs_of(choices))

    def _parent(self, rng: random.Random) -> Choices:
        """The winner of a tournament of two: survivors are in order."""
        count = len(self._survivors)
        return self._survivors[min(draw(rng, count), draw(rng, count))]

    def _mutate(self, rng: random.Random) -> Choices:
        return redraw(self._parent(rng), self.cardinalities, self.settings.mutation_prob, rng)

    def _cross(self, rng: random.Random) -> Choices:
        return cross(self._parent(rng), self._parent(rng), rng)
