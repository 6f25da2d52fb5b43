"""run_pipeline.py --plot: figure 1 of DetNAS, figure 3 of Hit-Detector."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from detnas_d2.pipeline import table_plots
from detnas_d2.pipeline.experiment import read_experiment
from detnas_d2.pipeline.run import run_pipeline
from detnas_d2.pipeline.table_plots import draw_tables
from detnas_d2.pipeline.tables import Column, Plot, Row, Table, TableError
from detnas_d2.utils.errors import InputError
from tests.engine.tiny_runs import Configs, arguments
from tests.experiments import CONFIGS, content
from tests.pipeline.test_tables import finish, write_table

COLUMNS = (Column("MACs"), Column("AP"))


def table(plot: Plot | None, **rows: tuple) -> Table:
    """A table of printed numbers."""
    names = {name.replace("_in_", ": "): numbers for name, numbers in rows.items()}
    found = tuple(Row(name, references={"PAPER": numbers}) for name, numbers in names.items())
    return Table("the title", COLUMNS, found, {"PAPER": "somewhere"}, {}, (), plot)


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are drawn, in the place of files."""
    found: list[Any] = []
    monkeypatch.setattr(table_plots, "save_figure", lambda figure, file: found.append(figure))
    return found


def test_points_of_printed_numbers(figures: list[Any]) -> None:
    numbers = {"a": (100, "36.4"), "b": (300, "40.0"), "none": (None, "41.0"), "text": (5, "-")}
    draw_tables([table(Plot(y="AP", x="MACs"), **numbers), table(None)], "x.svg")
    (axis,) = figures[0].axes
    points = [line.get_xydata().tolist() for line in axis.lines]
    assert points == [[[100, 36.4]], [[300, 40.0]]]
    assert [text.get_text() for text in axis.texts] == ["a", "b"]
    assert (axis.get_xlabel(), axis.get_ylabel(), axis.get_title()) == ("MACs", "AP", "the title")
    (legend,) = figures[0].legends
    assert [text.get_text() for text in legend.texts] == ["paper"]


def test_places_by_part_with_ranges(figures: list[Any]) -> None:
    numbers = {
        "neck_in_k3": (None, "30.4 to 30.6"),
        "neck_in_k5": (None, 31.5),
        "head_in_k3": (None, None),
    }
    draw_tables([table(Plot(y="AP"), **numbers)], "x.svg")
    neck, head = figures[0].axes
    assert [axis.get_title() for axis in (neck, head)] == ["neck", "head"]
    assert [text.get_text() for text in neck.get_xticklabels()] == ["k3", "k5"]
    drawn = [line.get_xydata().tolist() for line in neck.lines if len(line.get_xdata())]
    assert drawn == [[[0, 30.4], [0, 30.6]], [[1, 31.5]]]
    assert neck.get_ylim() == head.get_ylim()  # one scale


def test_measured_networks(configs: Configs, tmp_path: Path, figures: list[Any]) -> None:
    file = write_table(tmp_path, configs, SEEDS=[0], PLOT={"X": "MACs (M)", "Y": "AP"})
    experiment = read_experiment(file)
    for name, ap in (("small_1", 30.0), ("small_2", 34.0)):
        finish(experiment, f"seed 0, one: {name}", **{"bbox/AP": 1.0})
        finish(experiment, f"seed 0, two: {name}", **{"bbox/AP": ap})
    draw_tables(experiment.tables, "x.svg")
    (axis,) = figures[0].axes
    (measured,) = axis.containers
    assert measured.get_label() == "measured"
    ((x, y),) = measured.lines[0].get_xydata()
    row, column = experiment.tables[0].rows[1], experiment.tables[0].columns[2]
    assert x == experiment.tables[0].cell(row, column, 2).mean and y == 32.0
    low, high = measured.lines[2][0].get_segments()[0][:, 1]
    assert (high - low) / 2 == pytest.approx(8**0.5)  # of 30 and 34, with n - 1


@pytest.mark.parametrize(
    ("plot", "message"),
    [
        ({"Y": "no"}, "PLOT: Y 'no': expected one of top-1, AP, MACs"),
        ({"X": "no", "Y": "AP"}, "PLOT: X 'no': expected one of"),
        ({"X": "AP"}, "PLOT: .*missing 1 required"),
        ("AP", "PLOT: 'AP'"),
    ],
)
def test_wrong_plot(plot: object, message: str, configs: Configs, tmp_path: Path) -> None:
    with pytest.raises(TableError, match=message):
        read_experiment(write_table(tmp_path, configs, PLOT=plot))


def test_nothing_to_draw(figures: list[Any]) -> None:
    with pytest.raises(InputError, match="no table of the file has a PLOT"):
        draw_tables([table(None, a=(1, 2))], "x.svg")
    with pytest.raises(InputError, match="neither a measured nor a printed number"):
        draw_tables([table(Plot(y="AP", x="MACs"), a=(1, None))], "x.svg")
    with pytest.raises(InputError, match="neither a measured nor a printed number"):
        draw_tables([table(Plot(y="AP"), a=(1, "-"))], "x.svg")


def test_command_draws_without_running(
    configs: Configs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_table(tmp_path, configs, PLOT={"Y": "AP"})
    args = arguments(file)
    args.dry_run, args.plot = True, str(tmp_path / "figure.svg")
    run_pipeline(args)
    assert "others' method" in Path(args.plot).read_text()
    assert not (tmp_path / "runs").exists()
    args.plot = str(tmp_path / "figure.txt")
    with pytest.raises(InputError, match="expected a file name that ends in one of .svg"):
        run_pipeline(args)
    args = arguments(write_table(tmp_path, configs))
    args.dry_run, args.plot = True, "figure.svg"
    with pytest.raises(InputError, match="has no table with a PLOT"):
        run_pipeline(args)


def test_figures_of_the_papers(figures: list[Any]) -> None:
    draw_tables(read_experiment(str(CONFIGS / "DetNAS/tables/table3.yaml")).tables, "x.svg")
    (axis,) = figures[0].axes
    points = {tuple(line.get_xydata()[0]) for line in axis.lines}
    assert {(1300, 40.0), (7600, 39.4), (3800, 36.7)} <= points  # as table 3 prints them
    (hit,) = content("HitDetector/tables/figure3.yaml")["TABLES"]  # slow to read: 216 stages
    parts = {row["NAME"].partition(": ")[0] for row in hit["ROWS"]}
    assert hit["PLOT"] == {"Y": "mAP"} and parts == {"backbone", "neck", "head"}
