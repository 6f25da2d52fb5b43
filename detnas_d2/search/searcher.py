"""Ask/tell bookkeeping shared by the searchers that work generation by generation.

A searcher proposes paths as tuples of op indices (`ask`) and is told their fitness (`tell`). It
knows nothing of networks. Its proposals depend on the settings, the seed and the fitness values
alone: every generation draws from its own generator, seeded by (seed, generation), and ties are
broken by the order of proposal. Telling the same values again therefore replays a search.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Sequence
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from detnas_d2.search_space import Choices
from detnas_d2.utils.errors import InputError

logger = logging.getLogger("detnas_d2.search")

ENUMERABLE = 100_000
"""Spaces of at most this many paths are enumerated when random drawing finds nothing new."""

Feasible = Callable[[Choices], bool]


class SearchSpaceExhausted(InputError):
    """The constraint admits no path, or too few to be found by drawing."""


def draw(rng: random.Random, n: int) -> int:
    """Uniform integer in [0, n).

    From ``rng.random()`` alone: it is the only method whose sequence Python guarantees to stay
    the same from version to version, and a search must replay after an upgrade.
    """
    return int(rng.random() * n)


class Draft:
    """A generation while it is being put together: no repeats, nothing infeasible, bounded work."""

    def __init__(self, evaluated: Container[Choices], feasible: Feasible, attempts: int) -> None:
        self.members: dict[Choices, str] = {}  # path -> origin, in order of proposal
        self.drawn = 0
        self.infeasible = 0
        self._evaluated = evaluated
        self._feasible = feasible
        self._attempts = attempts

    def offer(self, choices: Choices, origin: str) -> bool:
        """Take `choices` in if it is new and feasible; True if so."""
        self.drawn += 1
        if choices in self.members or choices in self._evaluated:
            return False
        if not self._feasible(choices):
            self.infeasible += 1
            return False
        self.members[choices] = origin
        return True

    def fill(self, origin: str, count: int, propose: Callable[[], Choices]) -> None:
        """Add up to `count` proposals; gives up after ``count * attempts`` of them."""
        found = 0
        for _ in range(max(count, 0) * self._attempts):
            if self.offer(propose(), origin):
                found += 1
                if found == count:
                    return


class GenerationSearcher(ABC):
    """Base of the searchers. Subclasses say how a generation is bred (`_breed`).

    Args:
        cardinalities: number of ops to choose from, per layer.
        population: candidates per generation.
        generations: how many generations to evaluate.
        seed: any integer.
        feasible: predicate of the constraint; default: every path.
        constraint: text of the constraint, for error messages.
        attempts: draws per wanted candidate before giving up.

    Raises:
        SearchSpaceExhausted: the first generation cannot be filled although the space is larger.
    """

    def __init__(
        self,
        cardinalities: Sequence[int],
        *,
        population: int,
        generations: int,
        seed: int,
        feasible: Feasible | None = None,
        constraint: str = "the constraint",
        attempts: int = 1000,
    ) -> None:
        if not cardinalities or min(cardinalities) < 1:
            raise ValueError(f"cardinalities must be positive integers, got {cardinalities!r}")
        if min(population, generations, attempts) < 1:
            raise ValueError(
                "population, generations and attempts must be at least 1, got "
                f"{population}, {generations} and {attempts}"
            )
        self.cardinalities = tuple(cardinalities)
        self.seed = seed
        self._population_size = population
        self._generations = generations
        self._feasible = feasible or (lambda choices: True)
        self._constraint = constraint
        self._attempts = attempts
        self._results: dict[Choices, float | None] = {}
        self._order: dict[Choices, int] = {}  # path -> number of proposal over the whole search
        self._current: dict[Choices, str] = {}
        self._untold = 0
        self._generation = 0
        self._exhausted = False
        self._start_generation()

    # -- the interface of the driver --------------------------------------------------------

    def ask(self) -> list[Choices]:
        """Candidates of the current generation that were not told yet, in order of proposal."""
        return [choices for choices in self._current if choices not in self._results]

    def tell(self, choices: Sequence[int], fitness: float | None) -> None:
        """Report one asked candidate, in any order; None: its evaluation failed.

        Raises:
            ValueError: not asked in this generation, told already, or a fitness not finite.
        """
        choices = tuple(choices)
        if choices not in self._current:
            raise ValueError(f"{choices} was not asked for in generation {self.generation}")
        if choices in self._results:
            raise ValueError(f"{choices} was told already")
        if fitness is not None and not math.isfinite(fitness):
            raise ValueError(f"fitness of {choices} is {fitness}; tell None for a failed candidate")
        self._results[choices] = fitness
        self._untold -= 1
        if not self._untold:
            self._generation += 1
            if self._generation < self._generations:
                self._start_generation()

    @property
    def done(self) -> bool:
        """Nothing left to ask: all generations were told, or the space has no new path."""
        return self._exhausted or self._generation >= self._generations

    @property
    def generation(self) -> int:
        """Number of the current generation, from 1; one more than the last one's once `done`."""
        return self._generation + 1

    @property
    def population(self) -> tuple[Choices, ...]:
        """All candidates of the current generation, told or not; the last one's once `done`."""
        return tuple(self._current)

    @property
    def origins(self) -> tuple[str, ...]:
        """Origin of each of `population`: random, mutation, crossover, predicted or
        enumeration.
        """
        return tuple(self._current.values())

    @property
    def best(self) -> tuple[Choices, float] | None:
        """The fittest candidate told so far (of equals the first proposed) and its fitness."""
        ranked = self._ranked(self._results)
        fitness = self._results[ranked[0]] if ranked else None
        return None if fitness is None else (ranked[0], fitness)

    @property
    def generations(self) -> int:
        """Generations the search will run."""
        return self._generations

    @property
    def expected(self) -> int:
        """Candidates the whole search will evaluate, if the space holds that many."""
        return self._generations * self._population_size

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Everything that determines the proposals besides the fitness, as plain values."""

    # -- making a generation ----------------------------------------------------------------

    def _size(self, generation: int) -> int:
        """Candidates wanted in `generation`."""
        return self._population_size

    @abstractmethod
    def _breed(self, draft: Draft, rng: random.Random) -> None:
        """Add children to `draft`; whatever is missing afterwards is drawn at random."""

    def _ranked(self, among: Any) -> list[Choices]:
        """Those of `among` that have a fitness, the fittest first, ties in order of proposal."""
        results = self._results
        alive = {c: fitness for c in among if (fitness := results.get(c)) is not None}
        return sorted(alive, key=lambda c: (-alive[c], self._order[c]))

    def _random(self, rng: random.Random) -> Choices:
        return tuple(draw(rng, n) for n in self.cardinalities)

    def _start_generation(self) -> None:
        rng = random.Random(f"detnas_d2.search/{self.seed}/{self._generation}")
        draft = Draft(self._results, self._feasible, self._attempts)
        wanted = self._size(self._generation)
        self._breed(draft, rng)
        draft.fill("random", wanted - len(draft.members), lambda: self._random(rng))
        if len(draft.members) < wanted:
            enumerated = self._enumerate(draft, rng, wanted)
            if len(draft.members) < wanted:
                self._report_shortfall(draft, enumerated, wanted)
        if not draft.members:
            self._exhausted = True
            return
        self._current = draft.members
        self._untold = len(draft.members)
        for choices in draft.members:
            self._order[choices] = len(self._order)

    def _enumerate(self, draft: Draft, rng: random.Random, wanted: int) -> bool:
        """Fill up from the list of all paths if the space is small; True if it was listed."""
        if math.prod(self.cardinalities) > ENUMERABLE:
            return False
        rest = list(itertools.product(*(range(n) for n in self.cardinalities)))
        while rest and len(draft.members) < wanted:
            chosen = draw(rng, len(rest))
            rest[chosen], rest[-1] = rest[-1], rest[chosen]
            draft.offer(rest.pop(), "enumeration")
        return True

    def _report_shortfall(self, draft: Draft, enumerated: bool, wanted: int) -> None:
        """The generation is smaller than wanted: an error at the start, a warning later."""
        found = len(draft.members)
        accepted = (draft.drawn - draft.infeasible) / draft.drawn
        looked = f"{draft.drawn} draws, of which {accepted:.3%} satisfy {self._constraint}" + (
            f" (all {math.prod(self.cardinalities)} paths were tried)" if enumerated else ""
        )
        if self._generation == 0 and (found == 0 or not enumerated):
            raise SearchSpaceExhausted(
                f"found {found} of the {wanted} paths of the first generation in {looked}; "
                f"loosen the constraint or raise the number of attempts ({self._attempts} per path)"
            )
        logger.warning(
            "generation %d has %d of %d candidates: no further new path in %s%s",
            self.generation,
            found,
            wanted,
            looked,
            "" if found else "; the search ends here",
        )


class Sizes(Protocol):
    """What the settings of a searcher have, whatever else they have."""

    @property
    def population(self) -> int: ...
    @property
    def generations(self) -> int: ...
    @property
    def attempts(self) -> int: ...


S = TypeVar("S", bound=Sizes)


class SettingsSearcher(GenerationSearcher, Generic[S]):
    """A searcher whose proposals follow from settings, a dataclass, the seed and the fitness.

    Args:
        settings: of the strategy.
        The others are those of `GenerationSearcher`.
    """

    strategy: ClassVar[str]

    def __init__(
        self,
        cardinalities: Sequence[int],
        settings: S,
        *,
        seed: int,
        feasible: Feasible | None = None,
        constraint: str = "the constraint",
    ) -> None:
        self.settings = settings
        super().__init__(
            cardinalities,
            population=settings.population,
            generations=settings.generations,
            seed=seed,
            feasible=feasible,
            constraint=constraint,
            attempts=settings.attempts,
        )

    def describe(self) -> dict[str, Any]:
        settings = dataclasses.asdict(self.settings)  # type: ignore[call-overload]  # a dataclass
        return {"strategy": self.strategy, "seed": self.seed, "settings": settings}
