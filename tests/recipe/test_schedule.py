"""Lengths of the stages: fitted into the time before a run, and again while it runs."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from detnas_d2.engine.outlook import side_by_side
from detnas_d2.recipe.decide import affordable_side
from detnas_d2.recipe.rates import Rates
from detnas_d2.recipe.refitting import rest, slowness
from detnas_d2.recipe.schedule import (
    LEAST,
    MOST_NETWORKS,
    Schedule,
    first,
    shortest,
)
from tests.recipe.values import GPU, RATES, plan


def test_seconds_of_stages() -> None:
    own, schedule = plan(), Schedule(1000, 10, 6, 150, 2)
    testing = 72 * 0.03
    assert own.seconds_of("supernet", schedule) == pytest.approx(4 + 1000 * 0.1 + 8 * 2)
    assert own.seconds_of("search", schedule) == pytest.approx(4 + 60 * 2)
    assert own.seconds_of("inherited", schedule) == pytest.approx(4 + testing)
    network = 4 + 150 * 0.08 + 60 * 0.4 * 0.08 + testing
    assert own.seconds_of("searched", schedule) == pytest.approx(network)
    whole = 4 + 100 + 16 + 4 + 120 + 4 + testing + 4 * network
    assert own.total(schedule) == pytest.approx(whole)
    assert own.total(schedule, {"search"}) == pytest.approx(whole - 124)
    one, none = (replace(schedule, networks=number) for number in (1, 0))
    assert plan("hit").stages(one) == ["search", "searched", "handmade", "random_1"]
    assert plan("hit", GPU).stages(none) == ["search", "searched"]


def test_a_slow_baseline_counts_for_the_iterations_that_it_has() -> None:
    own, schedule = plan(), Schedule(1000, 10, 6, 150, 2)
    slow = replace(own, rates=replace(RATES, baseline=2.0))
    assert slow.baseline_iterations(schedule) == 20
    longer = slow.seconds_of("resnet50", schedule) - slow.seconds_of("searched", schedule)
    assert longer == pytest.approx(20 * 2.0 - 150 * 0.08)
    fitted = first(slow, 600)
    assert 0.9 * 600 <= slow.total(fitted) <= 600 and fitted.supernet < first(own, 600).supernet
    assert first(replace(own, rates=replace(RATES, baseline=24.0)), 500) is None


@pytest.mark.parametrize("method", ["detnas", "hit"])
@pytest.mark.parametrize("seconds", [150, 600, 3600, 7200])
def test_a_run_fills_its_time(method: str, seconds: float) -> None:
    own = plan(method)
    schedule = first(own, seconds)
    whole = own.total(schedule)
    assert whole <= seconds
    limited = schedule.supernet == 300 * (292 - own.recipe.validation) // 4
    assert whole >= 0.95 * seconds or limited
    assert schedule.networks == {150: 1, 600: 1, 3600: 3, 7200: 5}[seconds]
    assert schedule.tuning == schedule.supernet // (6 if method == "detnas" else 1)


def test_without_a_limit_it_is_as_long_as_usual() -> None:
    assert first(plan(), None) == Schedule(1755, 10, 6, 292, 3)  # 30 epochs of 234 / 4 iterations
    assert first(plan(machine=GPU), None) == Schedule(4000, 20, 10, 666, 3)
    assert first(plan("hit"), None).candidates == 0


def test_too_little_time_is_told_before_anything_runs() -> None:
    least = plan().total(shortest(plan()))
    assert first(plan(), least - 1) is None and first(plan(), least) is not None


def test_random_networks_are_given_up_before_the_run_is() -> None:
    slow = plan(rates=Rates(step=0.5, tune=0.4, candidate=4.0, image=0.1, start=4.0))
    least = slow.total(Schedule(120, 5, 2, 20, 0))
    assert first(slow, least + 1).networks == 0


SCHEDULE = Schedule(1000, 10, 6, 150, 2)


def test_nothing_changes_before_the_supernet_is_trained() -> None:
    assert rest(plan(), SCHEDULE, {}, {"supernet"}, 10.0) == SCHEDULE


def test_what_is_left_is_fitted_into_the_time_that_is_left() -> None:
    own = plan()
    took = {"supernet": own.seconds_of("supernet", SCHEDULE)}
    left = own.total(SCHEDULE, took)
    for share in (0.6, 1.0, 1.5):
        found = rest(own, SCHEDULE, took, {"supernet"}, share * left)
        assert found.supernet == 1000
        assert 0.85 * share * left <= own.total(found, took) <= share * left
    shorter = rest(own, SCHEDULE, took, {"supernet"}, 0.6 * left)
    assert (
        shorter.candidates < 60
        and shorter.tuning < rest(own, SCHEDULE, took, {"supernet"}, 1.5 * left).tuning
    )


def test_a_machine_that_got_slower_is_taken_into_account() -> None:
    own = plan()
    took = {"supernet": 3 * own.seconds_of("supernet", SCHEDULE)}
    assert slowness(own, SCHEDULE, took) == pytest.approx(3)
    left = 300.0
    slow = own.slower(slowness(own, SCHEDULE, took))
    found = rest(slow, SCHEDULE, took, {"supernet"}, left)
    assert 0.8 * left <= slow.total(found, took) <= left
    # The search shares work between candidates, and says nothing about trainings.
    assert slowness(own, SCHEDULE, took | {"search": 1.0}) == pytest.approx(3)


def test_what_has_begun_keeps_its_length() -> None:
    own = plan()
    took = {"supernet": own.seconds_of("supernet", SCHEDULE)}
    begun = {"supernet", "search"}
    searching = rest(own, SCHEDULE, took, begun, 100.0)
    assert (searching.population, searching.generations) == (10, 6)
    took |= {"search": 60.0, "inherited": 6.0}
    tuning = rest(own, SCHEDULE, took, {*begun, "inherited", "searched"}, 1.0)
    assert tuning.tuning == 150 and tuning.networks == 0
    drawn = {*begun, "inherited", "searched", "shufflenetv2", "random_1"}
    assert rest(own, SCHEDULE, took, drawn, 1.0).networks == 1


def test_time_that_is_left_at_the_end_goes_to_more_random_networks() -> None:
    own = plan()
    stages = own.stages(replace(SCHEDULE, networks=0))
    took = {name: own.seconds_of(name, SCHEDULE) for name in stages}
    network = own.seconds_of("searched", SCHEDULE)
    for left, networks in ((0.5, 0), (1.1, 1), (3.2, 3), (99, 5)):
        assert rest(own, SCHEDULE, took, set(took), left * network).networks == networks


def test_networks_learn_at_least_something() -> None:
    own = plan()
    took = {"supernet": own.seconds_of("supernet", SCHEDULE), "search": 60.0}
    found = rest(own, SCHEDULE, took, set(took), -50.0)
    assert (found.tuning, found.networks) == (LEAST.tuning, 0)


def reference(stages: list[tuple[float, float]], jobs: int) -> float:
    """:func:`side_by_side` of whole seconds, second by second."""
    waiting = sorted(stages, key=lambda stage: -stage[1])
    now = max(worked for _, worked in waiting)
    left = [max(0.0, seconds - worked) for seconds, worked in waiting]
    while any(left):
        busy = [i for i, seconds in enumerate(left) if seconds][:jobs]
        now += 1
        for i in busy:
            left[i] -= 1
    return now


def test_stages_side_by_side_take_the_longest_row() -> None:
    draw = random.Random(0)
    for _ in range(200):
        jobs = draw.randint(1, 4)
        stages = [(float(draw.randint(1, 9)), 0.0) for _ in range(draw.randint(1, 7))]
        begun = draw.randint(0, min(jobs, len(stages)))
        stages[:begun] = [(seconds, float(draw.randint(0, 9))) for seconds, _ in stages[:begun]]
        assert side_by_side(stages, jobs) == reference(stages, jobs)
    assert side_by_side([], 3, 5.0) == 0.0
    assert side_by_side([(10.0, 0.0)] * 3, 2, start=4.0) == 24.0
    assert side_by_side([(10.0, 0.0)] * 3, 1, start=4.0) == 30.0


def test_a_run_counts_what_runs_side_by_side_once() -> None:
    schedule = Schedule(1000, 10, 6, 150, 2)
    alone = plan()
    own = replace(alone, jobs=2)
    before = sum(own.seconds_of(name, schedule) for name in ("supernet", "search"))
    network, tested = (own.seconds_of(name, schedule) for name in ("searched", "inherited"))
    # A test and two networks in a row next to two networks.
    assert own.total(schedule) == pytest.approx(before + tested + 2 * network)
    took = dict.fromkeys(("supernet", "search", "inherited"), 1.0)
    working = {"searched": 13.0, "shufflenetv2": 10.0}
    left = own.total(schedule, took, working)
    assert left == pytest.approx(13 - 10 + 2 * network)
    assert alone.total(schedule, took, {"searched": 13.0}) == pytest.approx(4 * network)
    assert replace(own, rates=replace(own.rates, process=5.0)).total(schedule) == pytest.approx(
        own.total(schedule) + 5
    )


@pytest.mark.parametrize("method", ["detnas", "hit"])
@pytest.mark.parametrize("jobs", [2, 3, 4, 7])
@pytest.mark.parametrize("seconds", [150, 600, 3600])
def test_a_run_fills_its_time_side_by_side(seconds: int, jobs: int, method: str) -> None:
    own = replace(plan(method), jobs=jobs)
    schedule = first(own, seconds)
    whole = own.total(schedule)
    limited = schedule.supernet == 300 * (292 - own.recipe.validation) // 4
    assert whole <= seconds and (whole >= 0.95 * seconds or limited)
    # No place without work.
    trained = own.trained(schedule)
    assert trained % jobs == 0 or schedule.networks == MOST_NETWORKS
    assert schedule.networks >= {150: 1, 600: 1, 3600: 3}[seconds]
    took = {own.learns: own.seconds_of(own.learns, schedule)}
    for share in (0.7, 1.0, 1.4):
        left = share * own.total(schedule, took)
        found = rest(own, schedule, took, {own.learns}, left)
        assert 0.8 * left <= own.total(found, took) <= left


def test_networks_with_other_shares_of_the_cores_do_as_much_in_all() -> None:
    own, on_gpus = plan(), plan(machine=GPU)
    two = own.with_jobs(2)
    assert two.rates == replace(RATES, tune=2 * RATES.tune, image=2 * RATES.image)
    assert two.jobs == 2 and two.with_jobs(1) == own
    assert on_gpus.with_jobs(4) == replace(on_gpus, jobs=4)


def test_a_network_that_has_begun_fixes_the_length_of_all() -> None:
    own = replace(plan(), jobs=2)
    took = {"supernet": own.seconds_of("supernet", SCHEDULE), "search": 60.0}
    begun = {*took, "shufflenetv2"}
    assert rest(own, SCHEDULE, took, begun, 1.0, {"shufflenetv2": 0.0}).tuning == SCHEDULE.tuning


def test_images_get_smaller_where_time_is_short() -> None:
    own = plan()  # 192 pixels, 0.1 s an iteration
    assert affordable_side(own, None) == affordable_side(own, 600) == 192
    seconds = [s for s in range(60, 600, 10) if affordable_side(own, s) < 192]
    assert {affordable_side(own, s) for s in seconds} == {160, 128}
    assert affordable_side(own, 20) == 128
