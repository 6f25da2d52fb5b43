"""A budget in milliseconds: measured, as a limit of the search.

The limit of a search is one of the backbone's body, by a table of its blocks. What the rest of the
detector takes is measured once, with one network, and left to it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from detectron2.modeling import build_model

from detnas_d2.config.tools import load_config
from detnas_d2.engine.defaults import fall_back_to_cpu
from detnas_d2.engine.latency import detector_latency
from detnas_d2.recipe.choice import HAND_MADE_OP, Recipe
from detnas_d2.recipe.facts import DataFacts
from detnas_d2.recipe.inputs import Data, Settings
from detnas_d2.recipe.measuring import write_trial
from detnas_d2.search_space import LatencyTable, measure_latency
from detnas_d2.search_space.space import SPACES
from detnas_d2.utils.errors import InputError
from detnas_d2.utils.io import write_text

TABLE_FILE = "latency.json"


@dataclass(frozen=True)
class Measured:
    """Latencies of a space: the table of its blocks, and the rest of the detector."""

    table: LatencyTable
    rest: float

    @property
    def range(self) -> tuple[float, float]:
        """Milliseconds of detectors with the fastest and the slowest path."""
        return self.rest + self.table.cheapest(), self.rest + self.table.most_expensive()


def limited(
    milliseconds: float,
    recipes: Sequence[Recipe],
    facts: DataFacts,
    data: Data,
    settings: Settings,
    folder: str,
) -> tuple[Recipe, Settings]:
    """The first recipe whose networks lie around a budget, and the settings with its limit.

    Args:
        recipes: of different spaces.
        folder: where the table is written.

    Raises:
        InputError: no space has networks on both sides of the budget, naming the ranges.
    """
    ranges = []
    for recipe in recipes:
        found = measured(recipe, facts, data, settings)
        low, high = found.range
        if low <= milliseconds <= high:
            file = os.path.join(folder, TABLE_FILE)
            write_text(file, found.table.to_json())
            limit = milliseconds - found.rest
            return recipe, replace(settings, max_ms=limit, latency_table=file)
        ranges.append(f"{recipe.space} {low:.3g} to {high:.3g} ms")
    raise InputError(
        f"--budget {milliseconds:g}ms: expected a latency within the range that detectors of a "
        f"search space have here, with images of {recipes[0].side} x {recipes[0].longest} pixels: "
        f"{', '.join(ranges)}"
    )


def measured(recipe: Recipe, facts: DataFacts, data: Data, settings: Settings) -> Measured:
    """Latencies of the recipe's space, with one image of the size that its detectors see."""
    folder = write_trial(recipe, facts, data, settings)
    space = SPACES[recipe.space]
    path = space.uniform_path(HAND_MADE_OP)
    cfg = load_config(os.path.join(folder, "finetune.yaml"), ["MODEL.DETNAS.PATH", str(path)])
    fall_back_to_cpu(cfg)
    size = recipe.side, recipe.longest
    table = measure_latency(space, input_size=size, device=cfg.MODEL.DEVICE, repeats=10)
    image = torch.randint(0, 256, (3, *size), generator=torch.Generator().manual_seed(0))
    latency = detector_latency(build_model(cfg), image.to(torch.uint8))
    return Measured(table, max(latency.detector - table.total(path.choices), 0.0))
