"""A budget in milliseconds: measured, as a limit of the search.

The limit is one of the whole detector, from a decoded image of the data to boxes in it, by a table
of the blocks of the space that is fitted to a few detectors.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

from detnas_d2.config.tools import load_config
from detnas_d2.engine.defaults import LOGGERS, fall_back_to_cpu
from detnas_d2.engine.latency import Picture
from detnas_d2.engine.latency_table import Target, detector_table
from detnas_d2.engine.runtimes import RUNTIMES
from detnas_d2.engine.screen import quiet_command
from detnas_d2.recipe.choice import HAND_MADE_OP, Recipe
from detnas_d2.recipe.facts import DataFacts
from detnas_d2.recipe.inputs import Data, Settings
from detnas_d2.recipe.measuring import write_trial
from detnas_d2.search_space.elastic_latency import Latency
from detnas_d2.search_space.space import SPACES
from detnas_d2.utils.errors import InputError
from detnas_d2.utils.io import write_text
from detnas_d2.utils.screen import Line

TABLE_FILE = "latency.json"
_FITTED = 4


def within(
    milliseconds: float,
    recipes: Sequence[Recipe],
    facts: DataFacts,
    data: Data,
    settings: Settings,
) -> list[tuple[Recipe, Latency]]:
    """Recipes with detectors within a budget, and their tables; the most expensive one first.

    Args:
        recipes: of different spaces. Those after the first that has detectors on both sides of the
            budget are not measured.

    Raises:
        InputError: no detector is within the budget, naming the range of the spaces.
    """
    found: list[tuple[Recipe, Latency]] = []
    ranges = []
    for recipe in recipes:
        table = measured(recipe, facts, data, settings)
        low, high = table.cheapest(), table.most_expensive()
        ranges.append(f"{recipe.space} {low:.3g} to {high:.3g} ms")
        if low <= milliseconds:
            found.append((recipe, table))
            if milliseconds <= high:
                break
    if not found:
        raise InputError(
            f"--budget {milliseconds:g}ms: less than any detector takes here in "
            f"{RUNTIMES[settings.runtime].title} with an image at {recipes[0].side} x "
            f"{recipes[0].longest} pixels at most: {', '.join(ranges)}"
        )
    return sorted(found, key=lambda pair: pair[1].most_expensive(), reverse=True)


def with_limit(milliseconds: float, table: Latency, settings: Settings, folder: str) -> Settings:
    """The settings with a table, which is written to a folder, and a limit by it."""
    file = os.path.join(folder, TABLE_FILE)
    write_text(file, table.to_json())
    return replace(settings, max_ms=milliseconds, latency_table=file)


def measured(recipe: Recipe, facts: DataFacts, data: Data, settings: Settings) -> Latency:
    """Of the recipe's detectors, with the first test image; the datasets are registered."""
    folder = write_trial(recipe, facts, data, settings)
    path = SPACES[recipe.space].uniform_path(HAND_MADE_OP)
    cfg = load_config(os.path.join(folder, "finetune.yaml"), ["MODEL.DETNAS.PATH", str(path)])
    line = Line()
    line.begin(f"measuring the blocks of {recipe.space} and a few detectors")
    try:
        with quiet_command(LOGGERS, line):
            fall_back_to_cpu(cfg)
            target = Target(cfg, Picture.of_config(cfg), settings.runtime)
            return detector_table(target, fitted=_FITTED, checked=0)
    finally:
        line.clear()
