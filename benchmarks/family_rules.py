"""What families.py compares: what a fitness tells, survivors of a search, members of a family."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt
from landscape import Landscape, error_for, path_normals

from detnas_d2.engine.proposals import Proposals
from detnas_d2.evaluation.candidate import CandidateRecord
from detnas_d2.search.front_file import Front
from detnas_d2.search.nsga2 import NSGA2
from detnas_d2.search.objectives import Objectives
from detnas_d2.search.surrogate import Floats, Paths, Surrogate, costs
from detnas_d2.search.truth import TruthSet
from detnas_d2.search_space import Choices

Indices = npt.NDArray[np.int64]
SHARED_ERROR = 0.5
_OTHER_NUMBERS = 10**6  # than those of the errors


@dataclass(frozen=True)
class Setting:
    """What a fitness tells.

    Attributes:
        tau: of the fitness with what it sees; None: nothing is seen, it is an error alone.
        slope: what networks gain with a million multiply-adds.
        seen: whether the fitness sees that.
    """

    tau: float | None
    slope: float
    seen: bool = True

    def __str__(self) -> str:
        told = "tells nothing" if self.tau is None else f"tau {self.tau:g}"
        if not self.slope:
            return told
        hidden = "" if self.seen else " unseen"
        return f"{told}, {self.slope:+g} a million{hidden}"


SETTINGS = (
    Setting(None, 0.0),
    Setting(None, 0.1, seen=False),
    Setting(0.3, 0.0),
    Setting(0.3, 0.1, seen=False),
    Setting(0.8, 0.0),
    Setting(0.8, 0.1),
)


@dataclass(frozen=True)
class World:
    """True scores and fitness of the paths of a space.

    Attributes:
        own: standard deviation of what each path has besides what the surrogate tells.
        error: standard deviation of the fitness's errors.
        seed: of what paths have of their own, and of the errors.
    """

    surrogate: Surrogate
    setting: Setting
    own: float
    error: float
    seed: int

    @classmethod
    def of(
        cls, surrogate: Surrogate, setting: Setting, own: float, seed: int, known: Paths
    ) -> World:
        """With errors that give the tau of the setting over the networks ``known``."""
        world = cls(surrogate, setting, own, 1.0, seed)
        if setting.tau is None:
            return world
        return replace(world, error=error_for(world._seen(known), setting.tau))

    def truth(self, paths: Paths) -> Floats:
        millions = costs(self.surrogate.macs, paths) / 1e6
        return self._without_slope(paths) + self.setting.slope * millions

    def fitness(self, paths: Paths) -> Floats:
        told = 0.0 if self.setting.tau is None else self._seen(paths)
        land = Landscape(self.surrogate, 0.0, self.error, SHARED_ERROR)
        return told + land.fitness(paths, self.seed) - self.surrogate.scores(paths)

    def _seen(self, paths: Paths) -> Floats:
        return self.truth(paths) if self.setting.seen else self._without_slope(paths)

    def _without_slope(self, paths: Paths) -> Floats:
        sizes = [len(row) for row in self.surrogate.rows]
        own = path_normals(paths, sizes, self.seed + _OTHER_NUMBERS)
        return self.surrogate.scores(paths) + self.own * own


def own_deviation(truth: TruthSet, surrogate: Surrogate) -> float:
    """Standard deviation of what networks of a truth set have besides what the surrogate tells:
    with it, paths differ by as much as the networks do without the noise of their trainings.
    """
    networks = [network for network in truth.networks if not network.band]
    noise = np.mean([np.var(network.scores, ddof=1) / len(network.scores) for network in networks])
    differing = np.var([network.truth for network in networks], ddof=1) - noise
    told = np.var(surrogate.scores(np.array([network.choices for network in networks])), ddof=1)
    return float(np.sqrt(max(differing - told, 0.0)))


def bands_of(cost: Floats, count: int) -> Indices:
    """Number of each cost's band, of ``count`` that are even in its logarithm."""
    edges = np.geomspace(cost.min(), cost.max(), count + 1)
    return np.clip(np.searchsorted(edges, cost, side="right") - 1, 0, count - 1)


