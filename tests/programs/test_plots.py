"""Figures of a search as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from detnas_d2.programs import plots
from detnas_d2.search.diagnostics import fitness_by_generation
from tests.report.folders import records


def test_axes_tell_costs_in_words_and_generations_in_whole_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Any] = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, file: figures.append(figure))
    found = records(20)
    alive = [record for record in found if record.fitness is not None]
    plots.draw_history(found, fitness_by_generation(found), alive[:1], "macs", "x.svg")
    _, costs, bar = figures[0].axes
    assert costs.get_xlabel() == "multiply-adds, millions"
    drawn = [float(place) for place in costs.collections[0].get_offsets()[:, 0]]
    assert drawn == pytest.approx([record.macs / 1e6 for record in alive])
    figures[0].draw_without_rendering()
    assert all(float(tick).is_integer() for tick in bar.get_yticks())
