"""Regularised ("aging") evolution (Real et al., arXiv 1802.01548, Algorithm 1)."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass

from detnas_d2.search.searcher import Draft, SettingsSearcher, draw, logger
from detnas_d2.search.variation import change_one
from detnas_d2.search_space import Choices


@dataclass(frozen=True)
class RegularizedSettings:
    """The numbers of the algorithm, whose P is `alive`, and S `sample`.

    Attributes:
        population: candidates per generation; the children of a generation are proposed together.
        generations: generations evaluated, the random ones included.
        alive: the candidates proposed last, so many, may be drawn as parents; the older are dead.
            As many are drawn at random before the first has a child.
        sample: candidates drawn, with replacement, in each tournament.
        attempts: draws per wanted child before giving up.
    """

    population: int
    generations: int
    alive: int
    sample: int
    attempts: int = 1000

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.sample > self.alive:
            raise ValueError(
                f"sample {self.sample} exceeds the {self.alive} candidates alive, which "
                "tournaments draw from"
            )
        if self.alive >= self.population * self.generations:
            raise ValueError(
                f"alive {self.alive} with population {self.population} and generations "
                f"{self.generations}: all candidates would be drawn at random; expected alive "
                f"below {self.population * self.generations}, the candidates of the search"
            )


class RegularizedEvolution(SettingsSearcher[RegularizedSettings]):
    """Aging evolution as an ask/tell object; see `GenerationSearcher` for the interface.

    The fittest of a few candidates drawn from those alive gets a child: itself with another
    operation in one layer. The oldest dies for it, however fit it is, so a candidate that was
    lucky once does not stay.

    The algorithm proposes one child at a time, each from all evaluated before. Here a generation
    is proposed together, from what was alive after the last one, since candidates are evaluated
    together; with `population` 1 it is the algorithm. No path is proposed twice, and a failed
    candidate takes its place among those alive without ever winning.
    """

    strategy = "regularized"

    def _breed(self, draft: Draft, rng: random.Random) -> None:
        born = list(self._order)  # in order of proposal
        children = self.settings.population - max(self.settings.alive - len(born), 0)
        if children < 1:
            return
        ranked = self._ranked(born[-self.settings.alive :])
        if not ranked:
            ranked = self._ranked(born)[: self.settings.alive]
            logger.warning(
                "generation %d: none of the %d candidates alive has a fitness; %s",
                self.generation,
                self.settings.alive,
                "taking parents from the history" if ranked else "random paths instead",
            )
        if ranked:
            draft.fill("mutation", children, lambda: self._child(ranked, rng))

    def _child(self, ranked: Sequence[Choices], rng: random.Random) -> Choices:
        """One change to the winner of a tournament among paths that are in order of fitness."""
        winner = min(draw(rng, len(ranked)) for _ in range(self.settings.sample))
        return change_one(ranked[winner], self.cardinalities, rng)