class FittestOfBands(NSGA2):
    """Survivors: the fittest of each of four bands, then the second ones, and so on."""

    def _selected(self, among: list[Choices]) -> list[Choices]:
        if not among:
            return []
        fitness, cost = self._values(among)
        bands, order = bands_of(cost, 4), np.argsort(-fitness, kind="stable")
        places = np.empty(len(among))
        for band in range(4):
            own = order[bands[order] == band]
            places[own] = np.arange(len(own))
        best = np.lexsort((-fitness, places))
        return [among[i] for i in best[: self.settings.population]]

    def _values(self, among: Sequence[Choices]) -> tuple[Floats, Floats]:
        """Fitness and cost."""
        cost = [self._costs_of(choices)[0] for choices in among]
        return np.array([self._results[choices] for choices in among], float), np.array(cost, float)


class ClearlyDominated(FittestOfBands):
    """Survivors: those that the fewest are above, at their cost or less, by more than a standard
    deviation; of equal ones the fittest.
    """

    def _selected(self, among: list[Choices]) -> list[Choices]:
        if not among:
            return []
        fitness, cost = self._values(among)
        above = fitness[None] - fitness[:, None] > fitness.std()
        dominated = (above & (cost[None] <= cost[:, None])).sum(axis=1)
        best = np.lexsort((-fitness, dominated))
        return [among[i] for i in best[: self.settings.population]]


SEARCHES: dict[str, type[NSGA2]] = {
    "NSGA-II": NSGA2,
    "survivors of bands": FittestOfBands,
    "survivors not clearly dominated": ClearlyDominated,
}


def searched(kind: type[NSGA2], proposals: Proposals, world: World) -> Paths:
    """The candidates of a search, int64[candidates, layers]."""
    plain = replace(proposals.searcher, seed=world.seed)
    searcher = plain.build(proposals.space.cardinalities, proposals.constraint)
    assert isinstance(searcher, NSGA2)
    if kind is not NSGA2:
        searcher = kind(
            searcher.cardinalities,
            searcher.settings,
            costs_of=partial(proposals.constraint.selected_costs, ("macs",)),
            seed=world.seed,
            feasible=proposals.constraint,
        )
    candidates: list[Choices] = []
    while not searcher.done:
        asked = searcher.ask()
        for path, fitness in zip(asked, world.fitness(np.array(asked)), strict=True):
            searcher.tell(path, float(fitness))
        candidates += asked
    return np.array(candidates)


def on_the_front(objectives: Objectives, fitness: Floats, cost: Floats, count: int) -> list[int]:
    """Members as a search of several objectives and `Front.spread` take them."""
    records = [
        CandidateRecord(
            index=i,
            generation=1,
            position=i,
            origin="random",
            path=str(i),
            choices=(i,),
            fitness=float(fit),
            metrics={},
            macs=round(macs),
            params=None,
            latency_ms=None,
            error=None,
            seconds={},
            finished="",
        )
        for i, (fit, macs) in enumerate(zip(fitness, cost, strict=True))
    ]
    front = objectives.front(records)
    numbers = Front(objectives.best(front), tuple(front)).spread(min(count, len(front)))
    return [front[number - 1].index for number in numbers]


def of_bands(objectives: Objectives, fitness: Floats, cost: Floats, count: int) -> list[int]:
    """The fittest of each band that has a candidate, the cheapest band first."""
    bands = bands_of(cost, count)
    order = np.argsort(-fitness, kind="stable")
    return [int(order[bands[order] == band][0]) for band in range(count) if band in bands]


def cheapest_and_bands(
    objectives: Objectives, fitness: Floats, cost: Floats, count: int
) -> list[int]:
    cheapest = int(np.argmin(cost))
    return list(dict.fromkeys([cheapest, *of_bands(objectives, fitness, cost, count - 1)]))
