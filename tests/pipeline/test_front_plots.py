"""The figure of fronts that are compared."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from detnas_d2.pipeline import front_plots


def test_legends_hide_no_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Any] = []
    monkeypatch.setattr(front_plots, "save_figure", lambda figure, file: figures.append(figure))

    def after(best: float) -> Any:
        difference = SimpleNamespace(other="random", value=best, low=-best, high=3 * best)
        values = {"nsga2": {0: (2 * best, 1)}, "random": {0: (best, 1)}}
        return SimpleNamespace(values=values, differences=[difference])

    found: Any = SimpleNamespace(
        searches=["nsga2", "random"], evaluations=[20, 40], curve=[after(1.0), after(2.0)]
    )
    front_plots.draw_fronts(found, "x.svg")
    figures[0].draw_without_rendering()
    for axis in figures[0].axes:
        legend = axis.get_legend().get_window_extent()
        assert legend.y0 >= axis.get_window_extent().y1
