"""How long each stage is: iterations, candidates and networks, from measured speeds and the time.

:func:`first` plans the whole run before it starts, :func:`rest` again before every stage, by what
the stages so far really took. What has begun is never changed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace

from detnas_d2.recipe.choice import SMALL, Recipe
from detnas_d2.recipe.facts import DataFacts

SUPERNET, SEARCH, INHERITED, SEARCHED, RANDOM = (
    "supernet",
    "search",
    "inherited",
    "searched",
    "random",
)
BASELINE = "resnet50"
HAND_MADE = {"detnas": "shufflenetv2", "hit": "handmade"}
PRECISE_BN = 60
"""Batches of a network's BatchNorm statistics at the end of its training, at most."""

_FORWARD = 0.4  # of an iteration
_CHECKED = 8  # candidates' worth: a supernet is scored before, after and in between
_USUAL_NETWORKS, _MOST_NETWORKS = 3, 5
_TUNING = {"detnas": 1 / 6, "hit": 1.0}
"""Iterations of a network for one of the supernet: the demo's, and those of own data."""
_MOST_TUNING = {"detnas": 1 / 2, "hit": 2.0}
_SEARCH_SHARE, _SEARCH_SHARE_OF_REST = 0.2, 0.4
_USUAL_CANDIDATES = {"small": 60, "large": 200}
_MOST_CANDIDATES = 1000
_EPOCHS, _MOST_EPOCHS = 30, 300
_USUAL_LEAST = {"small": 1200, "large": 4000}


@dataclass(frozen=True)
class Rates:
    """Seconds on this machine.

    Attributes:
        step: of an iteration of the supernet, or of Hit-Detector's relaxed network.
        tune: of an iteration of one network.
        candidate: of scoring one candidate of the search; 0 for Hit-Detector.
        image: of one image in testing.
        start: of what a stage does besides.
        baseline: of an iteration of a baseline; 0 without one.
    """

    step: float
    tune: float
    candidate: float
    image: float
    start: float
    baseline: float = 0.0

    def times(self, factor: float) -> Rates:
        """Those of a machine that takes ``factor`` times as long."""
        return Rates(**{name: value * factor for name, value in asdict(self).items()})


@dataclass(frozen=True)
class Schedule:
    """Lengths of the stages.

    Attributes:
        supernet: iterations; of the gradient search for Hit-Detector.
        population, generations: of the search; 0 for Hit-Detector.
        tuning: iterations of each network.
        networks: random ones next to the searched and the hand-made.
    """

    supernet: int
    population: int
    generations: int
    tuning: int
    networks: int

    @property
    def candidates(self) -> int:
        return self.population * self.generations


LEAST = Schedule(100, 5, 2, 20, 0)
"""With less nothing can be learned, whatever the time."""


def hand_made_of(recipe: Recipe) -> str:
    """Name of the hand-made network's stage; "" where there is none."""
    small = recipe.method == "detnas" or recipe.pattern == SMALL
    return HAND_MADE[recipe.method] if small else ""


