"""Whole runs on machines whose speed changes while they run: kept to their time, in simulation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import pytest

from detnas_d2.engine.keeping_time import Late, OutOfTime, Watch, typical
from detnas_d2.recipe.inputs import Settings
from detnas_d2.recipe.progress import Progress
from detnas_d2.recipe.record import Record
from detnas_d2.recipe.refitting import allowance_of, length_of
from detnas_d2.recipe.replanning import cut, fitted, starting_over
from detnas_d2.recipe.schedule import LEAST, SEARCH, Plan, first
from tests.recipe.values import DATA, plan

Speed = Callable[[float], float]
"""Seconds that a run has taken -> how many times as long as measured all takes then."""


@dataclass
class Work:
    """Of a stage that has begun and is not done.

    Attributes:
        clock: when what it does now will be done.
    """

    clock: float
    done: int = 0
    seconds: float = 0.0


@dataclass
class Run:
    """A run without networks: its stages take their planned seconds, times the speed; those of
    single networks side by side.
    """

    record: Record
    speed: Speed
    truth: Plan
    now: float = 0.0
    took: dict[str, float] = field(default_factory=dict)
    works: dict[str, Work] = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)
    running: dict[str, Iterator[None]] = field(default_factory=dict)
    processes: int = 0
    most: int = 0

    def run(self) -> None:
        self.now = self.record.used
        while self.begin():
            stage = min(self.running, key=lambda name: self.works[name].clock)
            self.now = self.works[stage].clock
            try:
                next(self.running[stage])
                continue
            except OutOfTime as out:
                del self.running[stage]
                self.late(stage, out.late)
            except StopIteration:
                del self.running[stage]
                self.took[stage] = self.works.pop(stage).seconds
                self.lengths[stage] = length_of(self.record.plan, stage, self.record.schedule)
                self.record = fitted(self.record, self.progress(), self.now)
            # What a start after a kill would take for the time that was used.
            assert self.record.used + self.progress().since == pytest.approx(self.now)

    def begin(self) -> bool:
        """Begins what can, in order; whether anything runs."""
        plan = self.record.plan
        missing = [name for name in plan.stages(self.record.schedule) if name not in self.took]
        if not missing or missing[0] in plan.alone:
            names, jobs = missing[:1], 1
        else:
            names, jobs = missing, plan.jobs
        for name in names:
            if name not in self.running and len(self.running) < jobs:
                self.running[name] = self.stage(name)
                start = self.truth.rates.process if self.processes < jobs and jobs > 1 else 0.0
                self.processes += bool(start)
                self.works.setdefault(name, Work(0.0)).clock = self.now + start * self.speed(
                    self.now
                )
        self.most = max(self.most, len(self.running))
        return bool(self.running)

    def comparisons(self) -> list[str]:
        return self.record.plan.comparisons(self.record.schedule)

    def progress(self) -> Progress:
        working = {
            name: max(work.seconds - max(work.clock - self.now, 0.0), 0.0)
            for name, work in self.works.items()
        }
        return Progress(dict(self.took), working)

    def late(self, stage: str, late: Late) -> None:
        before = self.record.schedule
        again = starting_over(self.record.plan, stage)
        if again:  # all processes end
            self.running.clear()
            self.processes = 0
        self.record = cut(self.record, stage, late, self.progress(), self.now)
        change = self.record.changes[-1]
        assert change.planned == length_of(self.record.plan, stage, before)
        for name in () if change.kept else again or [stage]:
            self.works.pop(name, None)
            self.took.pop(name, None)

    def spend(self, work: Work, seconds: float) -> float:
        """Passes what takes so many seconds as measured; returns those that it takes."""
        took = seconds * self.speed(self.now)
        work.clock = self.now + took
        work.seconds += took
        return took

    def stage(self, stage: str) -> Iterator[None]:
        plan, schedule = self.record.plan, self.record.schedule
        allowance = allowance_of(plan, schedule, stage, self.record.seconds - self.now)
        work, parts = self.works[stage], self.truth.expected(stage, schedule)
        length, watch = length_of(plan, stage, schedule), None
        evolves = stage == SEARCH and plan.learns != SEARCH
        period = schedule.population if evolves else max(20, length // 10)
        if allowance is not None and allowance.every:
            period = allowance.every
        number = schedule.candidates if evolves else length
        if allowance is not None:
            watch = Watch(allowance, lambda: self.now)
            watch.begin(work.done / number)
        self.spend(work, parts.before if not work.done else self.truth.rates.start)
        yield
        recent: list[float] = []
        for done in range(work.done + 1, number + 1) if parts.loop else ():
            recent.append(self.spend(work, parts.loop / number))
            yield
            if done % period or done == number:
                continue
            work.done = done
            if watch is not None:
                slowness = typical(recent) * number / watch.allowance.expected.loop
                watch.look(done / number, Late(done * length // number, slowness))
            recent.clear()
        self.spend(work, parts.after)
        yield


def steady(factor: float) -> Speed:
    return lambda now: factor


def between(factor: float, begin: float, end: float) -> Speed:
    return lambda now: factor if begin <= now < end else 1.0


def waves(factor: float, period: float) -> Speed:
    return lambda now: factor if now % period < period / 2 else 1.0


def run_of(seconds: float, speed: Speed, method: str = "detnas", jobs: int = 1) -> Run:
    own = plan(method)
    own = replace(own, jobs=jobs, rates=replace(own.rates, process=4.0 * (jobs > 1)))
    schedule = first(own, seconds - 20.0)
    assert schedule is not None
    record = Record({}, own, schedule, DATA, Settings("/out"), "", seconds, 20.0, {})
    run = Run(record, speed, own)
    run.run()
    return run


SPEEDS: dict[str, Callable[[float], Speed]] = {
    "as measured": lambda whole: steady(1.0),
    "quicker": lambda whole: steady(0.6),
    "slow": lambda whole: steady(2.0),
    "very slow": lambda whole: steady(4.25),  # as a supernet that was planned at 4 min and took 17
    "slower in the supernet": lambda whole: between(3.0, 0.1 * whole, math.inf),
    "slower at its end": lambda whole: between(3.0, 0.4 * whole, math.inf),
    "slower in the search": lambda whole: between(3.0, 0.6 * whole, math.inf),
    "slower in the networks": lambda whole: between(3.0, 0.8 * whole, math.inf),
    "slower in the last": lambda whole: between(3.0, 0.9 * whole, math.inf),
    "slow at first": lambda whole: between(4.0, 0.0, 0.25 * whole),
    "slow for a while": lambda whole: between(4.0, 0.3 * whole, 0.5 * whole),
    "slow every half minute": lambda whole: waves(3.0, 30.0),
    "slow every now and then": lambda whole: waves(3.0, 0.3 * whole),
}
"""Seconds of the run -> how its machine changes."""


AT_ITS_END = ("slower in the search", "slower in the networks", "slower in the last")
"""With as many jobs as networks nothing is left then that could be shorter, or be given up."""


@pytest.mark.parametrize("method", ["detnas", "hit"])
@pytest.mark.parametrize(
    ("seconds", "jobs"), [(600.0, 1), (3600.0, 1), (600.0, 2), (3600.0, 2), (600.0, 4)]
)
@pytest.mark.parametrize("name", SPEEDS)
def test_a_run_keeps_to_its_time(name: str, seconds: float, jobs: int, method: str) -> None:
    run = run_of(seconds, SPEEDS[name](seconds), method, jobs)
    assert run.most == jobs or run.record.changes
    most = 1.4 if jobs == 4 and name in AT_ITS_END else 1.05
    assert 0.5 * seconds < run.now <= most * seconds
    networks = [run.lengths[stage] for stage in ("searched", *run.comparisons())]
    assert len(set(networks)) == 1 and networks[0] >= LEAST.tuning
    assert run.lengths[run.record.plan.learns] >= LEAST.supernet
    assert method == "hit" or run.lengths["search"] >= LEAST.generations
    if name in ("as measured", "quicker"):
        # Side by side there may be no time for another row of networks.
        assert not run.record.changes and run.now > (0.98 if jobs == 1 else 0.85) * seconds


def test_stages_side_by_side_do_more_in_the_same_time() -> None:
    alone, beside = (run_of(600.0, steady(1.0), jobs=jobs) for jobs in (1, 2))
    assert beside.lengths["supernet"] > alone.lengths["supernet"]
    assert len(beside.comparisons()) > len(alone.comparisons())
    assert abs(beside.now - 600) < 0.03 * 600


def test_without_looking_at_its_stages_it_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.allowance_of", lambda *_: None)
    assert run_of(600.0, steady(4.25)).now > 1.8 * 600


def test_a_slow_supernet_goes_on_to_fewer_iterations() -> None:
    change, *_ = run_of(600.0, steady(2.0)).record.changes
    assert (change.stage, change.kept) == ("supernet", True)
    assert 0 < change.done < change.now < change.planned
    assert change.slowness == pytest.approx(2.0)


def test_a_slow_network_begins_again_with_all_that_it_is_compared_with() -> None:
    run = run_of(600.0, between(3.0, 240.0, math.inf), "hit")
    (change,) = run.record.changes
    assert (change.stage, change.kept) == ("searched", False)
    assert change.done <= change.planned / 2 and change.now < change.planned
    assert run.lengths["searched"] == run.lengths["handmade"] == change.now


def test_a_network_to_compare_with_is_given_up_when_the_time_is_over() -> None:
    run = run_of(600.0, between(3.0, 360.0, math.inf), "hit")
    (change,) = run.record.changes
    assert (change.stage, change.now) == ("handmade", 0)
    assert run.comparisons() == [] and "searched" in run.took
    assert run.record.schedule.given_up[0] == "handmade"
