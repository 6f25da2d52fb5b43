"""Evolutionary search over paths (DetNAS, arXiv 1903.10979, Algorithm 2)."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from detnas_d2.search.searcher import Draft, SettingsSearcher, draw, logger
from detnas_d2.search.variation import check_children, cross, redraw
from detnas_d2.search_space import Choices

PARENT_SOURCES = ("population", "history")


@dataclass(frozen=True)
class EvolutionSettings:
    """The numbers of Algorithm 2.

    Attributes:
        population: candidates per generation.
        generations: generations evaluated, the random first one included.
        parents: how many of the fittest may have children.
        mutation, crossover, random: children of each kind per generation from the second one on.
            What is missing to `population`, because the three sum to less or because nothing new
            was found, is drawn at random.
        mutation_prob: probability that a mutation draws a gene again (from all ops of the layer,
            so a quarter of the draws of four ops change nothing).
        parents_from: "population": the fittest of the current generation; "history": of all.
        attempts: draws per wanted child before giving up.
    """

    population: int
    generations: int
    parents: int
    mutation: int
    crossover: int
    random: int
    mutation_prob: float
    parents_from: str
    attempts: int = 1000

    def __post_init__(self) -> None:
        for name in ("population", "generations", "parents", "attempts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        check_children(self)
        if self.parents_from not in PARENT_SOURCES:
            raise ValueError(f"parents_from must be in {PARENT_SOURCES}, got {self.parents_from!r}")
        self._refuse_children_that_cannot_be()

    def _refuse_children_that_cannot_be(self) -> None:
        """Their places would be filled at random, without a word."""
        if self.crossover and self.parents < 2:
            raise ValueError(
                f"crossover {self.crossover} with parents {self.parents}: a child of one parent is "
                "that parent; take 2 parents or more, or crossover 0"
            )
        if self.crossover and self.population < 2 and self.parents_from == "population":
            raise ValueError(
                f"crossover {self.crossover} with population {self.population}: a generation of "
                "one has one parent; take a larger population, or crossover 0"
            )

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> EvolutionSettings:
        """Preset "paper" (Algorithm 2) or "release" (the authors' code), with fields overridden.

        A `population` other than the preset's 50 scales the children and parents that are not
        overridden themselves, so that a small search keeps the proportions; two parents at least,
        and mutation alone in a population of one.
        """
        if name not in PRESETS:
            raise ValueError(f"unknown preset {name!r}, expected one of {sorted(PRESETS)}")
        base = PRESETS[name]
        population = overrides.get("population", base.population)
        scaled = {}
        if population != base.population and population >= 1:
            scaled["mutation"] = base.mutation * population // base.population
            scaled["random"] = base.random * population // base.population
            scaled["crossover"] = population - scaled["mutation"] - scaled["random"]
            scaled["parents"] = max(2, round(base.parents * population / base.population))
            if population == 1:
                scaled |= {"mutation": 1, "crossover": 0, "parents": 1}
        return dataclasses.replace(base, **{**scaled, **overrides})


PRESETS = {
    # Algorithm 2: |P| = 50, T = 20, top 10 of P(j), half crossover, half mutation.
    "paper": EvolutionSettings(
        population=50,
        generations=20,
        parents=10,
        mutation=25,
        crossover=25,
        random=0,
        mutation_prob=0.1,
        parents_from="population",
    ),
    # The released search: top 10 of everything evaluated, and a fifth of fresh blood.
    "release": EvolutionSettings(
        population=50,
        generations=20,
        parents=10,
        mutation=20,
        crossover=20,
        random=10,
        mutation_prob=0.1,
        parents_from="history",
    ),
}


class Evolution(SettingsSearcher[EvolutionSettings]):
    """Algorithm 2 as an ask/tell object; see `GenerationSearcher` for the interface.

    Differences from the authors' code, none of which changes what is searched for: no candidate
    is proposed twice, drawing is bounded (theirs can loop forever once the parents have
    converged), a failed evaluation is recorded instead of repeated.

    >>> search = Evolution((4,) * 20, EvolutionSettings.preset("paper"), seed=1)
    >>> while not search.done:
    ...     for choices in search.ask():
    ...         search.tell(choices, -sum(choices))
    """

    strategy = "evolution"

    def _parents(self) -> list[Choices]:
        """The fittest, best first, of the generation just told or of the whole history.

        If a whole generation failed there is nobody in it to breed from, and the history steps in.
        """
        if self.settings.parents_from == "population":
            alive = self._ranked(self._current)
            if alive or not self._results:
                return alive[: self.settings.parents]
            logger.warning(
                "no candidate of generation %d has a fitness; taking parents from the history",
                self.generation - 1,
            )
        return self._ranked(self._results)[: self.settings.parents]

    def _breed(self, draft: Draft, rng: random.Random) -> None:
        parents = self._parents()
        if not parents:  # the first generation, or everything failed so far
            return
        settings = self.settings
        if settings.crossover and len(parents) < 2:
            logger.warning(
                "generation %d: one parent has a fitness, so no crossover; random paths instead",
                self.generation,
            )
        draft.fill("mutation", settings.mutation, lambda: self._mutate(parents, rng))
        draft.fill("crossover", settings.crossover, lambda: self._cross(parents, rng))

    def _mutate(self, parents: Sequence[Choices], rng: random.Random) -> Choices:
        """A parent with some genes drawn again.

        A draw that changes nothing is a path evaluated before, which the draft refuses.
        """
        parent = parents[draw(rng, len(parents))]
        return redraw(parent, self.cardinalities, self.settings.mutation_prob, rng)

    def _cross(self, parents: Sequence[Choices], rng: random.Random) -> Choices:
        """Uniform crossover of two parents, drawn with replacement (equal ones are refused)."""
        one = parents[draw(rng, len(parents))]
        return cross(one, parents[draw(rng, len(parents))], rng)
