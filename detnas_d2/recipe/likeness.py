"""A search like another one: with its choices and lengths, of the same data in another form, of
corrected data, or with another seed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from detnas_d2.pipeline.definition import read_pipeline
from detnas_d2.recipe.choice import Recipe
from detnas_d2.recipe.facts import DataFacts, Machine
from detnas_d2.recipe.inputs import Data, Settings
from detnas_d2.recipe.latency import TABLE_FILE
from detnas_d2.recipe.measuring import Beside, measure, measuring_places
from detnas_d2.recipe.places import FOLDER
from detnas_d2.recipe.progress import Progress
from detnas_d2.recipe.rates import Rates
from detnas_d2.recipe.record import Record, known_record
from detnas_d2.recipe.schedule import Plan
from detnas_d2.recipe.telling import counted
from detnas_d2.utils.errors import InputError
from detnas_d2.utils.io import write_text


def model_record(folder: str) -> Record:
    """The record of a search that another one is to be like, with the folder where it lies now.

    Raises:
        InputError: its record does not tell what is run, or a file that it needs is gone.
    """
    found = known_record(folder)
    table = os.path.join(folder, FOLDER, TABLE_FILE) if found.settings.latency_table else ""
    settings = replace(found.settings, output=folder, latency_table=table)
    record = replace(found, settings=settings)
    if record.is_edited():
        raise InputError(
            f"--like {folder}: its configs were edited, and config/recipe.json does not have that; "
            f"run_pipeline.py --config-file {record.pipeline_file} OUTPUT_DIR DIR SEED N runs them "
            "again"
        )
    for file in filter(None, (table, settings.start.supernet, settings.start.resnet)):
        if not os.path.isfile(file):
            raise InputError(f"--like {folder}: its search needs {file}, which is gone")
    return record


def alike(
    model: Record,
    asked: Mapping[str, Any],
    data: Data,
    facts: DataFacts,
    machine: Machine,
    output: str,
    start: float,
    jobs: int,
) -> Record:
    """The record of a run with the choices and the lengths of another, not written yet.

    Nothing is measured if that one is done, on such a machine with as many jobs: its stages tell
    how long these take.

    Args:
        model: of :func:`model_record`.
        asked: the options: ``data``, ``like`` and ``seed``, None for that of the other.
        facts: about ``data``.
        start: ``time.monotonic()`` when the command began; what it took since counts.
        jobs: stages of single networks that run at a time.

    Raises:
        InputError: the data, or the number of processes, do not fit the choices.
    """
    recipe = _for(model, facts, machine)
    seed = model.settings.seed if asked["seed"] is None else asked["seed"]
    settings = replace(model.settings, output=output, seed=seed)
    if model.settings.latency_table:
        settings = replace(settings, latency_table=os.path.join(output, FOLDER, TABLE_FILE))
        with open(model.settings.latency_table, encoding="utf-8") as text:
            write_text(settings.latency_table, text.read())
    plan = replace(model.plan.with_jobs(jobs), recipe=recipe, data=facts, front=None)
    if is_done(model) and (str(machine), jobs) == (model.machine, model.plan.jobs):
        plan = replace(plan, took=seconds_of_stages(model))
    else:
        plan = replace(plan, rates=_measured(plan, data, machine, settings))
    return Record(
        asked={**model.asked, "time": None, **asked},
        plan=plan,
        schedule=model.schedule,
        data=data,
        settings=settings,
        machine=str(machine),
        seconds=None,
        used=time.monotonic() - start,
        files={},
    )


def seconds_of_stages(record: Record) -> dict[str, float]:
    """Stage -> seconds, of those of a run that are done."""
    pipeline = read_pipeline(record.pipeline_file, ("OUTPUT_DIR", record.settings.output))
    return Progress.of(pipeline).took


def is_done(record: Record) -> bool:
    """Whether all stages of a run are."""
    return seconds_of_stages(record).keys() >= set(record.plan.stages(record.schedule))


def differences(model: Record, record: Record) -> list[str]:
    """Lines on what is not the same as in the run that a new one is like."""
    before, now = model.plan.data, record.plan.data
    lines = []
    counts = [(facts.train, facts.test, facts.val) for facts in (before, now)]
    if counts[0] != counts[1]:
        text = f"{before.train} training, {before.test} test"
        text += f", {before.val} validation" if before.val else ""
        lines.append(f"data     {text} images there")
    if tuple(model.data.classes) != tuple(record.data.classes):
        lines.append(f"classes  {', '.join(model.data.classes)} there")
    if not is_done(model):
        lines.append("lengths  as planned there by now: it is not done")
    for change in model.changes:
        if change.kept and change.now < change.planned:
            begun, ended = (
                counted(model.plan, change.stage, length) for length in (change.planned, change.now)
            )
            lines.append(f"{change.stage:8} for {begun} at first there, then for {ended}")
    return lines


def _for(model: Record, facts: DataFacts, machine: Machine) -> Recipe:
    """The other run's recipe; what scores candidates is the own validation set, if there it was."""
    recipe, folder = model.plan.recipe, model.settings.output
    if recipe.batch % machine.processes:
        raise InputError(
            f"--num-gpus {machine.processes}: the search in {folder} has {recipe.batch} images an "
            "iteration; expected a divisor of that"
        )
    if recipe.method == "hit":
        return recipe
    if not recipe.validation and not facts.val:
        raise InputError(
            f"--like {folder}: candidates are scored by a validation set there; the data have none"
        )
    least = recipe.validation + recipe.calibration
    if facts.train < least:
        raise InputError(
            f"--like {folder}: {recipe.validation} training images score candidates there, and "
            f"{recipe.calibration} others calibrate them; the data have {facts.train}"
        )
    return replace(recipe, scoring=recipe.validation or facts.val)


def _measured(plan: Plan, data: Data, machine: Machine, settings: Settings) -> Rates:
    """Speeds here; a baseline's in the proportion to a network's that its length is by."""
    with measuring_places(plan.jobs, machine.processes) as rooms:
        beside = Beside(rooms) if plan.jobs > 1 else None
        rates = measure(plan.recipe, plan.data, machine, data, settings, beside)
    return replace(rates, baseline=plan.rates.baseline * rates.tune / plan.rates.tune)
