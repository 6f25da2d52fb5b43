"""How long each stage is: iterations, candidates and networks, from measured speeds and the time.

:func:`first` plans the whole run before it starts; :mod:`detnas_d2.recipe.refitting` what is left.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from detnas_d2.engine.keeping_time import Expected
from detnas_d2.engine.outlook import side_by_side
from detnas_d2.recipe.choice import LARGE, SMALL, Recipe
from detnas_d2.recipe.facts import DataFacts
from detnas_d2.recipe.rates import Rates

SUPERNET, SEARCH, INHERITED, SEARCHED, MEMBER, RANDOM = (
    "supernet",
    "search",
    "inherited",
    "searched",
    "member",
    "random",
)
BASELINE = "resnet50"
HAND_MADE = {"detnas": "shufflenetv2", "hit": "handmade"}
PRECISE_BN = 60
"""Batches of a network's BatchNorm statistics at the end of its training, at most."""

_FORWARD = 0.4  # of an iteration
_CHECKED = 8  # candidates' worth: a supernet is scored before, after and in between
_USUAL_NETWORKS, MOST_NETWORKS = 3, 5
_TUNING = {"detnas": 1 / 6, "hit": 1.0}
"""Iterations of a network for one of the supernet: the demo's, and those of own data."""
_SEARCH_SHARE = 0.2
_USUAL_CANDIDATES = {"small": 60, "large": 200}
_MOST_CANDIDATES = 1000
_EPOCHS, _MOST_EPOCHS = 30, 300
_USUAL_LEAST = {"small": 1200, "large": 4000}


@dataclass(frozen=True)
class Schedule:
    """Lengths of the stages.

    Attributes:
        supernet: iterations; of the gradient search for Hit-Detector.
        population, generations: of the search; 0 for Hit-Detector.
        tuning: iterations of each network.
        networks: random ones next to the searched and the hand-made, those given up among them.
        given_up: stages of networks next to the searched one that there was no time for.
    """

    supernet: int
    population: int
    generations: int
    tuning: int
    networks: int
    given_up: tuple[str, ...] = ()

    @property
    def candidates(self) -> int:
        return self.population * self.generations


LEAST = Schedule(100, 5, 2, 20, 0)
"""With less nothing can be learned, whatever the time."""


