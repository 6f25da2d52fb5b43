"""What is left of a run, fitted into the time that is left: after every stage, by what it really
took, and when a stage would take too long.

A stage that has begun keeps its length, unless it is late (:func:`allowance_of`): then

- the supernet, or the search by gradient, goes on from its last checkpoint to fewer iterations;
- the evolution ends after fewer generations;
- the searched network begins again, with fewer iterations for itself and all that are compared with
  it, as long as it has not learned for half of them: one schedule for all of them, also those that
  run next to it or are done;
- a network that it is compared with is given up when the run's time is over, and those that have
  not begun.

None becomes shorter than :data:`LEAST`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from detnas_d2.engine.keeping_time import Allowance
from detnas_d2.recipe.schedule import (
    INHERITED,
    LEAST,
    MOST_NETWORKS,
    RANDOM,
    SEARCH,
    SEARCHED,
    Plan,
    Schedule,
    filling,
    generations_of,
    shortest,
)

_SEARCH_SHARE_OF_REST = 0.4
_MOST_TUNING = {"detnas": 1 / 2, "hit": 2.0}
"""Iterations of a network for one of the supernet."""
_COOLING = 1.1
"""A training that ends early learns for a tenth of what it has, while its rate falls to nothing."""
_HALF = 0.5
_OFTEN = 5
"""Iterations between two looks at a network that is begun again or given up when it is late."""


@dataclass(frozen=True)
class Change:
    """What was decided when a stage was late.

    Attributes:
        done: its iterations, or generations of the search, by then.
        planned, now: how many it was to have, and has; 0: it was given up.
        slowness: how many times as long as planned they took.
        kept: it goes on after those that are done; otherwise it begins again.
        worked: seconds that it had worked by then, if it goes on.
        at: seconds of the run by then; None in a record that was written without.
    """

    stage: str
    done: int
    planned: int
    now: int
    slowness: float
    kept: bool
    worked: float
    at: float | None = None


def length_of(plan: Plan, stage: str, schedule: Schedule) -> int:
    """Iterations of a stage, or generations of the evolution; 0 where it is not run."""
    if stage not in plan.stages(schedule):
        return 0
    if stage == plan.learns:
        return schedule.supernet
    return schedule.generations if stage == SEARCH else schedule.tuning


def allowance_of(plan: Plan, schedule: Schedule, stage: str, left: float) -> Allowance | None:
    """What a stage may take; None: as long as it needs, as it can get no shorter.

    Args:
        left: seconds of the run.
    """
    expected = plan.expected(stage, schedule)
    if stage == plan.learns:
        longer = schedule.supernet > LEAST.supernet
        return Allowance(expected, until=1 / _COOLING) if longer else None
    if stage == SEARCH:
        return Allowance(expected) if schedule.generations > LEAST.generations else None
    if stage == SEARCHED:
        every = max(_OFTEN, schedule.tuning // 10)
        longer = schedule.tuning > LEAST.tuning
        return Allowance(expected, every=every, until=_HALF) if longer else None
    if stage in plan.comparisons(schedule):
        return Allowance(expected, every=_OFTEN, given=left)
    return None


def shortened(
    plan: Plan,
    schedule: Schedule,
    stage: str,
    done: int,
    took: Mapping[str, float],
    begun: Collection[str],
    left: float,
) -> Schedule:
    """The schedule without what a late stage has no time for.

    Args:
        plan: at the speed of that stage.
        done: its iterations or generations.
        took: stage -> seconds, of those that are done.
        begun: stages that have begun, done or not.
        left: seconds from now on.
    """
    if stage == plan.learns:
        return _learning_less(plan, schedule, done, left)
    if stage == SEARCH:
        generation = schedule.population * plan.rates.candidate
        more = max(0, int(left * _SEARCH_SHARE_OF_REST / generation))
        generations = max(done + more, LEAST.generations)
        return replace(schedule, generations=min(generations, schedule.generations))
    if stage == SEARCHED:
        found = _tuned(plan, schedule, took, left)
        return replace(
            found,
            tuning=min(found.tuning, schedule.tuning),
            networks=min(found.networks, schedule.networks),
        )
    waiting = [name for name in plan.comparisons(schedule) if name not in begun]
    return replace(schedule, given_up=(*schedule.given_up, stage, *waiting))


def _learning_less(plan: Plan, schedule: Schedule, done: int, left: float) -> Schedule:
    """A shorter supernet, and what follows in proportion, as if the run began at this speed and had
    taken for what is done what that takes now.
    """
    expected, share = plan.expected(plan.learns, schedule), done / schedule.supernet
    spent = expected.before - plan.rates.start + share * expected.loop
    found = filling(plan, left + spent, schedule.networks) or shortest(plan)
    least = max(LEAST.supernet, math.ceil(_COOLING * done))
    if plan.recipe.method == "hit":
        # The architecture, which learns in the second half, learns for a quarter of all.
        least = max(least, math.ceil(4 / 3 * min(done, schedule.supernet / 2)))
    return replace(found, supernet=min(max(found.supernet, least), schedule.supernet))


def rest(
    plan: Plan,
    schedule: Schedule,
    took: Mapping[str, float],
    begun: Collection[str],
    left: float,
    working: Mapping[str, float] | None = None,
) -> Schedule:
    """The schedule with the stages that have not begun fitted into the time that is left.

    Args:
        plan: at the speed of now, see :func:`slowness`.
        took: stage -> seconds, of those that are done.
        begun: stages that have begun, done or not; their lengths stay.
        left: seconds for all stages that are not done.
        working: stage -> seconds, of those that have begun and are not done: they are part of
            ``left``, from when the first of them began.
    """
    if plan.learns not in took or schedule.given_up:
        return schedule
    if SEARCH not in begun:
        search = left * _SEARCH_SHARE_OF_REST - plan.rates.start
        population, generations = generations_of(int(search / plan.rates.candidate))
        schedule = replace(schedule, population=population, generations=generations)
    if not {SEARCHED, *plan.comparisons(schedule)}.intersection(begun):
        return _tuned(plan, schedule, took, left)
    drawn = [name for name in begun if name.startswith(f"{RANDOM}_")]
    for networks in range(MOST_NETWORKS, len(drawn), -1):
        longer = replace(schedule, networks=networks)
        if plan.total(longer, took, working) <= left:
            return longer
    return replace(schedule, networks=len(drawn))


def _tuned(plan: Plan, schedule: Schedule, took: Mapping[str, float], left: float) -> Schedule:
    """Lengths of the networks; with fewer random ones where time is short, with more where they
    have learned all that they can.
    """
    most = max(LEAST.tuning, int(schedule.supernet * _MOST_TUNING[plan.recipe.method]))

    def with_networks(networks: int) -> tuple[int, Schedule]:
        empty = replace(schedule, tuning=0, networks=networks)
        spare = left - plan.total(empty, took)
        tuning = int(spare / (plan.in_a_row(empty) * plan.rates.tune))
        return tuning, replace(empty, tuning=min(max(tuning, LEAST.tuning), most))

    for networks in range(schedule.networks, -1, -1):
        tuning, found = with_networks(networks)
        if tuning >= LEAST.tuning:
            break
    while tuning >= most and networks < MOST_NETWORKS:
        networks += 1
        tuning, longer = with_networks(networks)
        if tuning < most:
            break
        found = longer
    return found


def slowness(
    plan: Plan, schedule: Schedule, took: Mapping[str, float], changes: Sequence[Change] = ()
) -> float:
    """How many times the plan's estimate the last finished network took, or else the supernet; 1
    without either, or where a stage after it was late: then the plan is at that one's speed.

    The search is none to go by: its candidates share work, the later ones more of it.
    """
    told = [name for name in took if name == plan.learns or name not in (INHERITED, SEARCH)]
    if not told:
        return 1.0
    last, order = told[-1], plan.stages(replace(schedule, given_up=()))
    if changes and order.index(changes[-1].stage) > order.index(last):
        return 1.0
    expected, seconds, share = plan.expected(last, schedule), took[last], 0.0
    for change in changes:
        if change.stage == last and change.kept:
            seconds = took[last] - change.worked
            share = change.done / length_of(plan, last, schedule)
    return within_reason(seconds / (expected.before + expected.left(share)))


def within_reason(slowness: float) -> float:
    """Bounded, so that no wrong measurement upsets a run."""
    return min(max(slowness, 0.2), 5.0)
