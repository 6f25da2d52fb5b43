"""Facts, rates and plans that the tests share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from detnas_d2.recipe.choice import choose
from detnas_d2.recipe.facts import DataFacts, Machine
from detnas_d2.recipe.inputs import Data, Settings
from detnas_d2.recipe.rates import Rates
from detnas_d2.recipe.record import Record
from detnas_d2.recipe.schedule import Plan, Schedule

CPU = Machine(gpu=False, processes=1, threads=2)
GPU = Machine(gpu=True, processes=1, threads=16, memory=24.0)
CELLS = DataFacts(
    train=292,
    test=72,
    val=0,
    classes=3,
    short=480,
    long=640,
    elongation=4 / 3,
    smallest=43,
    small=40,
    large=167,
    aspects=(0.77, 1.19),
    crowd=20,
)
RATES = Rates(step=0.1, tune=0.08, candidate=2.0, image=0.03, start=4.0)


def plan(method: str = "detnas", machine: Machine = CPU, rates: Rates = RATES) -> Plan:
    """On cells; Hit-Detector has no candidates."""
    rates = rates if method == "detnas" else replace(rates, candidate=0.0)
    return Plan(choose(CELLS, machine, method), CELLS, rates)


DATA = Data(
    ({"NAME": "cells", "FORMAT": "coco", "IMAGES": "/i", "ANNOTATIONS": "/a.json",
      "SPLITS": {"cells_train": 0.8, "cells_test": 0.2}},),
    "cells_train", "cells_test", "", ("RBC", "WBC", "Platelets"),
)  # fmt: skip
SCHEDULE = Schedule(1200, 10, 6, 200, 2)


def record_of(output: Path, **changes: Any) -> Record:
    """A record that is written."""
    values = {
        "asked": {"data": "/i", "budget": "", "time": 600.0},
        "plan": plan(),
        "schedule": SCHEDULE,
        "data": DATA,
        "settings": Settings(str(output), seed=3),
        "machine": "a CPU",
        "seconds": 600.0,
        "used": 12.5,
        "files": {},
    }
    return Record(**values | changes).written()