@dataclass(frozen=True)
class Plan:
    """What lengths are computed from.

    Attributes:
        jobs: stages of single networks that run at a time.
        family: networks of the search's front that were asked for, the searched one among them;
            1 for a search that looks for no front.
        front: members that the front has, None while it is not known.
        took: stage -> seconds, of those that a run with the same lengths took: their estimates.
    """

    recipe: Recipe
    data: DataFacts
    rates: Rates
    jobs: int = 1
    family: int = 1
    front: int | None = None
    took: Mapping[str, float] = field(default_factory=dict)

    @property
    def learns(self) -> str:
        """Name of the stage in which all networks learn together."""
        return SUPERNET if self.recipe.method == "detnas" else SEARCH

    @property
    def alone(self) -> list[str]:
        """Names of the stages that run alone, before those of single networks, in order."""
        return list(dict.fromkeys((self.learns, SEARCH)))

    def stages(self, schedule: Schedule) -> list[str]:
        """Names of the stages of a run, in order."""
        inherited = [INHERITED] * (self.recipe.method == "detnas")
        return [*self.alone, *inherited, SEARCHED, *self.comparisons(schedule)]

    def comparisons(self, schedule: Schedule) -> list[str]:
        """Names of the stages that train networks besides the searched one: others of its front,
        the cheapest first, and those to compare them with.
        """
        by_hand = self.recipe.method == "detnas" or self.recipe.pattern == SMALL
        names = [f"{MEMBER}_{number}" for number in range(1, self.relatives)]
        names += [HAND_MADE[self.recipe.method]] * by_hand + [BASELINE] * bool(self.rates.baseline)
        names += [f"{RANDOM}_{number + 1}" for number in range(schedule.networks)]
        return [name for name in names if name not in schedule.given_up]

    @property
    def relatives(self) -> int:
        """Networks of the front that are trained, the searched one among them."""
        return self.family if self.front is None else min(self.family, self.front)

    def members(self, schedule: Schedule) -> list[str]:
        """Those of :meth:`comparisons` that train a network of the front, the cheapest first."""
        return [name for name in self.comparisons(schedule) if name.startswith(f"{MEMBER}_")]

    def expected(self, stage: str, schedule: Schedule) -> Expected:
        """Estimate for a stage."""
        found = self._by_rates(stage, schedule)
        factor = self.took[stage] / found.seconds if stage in self.took else 1.0
        return Expected(factor * found.before, factor * found.loop, factor * found.after)

    def _by_rates(self, stage: str, schedule: Schedule) -> Expected:
        rates, testing = self.rates, self.data.test * self.rates.image
        if stage == self.learns:
            checks = _CHECKED * rates.candidate / 2
            return Expected(rates.start + checks, schedule.supernet * rates.step, checks)
        if stage == SEARCH:
            return Expected(rates.start, schedule.candidates * rates.candidate, 0.0)
        if stage == INHERITED:
            return Expected(rates.start, 0.0, testing)
        statistics = _FORWARD * self.precise_batches() * rates.tune
        learning = schedule.tuning * rates.tune
        if stage == BASELINE:  # a slow one has more iterations than the time of a network
            learning = max(learning, self.baseline_iterations(schedule) * rates.baseline)
        return Expected(rates.start, learning, statistics + testing)

    def seconds_of(self, stage: str, schedule: Schedule) -> float:
        """The whole estimate for a stage."""
        return self.expected(stage, schedule).seconds

    def baseline_iterations(self, schedule: Schedule) -> int:
        """Of a baseline that takes as long as a network, and no longer a training."""
        if not self.rates.baseline:
            return schedule.tuning
        # Rounded: the same on a machine that is slower in all.
        fraction = round(min(self.rates.tune / self.rates.baseline, 1.0), 6)
        return max(LEAST.tuning, int(schedule.tuning * fraction))

    def total(
        self,
        schedule: Schedule,
        without: Collection[str] = (),
        working: Mapping[str, float] | None = None,
    ) -> float:
        """Estimate for all stages but some: those that run alone, then the others, :attr:`jobs` at
        a time.

        Args:
            working: stage -> seconds, of those that have begun and are not done. The estimate is
                from the time on when the first of them began.
        """
        seconds = {
            name: self.seconds_of(name, schedule)
            for name in self.stages(schedule)
            if name not in without
        }
        begun = working or {}
        alone = sum(seconds.pop(name, 0.0) for name in self.alone)
        beside = [(own, begun.get(name, 0.0)) for name, own in seconds.items()]
        return alone + side_by_side(beside, self.jobs, self.rates.process)

    def precise_batches(self) -> int:
        """Batches of a network's statistics: two epochs at most; none where BatchNorms have seen
        enough (on GPUs, as for own data there).
        """
        if self.recipe.pattern != SMALL:
            return 0
        return max(1, min(PRECISE_BN, 2 * self.data.train // self.recipe.batch))

    def trained(self, schedule: Schedule) -> int:
        """Number of stages that train one network."""
        return 1 + len(self.comparisons(schedule))

    def usual_networks(self, seconds: float | None) -> int:
        """Single networks that a run of so many seconds trains, if it has the time; None: any."""
        return self.trained(replace(LEAST, networks=networks_for(seconds)))

    def in_a_row(self, schedule: Schedule) -> int:
        """Trainings of one network that follow each other, of all that are trained."""
        return -(-self.trained(schedule) // self.jobs)

    def filled(self, networks: int) -> int:
        """Random networks, with those that take no time, as a job would have nothing to do."""
        spare = -self.trained(replace(LEAST, networks=networks)) % self.jobs
        return max(networks, min(networks + spare, MOST_NETWORKS))

    def slower(self, factor: float) -> Plan:
        """The plan on a machine that takes ``factor`` times as long."""
        return replace(self, rates=self.rates.times(factor))

    def with_jobs(self, jobs: int) -> Plan:
        """The plan with so many stages at a time, as if cores shared out otherwise did as much work
        in all; GPUs do, each its own.
        """
        factor = 1.0 if self.recipe.pattern == LARGE else jobs / self.jobs
        shared = {
            name: factor * getattr(self.rates, name) for name in ("tune", "image", "baseline")
        }
        return replace(self, jobs=jobs, rates=replace(self.rates, **shared), took={})


def first(plan: Plan, seconds: float | None) -> Schedule | None:
    """The schedule of a run that has not begun; None in less time than :func:`shortest` takes.

    Args:
        seconds: that the stages may take; None: as many as they usually need.
    """
    recipe = plan.recipe
    networks = plan.filled(networks_for(seconds))
    if seconds is None:
        supernet = max(_USUAL_LEAST[recipe.pattern], _iterations(plan, _EPOCHS))
        return _schedule(plan, supernet, _USUAL_CANDIDATES[recipe.pattern], networks)
    return filling(plan, seconds, networks)


def filling(plan: Plan, seconds: float, networks: int) -> Schedule | None:
    """The schedule that fills some time, with so many random networks, or else with as many as
    there is time for; None in less than :func:`shortest` takes.
    """
    fitted = (_filling(plan, seconds, number) for number in range(networks, -1, -1))
    return next((found for found in fitted if found is not None), None)


def _filling(plan: Plan, seconds: float, networks: int) -> Schedule | None:
    """The longest schedule with so many random networks; None if the shortest is longer."""
    rates, method = plan.rates, plan.recipe.method
    wanted = int(seconds * _SEARCH_SHARE / rates.candidate) if rates.candidate else 0
    empty = replace(_schedule(plan, 0, wanted, networks), tuning=0)
    left = seconds - plan.total(empty)
    unit = rates.step + plan.in_a_row(empty) * rates.tune * _TUNING[method]
    supernet = min(int(left / unit), _iterations(plan, _MOST_EPOCHS))
    if supernet < LEAST.supernet or supernet * _TUNING[method] < LEAST.tuning:
        return None
    return _schedule(plan, supernet, wanted, networks)


def _schedule(plan: Plan, supernet: int, candidates: int, networks: int) -> Schedule:
    tuning = max(int(supernet * _TUNING[plan.recipe.method]), LEAST.tuning)
    if plan.recipe.method == "hit":
        return Schedule(supernet, 0, 0, tuning, networks)
    return Schedule(supernet, *generations_of(candidates), tuning, networks)


def shortest(plan: Plan) -> Schedule:
    """The shortest run in which something is learned."""
    least = _schedule(plan, LEAST.supernet, 0, LEAST.networks)
    supernet = max(LEAST.supernet, -int(-LEAST.tuning // _TUNING[plan.recipe.method]))
    return replace(least, supernet=supernet)


def generations_of(candidates: int) -> tuple[int, int]:
    """Population and generations of about so many candidates, as in the demo, in own_data and in
    the paper.
    """
    candidates = min(max(candidates, LEAST.candidates), _MOST_CANDIDATES)
    sizes = ((500, 50), (140, 20), (30, 10))
    population = next((size for least, size in sizes if candidates >= least), LEAST.population)
    return population, candidates // population


def _iterations(plan: Plan, epochs: int) -> int:
    learned = plan.data.train - plan.recipe.validation
    return max(_USUAL_LEAST[plan.recipe.pattern], epochs * learned // plan.recipe.batch)


def networks_for(seconds: float | None) -> int:
    """Random networks to compare with in a run of so many seconds; None: of any time."""
    if seconds is None:
        return _USUAL_NETWORKS
    limits = ((7200, MOST_NETWORKS), (2700, 3), (900, 2))
    return next((networks for least, networks in limits if seconds >= least), 1)
