"""Facts, rates and plans that the tests share."""

from __future__ import annotations

from dataclasses import replace

from detnas_d2.recipe.choice import choose
from detnas_d2.recipe.facts import DataFacts, Machine
from detnas_d2.recipe.schedule import Plan, Rates

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
