"""Whole runs on machines whose speed changes while they run: kept to their time, in simulation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from detnas_d2.engine.keeping_time import Late, OutOfTime, Watch, typical
from detnas_d2.recipe.inputs import Settings
from detnas_d2.recipe.progress import Progress
from detnas_d2.recipe.record import Record
from detnas_d2.recipe.refitting import allowance_of, length_of
from detnas_d2.recipe.replanning import cut, fitted
from detnas_d2.recipe.schedule import LEAST, SEARCH, Plan, first
from tests.recipe.values import DATA, plan

Speed = Callable[[float], float]
"""Seconds that a run has taken -> how many times as long as measured all takes then."""


@dataclass
class Work:
    """Of a stage that has begun and is not done."""

    done: int = 0
    seconds: float = 0.0


@dataclass
class Run:
    """A run without networks: its stages take their planned seconds, times the speed."""

    record: Record
    speed: Speed
    truth: Plan
    now: float = 0.0
    took: dict[str, float] = field(default_factory=dict)
    works: dict[str, Work] = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)

    def run(self) -> None:
        self.now = self.record.used
        while (stage := self.next()) is not None:
            try:
                self.stage(stage)
            except OutOfTime as out:
                self.late(stage, out.late)
            else:
                self.took[stage] = self.works.pop(stage).seconds
                self.lengths[stage] = length_of(self.record.plan, stage, self.record.schedule)
                self.record = fitted(self.record, self.progress(), self.now)
            # What a start after a kill would take for the time that was used.
            assert self.record.used + self.progress().working == pytest.approx(self.now)

    def next(self) -> str | None:
        stages = self.record.plan.stages(self.record.schedule)
        return next((name for name in stages if name not in self.took), None)

    def comparisons(self) -> list[str]:
        return self.record.plan.comparisons(self.record.schedule)

    def progress(self) -> Progress:
        working = sum(work.seconds for work in self.works.values())
        return Progress(dict(self.took), frozenset({*self.took, *self.works}), working)

    def late(self, stage: str, late: Late) -> None:
        before = self.record.schedule
        self.record = cut(self.record, stage, late, self.progress(), self.now)
        change = self.record.changes[-1]
        assert change.planned == length_of(self.record.plan, stage, before)
        if not change.kept:
            del self.works[stage]

    def spend(self, work: Work, seconds: float) -> float:
        """Passes what takes so many seconds as measured; returns those that it took."""
        took = seconds * self.speed(self.now)
        self.now += took
        work.seconds += took
        return took

    def stage(self, stage: str) -> None:
        plan, schedule = self.record.plan, self.record.schedule
        allowance = allowance_of(plan, schedule, stage, self.record.seconds - self.now)
        work, parts = self.works.setdefault(stage, Work()), self.truth.expected(stage, schedule)
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
        recent: list[float] = []
        for done in range(work.done + 1, number + 1) if parts.loop else ():
            recent.append(self.spend(work, parts.loop / number))
            if done % period or done == number:
                continue
            work.done = done
            if watch is not None:
                slowness = typical(recent) * number / watch.allowance.expected.loop
                watch.look(done / number, Late(done * length // number, slowness))
            recent.clear()
        self.spend(work, parts.after)


def steady(factor: float) -> Speed:
    return lambda now: factor


def between(factor: float, begin: float, end: float) -> Speed:
    return lambda now: factor if begin <= now < end else 1.0


def waves(factor: float, period: float) -> Speed:
    return lambda now: factor if now % period < period / 2 else 1.0


def run_of(seconds: float, speed: Speed, method: str = "detnas") -> Run:
    own = plan(method)
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


@pytest.mark.parametrize("method", ["detnas", "hit"])
@pytest.mark.parametrize("seconds", [600.0, 3600.0])
@pytest.mark.parametrize("name", SPEEDS)
def test_a_run_keeps_to_its_time(name: str, seconds: float, method: str) -> None:
    run = run_of(seconds, SPEEDS[name](seconds), method)
    assert 0.5 * seconds < run.now <= 1.05 * seconds
    networks = [run.lengths[stage] for stage in ("searched", *run.comparisons())]
    assert len(set(networks)) == 1 and networks[0] >= LEAST.tuning
    assert run.lengths[run.record.plan.learns] >= LEAST.supernet
    assert method == "hit" or run.lengths["search"] >= LEAST.generations
    if name in ("as measured", "quicker"):
        assert not run.record.changes and run.now > 0.98 * seconds


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
    assert run.record.schedule.compared == 0
