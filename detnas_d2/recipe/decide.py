"""The decisions of a new run: data read, recipe chosen, speeds measured, lengths fitted."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from detectron2.data import DatasetCatalog

from detnas_d2.data.loaders.train import load_training_dicts
from detnas_d2.recipe.amounts import Budget, read_budget
from detnas_d2.recipe.choice import OF_WEIGHTS, Recipe, choose, sides_up_to, spaces_of
from detnas_d2.recipe.facts import DataFacts, Machine, facts_of
from detnas_d2.recipe.inputs import Data, Settings
from detnas_d2.recipe.latency import with_limit, within
from detnas_d2.recipe.measuring import Beside, measure, measuring_places
from detnas_d2.recipe.one_form import registered
from detnas_d2.recipe.places import FOLDER
from detnas_d2.recipe.rates import UNKNOWN
from detnas_d2.recipe.record import Record
from detnas_d2.recipe.schedule import Plan, first, shortest
from detnas_d2.utils.errors import InputError
from detnas_d2.utils.screen import duration

_ENOUGH = 800
"""Iterations of a supernet that are worth more than larger images."""


def read_facts(data: Data, output: str) -> DataFacts:
    """Facts about the datasets, which are registered and checked; bad entries are dropped."""
    cfg = registered(data, output)
    train = load_training_dicts(cfg, [data.train])
    test, val = (len(DatasetCatalog.get(name)) if name else 0 for name in (data.test, data.val))
    return facts_of(train, test=test, val=val, classes=len(data.classes))


def decide(
    asked: Mapping[str, Any],
    data: Data,
    facts: DataFacts,
    machine: Machine,
    settings: Settings,
    start: float,
    jobs: int = 1,
) -> Record:
    """The record of a run, not written yet.

    Args:
        asked: the options: ``budget``, ``time`` (seconds) and ``family``, which may be empty,
            ``method``.
        start: ``time.monotonic()`` when the command began; what it took since counts.
        jobs: stages of single networks that may run at a time; as many do as there are of them.

    Raises:
        InputError: a budget or a time that cannot be kept.
    """
    budget = read_budget(asked["budget"]) if asked["budget"] else Budget()
    method, space = asked["method"], settings.start.space
    recipe = choose(facts, machine, method, budget.macs, 0, space)
    # Of speeds it matters here whether there is a baseline.
    trained = replace(UNKNOWN, baseline=float(bool(settings.start.resnet)))
    family = asked.get("family") or 1
    jobs = min(jobs, Plan(recipe, facts, trained, 1, family).usual_networks(asked["time"]))

    def left() -> float | None:
        return None if asked["time"] is None else asked["time"] - (time.monotonic() - start)

    def measured(recipe: Recipe, own: Settings, beside: Beside | None) -> Plan:
        rates = measure(recipe, facts, machine, data, own, beside)
        return Plan(recipe, facts, rates, jobs, family)

    def planned(
        side: int, beside: Beside | None, spaces: Mapping[str, str]
    ) -> tuple[Plan, Settings]:
        """``spaces``: name -> why, of those that milliseconds choose among."""
        if budget.milliseconds is None:
            recipe = choose(facts, machine, method, budget.macs, side, space)
            return measured(recipe, settings, beside), settings

        def of_space(name: str, why: str) -> Recipe:
            return replace(choose(facts, machine, method, None, side, name, why), max_macs=0)

        recipes = [of_space(name, why) for name, why in spaces.items()]
        found = within(budget.milliseconds, recipes, facts, data, settings)
        largest = found[0][0].space
        for recipe, table in found:
            if recipe.space != largest:
                recipe = of_space(recipe.space, f"as --time is too short for {largest}")
            folder = os.path.join(settings.output, FOLDER)
            own = with_limit(budget.milliseconds, table, settings, folder)
            plan = measured(recipe, own, beside)
            if long_enough(plan, left()):
                break
        return plan, own

    with measuring_places(jobs, machine.processes) as rooms:
        beside = Beside(rooms) if jobs > 1 else None
        names = dict.fromkeys(spaces_of(machine), "by --budget")
        plan, own = planned(0, beside, {space: OF_WEIGHTS} if space else names)
        side = affordable_side(plan, left())
        if side < plan.recipe.side:
            why = dict(plan.recipe.reasons)["space"].partition(";")[0]
            plan, own = planned(side, beside, {plan.recipe.space: why})
    schedule = first(plan, left())
    used = time.monotonic() - start
    if schedule is None:
        raise InputError(too_short(plan, asked["time"], used))
    return Record(
        asked=asked,
        plan=plan,
        schedule=schedule,
        data=data,
        settings=own,
        machine=str(machine),
        seconds=asked["time"],
        used=used,
        files={},
    )


def too_short(plan: Plan, asked: float, used: float) -> str:
    """Text for a time that is less than the shortest run takes.

    Args:
        asked, used: seconds: of ``--time``, and those that went into the decision.
    """
    whole = used + plan.total(shortest(plan))
    return (
        f"--time: {duration(asked)} are too short here: the shortest run takes about "
        f"{duration(whole)}, {duration(used)} of looking at the data and measuring among them; "
        f"expected --time {math.ceil(whole / 60)}m or more"
    )


def long_enough(plan: Plan, seconds: float | None) -> bool:
    """Whether a run of so many seconds trains for as long as one usually does that has the time."""
    usual, fitted = first(plan, None), first(plan, seconds)
    return usual is None or (fitted is not None and fitted.supernet >= usual.supernet)


def affordable_side(plan: Plan, seconds: float | None) -> int:
    """The largest side, up to the plan's, with which a supernet has enough iterations for its time;
    the smallest there is if none has. Taken as if all but starts went by pixels.
    """
    sides = sides_up_to(plan.recipe)
    for side in sides if seconds is not None else ():
        rates = plan.rates.times((side / plan.recipe.side) ** 2)
        rates = replace(rates, start=plan.rates.start, process=plan.rates.process)
        fitted = first(replace(plan, rates=rates), seconds)
        if fitted is not None and fitted.supernet >= _ENOUGH:
            return side
    return plan.recipe.side if seconds is None else sides[-1]