@dataclass(frozen=True)
class Plan:
    """What lengths are computed from."""

    recipe: Recipe
    data: DataFacts
    rates: Rates

    def stages(self, networks: int) -> list[str]:
        """Names of the stages of a run with so many random networks, in order."""
        sampled = self.recipe.method == "detnas"
        begin = [SUPERNET, SEARCH, INHERITED, SEARCHED] if sampled else [SEARCH, SEARCHED]
        names = [hand_made_of(self.recipe), BASELINE if self.rates.baseline else ""]
        return [
            *begin,
            *filter(None, names),
            *(f"{RANDOM}_{number + 1}" for number in range(networks)),
        ]

    def seconds_of(self, stage: str, schedule: Schedule) -> float:
        """Estimate for a stage."""
        rates, testing = self.rates, self.data.test * self.rates.image
        if stage == SUPERNET:
            return rates.start + schedule.supernet * rates.step + _CHECKED * rates.candidate
        if stage == SEARCH and self.recipe.method == "hit":
            return rates.start + schedule.supernet * rates.step
        if stage == SEARCH:
            return rates.start + schedule.candidates * rates.candidate
        if stage == INHERITED:
            return rates.start + testing
        iterations = schedule.tuning + _FORWARD * self.precise_batches()
        return rates.start + iterations * rates.tune + testing

    def baseline_iterations(self, schedule: Schedule) -> int:
        """Of a baseline that takes as long as a network, and no longer a training."""
        if not self.rates.baseline:
            return schedule.tuning
        fraction = min(self.rates.tune / self.rates.baseline, 1.0)
        return max(LEAST.tuning, int(schedule.tuning * fraction))

    def total(self, schedule: Schedule, without: Collection[str] = ()) -> float:
        """Estimate for all stages but some."""
        names = [name for name in self.stages(schedule.networks) if name not in without]
        return sum(self.seconds_of(name, schedule) for name in names)

    def precise_batches(self) -> int:
        """Batches of a network's statistics: two epochs at most; none where BatchNorms have seen
        enough (on GPUs, as for own data there).
        """
        if self.recipe.pattern != SMALL:
            return 0
        return max(1, min(PRECISE_BN, 2 * self.data.train // self.recipe.batch))

    def trained(self, networks: int) -> int:
        """Number of stages that train one network."""
        return len(set(self.stages(networks)) - {SUPERNET, SEARCH, INHERITED})


def first(plan: Plan, seconds: float | None) -> Schedule | None:
    """The schedule of a run that has not begun; None in less time than :func:`shortest` takes.

    Args:
        seconds: that the stages may take; None: as many as they usually need.
    """
    recipe = plan.recipe
    if seconds is None:
        supernet = max(_USUAL_LEAST[recipe.pattern], _iterations(plan, _EPOCHS))
        wanted = _USUAL_CANDIDATES[recipe.pattern]
        return _schedule(plan, supernet, wanted, _USUAL_NETWORKS)
    for networks in range(_networks_for(seconds), -1, -1):
        found = _filling(plan, seconds, networks)
        if found is not None:
            return found
    return None


def _filling(plan: Plan, seconds: float, networks: int) -> Schedule | None:
    """The longest schedule with so many random networks; None if the shortest is longer."""
    rates, method = plan.rates, plan.recipe.method
    wanted = int(seconds * _SEARCH_SHARE / rates.candidate) if rates.candidate else 0
    empty = replace(_schedule(plan, 0, wanted, networks), tuning=0)
    left = seconds - plan.total(empty)
    unit = rates.step + plan.trained(networks) * rates.tune * _TUNING[method]
    supernet = min(int(left / unit), _iterations(plan, _MOST_EPOCHS))
    if supernet < LEAST.supernet or supernet * _TUNING[method] < LEAST.tuning:
        return None
    return _schedule(plan, supernet, wanted, networks)


def rest(
    plan: Plan, schedule: Schedule, took: Mapping[str, float], begun: Collection[str], left: float
) -> Schedule:
    """The schedule with the stages that have not begun fitted into the time that is left.

    Args:
        took: stage -> seconds, of those that are done.
        begun: stages that have begun, done or not; their lengths stay.
        left: seconds for all stages that are not done.
    """
    plan = replace(plan, rates=plan.rates.times(slowness(plan, schedule, took)))
    learns = SUPERNET if plan.recipe.method == "detnas" else SEARCH
    if learns not in took:
        return schedule
    if SEARCH not in begun:
        search = left * _SEARCH_SHARE_OF_REST - plan.rates.start
        schedule = replace(schedule, **_generations(int(search / plan.rates.candidate)))
    if SEARCHED not in begun:
        return _tuned(plan, schedule, took, left)
    drawn = [name for name in begun if name.startswith(f"{RANDOM}_")]
    for networks in range(_MOST_NETWORKS, len(drawn), -1):
        longer = replace(schedule, networks=networks)
        if plan.total(longer, took) <= left:
            return longer
    return replace(schedule, networks=len(drawn))


def _tuned(plan: Plan, schedule: Schedule, took: Mapping[str, float], left: float) -> Schedule:
    """Lengths of the networks; with fewer random ones where time is short, with more where they
    have learned all that they can.
    """
    limits = (
        LEAST.tuning,
        max(LEAST.tuning, int(schedule.supernet * _MOST_TUNING[plan.recipe.method])),
    )

    def with_networks(networks: int) -> tuple[int, Schedule]:
        empty = replace(schedule, tuning=0, networks=networks)
        spare = left - plan.total(empty, took)
        tuning = int(spare / (plan.trained(networks) * plan.rates.tune))
        kept = min(max(tuning, limits[0]), limits[1])
        return tuning, replace(empty, tuning=kept)

    for networks in range(schedule.networks, -1, -1):
        tuning, found = with_networks(networks)
        if tuning >= limits[0]:
            break
    while tuning >= limits[1] and networks < _MOST_NETWORKS:
        networks += 1
        tuning, longer = with_networks(networks)
        if tuning < limits[1]:
            break
        found = longer
    return found


def slowness(plan: Plan, schedule: Schedule, took: Mapping[str, float]) -> float:
    """How many times the estimate the last finished network took, or else the supernet; within
    reason, and 1 without either.

    The search is none to go by: its candidates share work, the later ones more of it.
    """
    learns = SUPERNET if plan.recipe.method == "detnas" else SEARCH
    told = [name for name in took if name not in (INHERITED, SEARCH) or name == learns]
    if not told:
        return 1.0
    return min(max(took[told[-1]] / plan.seconds_of(told[-1], schedule), 0.2), 5.0)


def _schedule(plan: Plan, supernet: int, candidates: int, networks: int) -> Schedule:
    tuning = max(int(supernet * _TUNING[plan.recipe.method]), LEAST.tuning)
    if plan.recipe.method == "hit":
        return Schedule(supernet, 0, 0, tuning, networks)
    return Schedule(supernet, **_generations(candidates), tuning=tuning, networks=networks)


def shortest(plan: Plan) -> Schedule:
    """The shortest run in which something is learned."""
    least = _schedule(plan, LEAST.supernet, 0, LEAST.networks)
    supernet = max(LEAST.supernet, -int(-LEAST.tuning // _TUNING[plan.recipe.method]))
    return replace(least, supernet=supernet)


def _generations(candidates: int) -> dict[str, int]:
    """Population and generations of about so many candidates, as in the demo, in own_data and in
    the paper.
    """
    candidates = min(max(candidates, LEAST.candidates), _MOST_CANDIDATES)
    sizes = ((500, 50), (140, 20), (30, 10))
    population = next((size for least, size in sizes if candidates >= least), LEAST.population)
    return {"population": population, "generations": candidates // population}


def _iterations(plan: Plan, epochs: int) -> int:
    learned = plan.data.train - plan.recipe.validation
    return max(_USUAL_LEAST[plan.recipe.pattern], epochs * learned // plan.recipe.batch)


def _networks_for(seconds: float) -> int:
    limits = ((7200, _MOST_NETWORKS), (2700, 3), (900, 2))
    return next((networks for least, networks in limits if seconds >= least), 1)
