"""The decisions of a new run: data read, recipe chosen, speeds measured, lengths fitted."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from detectron2.data import DatasetCatalog

from detnas_d2.config.tools import base_config
from detnas_d2.data import register_datasets
from detnas_d2.data.datasets.registration import CACHE_FOLDER
from detnas_d2.data.loaders.train import load_training_dicts
from detnas_d2.recipe.amounts import Budget, read_budget
from detnas_d2.recipe.choice import Recipe, choose, next_smaller, spaces_of
from detnas_d2.recipe.facts import DataFacts, Machine, facts_of
from detnas_d2.recipe.inputs import Data, Settings
from detnas_d2.recipe.latency import limited
from detnas_d2.recipe.measuring import measure
from detnas_d2.recipe.record import FOLDER, Record
from detnas_d2.recipe.schedule import Plan, TooLittleTime, first
from detnas_d2.utils.errors import InputError

_ENOUGH = 800
"""Iterations of a supernet that are worth more than larger images."""


def read_facts(data: Data, output: str) -> DataFacts:
    """Facts about the datasets, which are registered and checked; bad entries are dropped."""
    cfg = base_config()
    cfg.DATASETS.REGISTER = [dict(declaration) for declaration in data.declarations]
    cfg.DATASETS.INVALID = "drop"
    cfg.DATASETS.CACHE_DIR = os.path.join(output, CACHE_FOLDER)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (data.train,), (data.test,)
    names = [data.val] if data.val else []
    register_datasets(cfg, names)
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
) -> Record:
    """The record of a run, not written yet.

    Args:
        asked: the options: ``budget`` and ``time`` (seconds), which may be empty, ``method``.
        start: ``time.monotonic()`` when the command began; what it took since counts.

    Raises:
        InputError: a budget or a time that cannot be kept.
    """
    budget = read_budget(asked["budget"]) if asked["budget"] else Budget()
    method, named, side = asked["method"], settings.start.space, 0
    while True:
        recipe = choose(facts, machine, method, macs=budget.macs, side=side, space=named)
        if budget.milliseconds is not None:
            recipe, settings = _within_latency(
                budget.milliseconds, recipe, facts, machine, data, settings
            )
        plan = Plan(recipe, facts, measure(recipe, facts, machine, data, settings))
        used, side = time.monotonic() - start, next_smaller(recipe)
        left = None if asked["time"] is None else asked["time"] - used
        try:
            schedule = first(plan, left)
        except TooLittleTime:
            if not side:
                raise
            continue
        if left is None or schedule.supernet >= _ENOUGH or not side:
            break
    return Record(
        asked=asked,
        plan=plan,
        schedule=schedule,
        data=data,
        settings=settings,
        machine=str(machine),
        seconds=asked["time"],
        used=used,
        files={},
    )


def _within_latency(
    milliseconds: float,
    recipe: Recipe,
    facts: DataFacts,
    machine: Machine,
    data: Data,
    settings: Settings,
) -> tuple[Recipe, Settings]:
    """The recipe with a space whose detectors lie around a latency, and the limit."""
    if recipe.method == "hit":
        raise InputError(
            "--budget: Hit-Detector weighs the cost in its loss and has no limit; leave it out, or "
            "use --method detnas"
        )
    start = settings.start.space
    names = (start,) if start else spaces_of(machine)
    recipes = [
        replace(choose(facts, machine, recipe.method, side=recipe.side, space=name), max_macs=0)
        for name in names
    ]
    folder = os.path.join(settings.output, FOLDER)
    return limited(milliseconds, recipes, facts, data, settings, folder)
