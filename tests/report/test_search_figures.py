"""What the figures of searches show."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from detnas_d2.report import search_figures
from detnas_d2.report.figures import LINE
from detnas_d2.report.found import read_folder
from detnas_d2.report.search_figures import dots_figure, generations_figure, lines_figure
from detnas_d2.report.searches import architecture_figures, supernet_part
from tests.report.folders import records


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures of matplotlib in the place of their SVG."""
    monkeypatch.setattr(search_figures, "svg", lambda figure, *rest: figure)


def test_a_single_network_is_not_hidden_by_its_mean(undrawn: None) -> None:
    figure: Any = dots_figure({"searched": [20.0], "random": [10.0, 14.0]}, "bbox/AP")
    (axis,) = figure.axes
    assert [len(dots.get_offsets()) for dots in axis.collections] == [1, 2]
    assert [list(line.get_xdata()) for line in axis.lines] == [[12.0, 12.0]]


def test_candidates_are_drawn_in_ink_not_as_the_grid(undrawn: None) -> None:
    figure: Any = generations_figure({"": records(20)}, "bbox/AP")
    from matplotlib.colors import to_hex

    (axis,) = figure.axes
    colors = {to_hex(dots.get_facecolor()[0]) for dots in axis.collections}
    assert len(axis.collections) == 2 and LINE not in colors


def test_one_point_is_no_curve(run: Path) -> None:
    lines = [json.dumps({"iteration": n, "total_loss": 1.0 + n}) for n in (19, 39)]
    for count, told in ((1, False), (2, True)):
        (run / "searched" / "metrics.json").write_text("\n".join(lines[:count]))
        found = read_folder(str(run))
        (winner,) = [stage for stage in found.stages if stage.name == "searched"]
        part = supernet_part(found, winner)
        texts = [text for _, text in part.figures] if part is not None else []
        assert any("Loss of searched" in text for text in texts) == told


def test_an_axis_of_shares_has_none_above_one(undrawn: None) -> None:
    series = {"cat": ([0.0, 1.0], [1.0, 1.0])}
    for shares, limits in ((True, (-0.05, 1.05)), (False, (0.945, 1.055))):
        figure: Any = lines_figure(
            "precision", series, x="recall", y="precision", description="", shares=shares
        )
        (axis,) = figure.axes
        assert axis.get_ylim() == pytest.approx(limits)


@pytest.mark.parametrize(
    ("gmacs", "unit", "shown"), [(0.0206, "MMACs", 20.6), (20.6, "GMACs", 20.6)]
)
def test_small_costs_are_in_millions(undrawn: None, gmacs: float, unit: str, shown: float) -> None:
    metrics = [{"iteration": n, "arch/expected_gmacs": gmacs} for n in (0, 20)]
    ((figure, _),) = architecture_figures(SimpleNamespace(metrics=metrics))  # type: ignore[arg-type]
    (axis,) = figure.axes
    assert axis.get_ylabel() == unit
    assert list(axis.lines[0].get_ydata()) == pytest.approx([shown, shown])
