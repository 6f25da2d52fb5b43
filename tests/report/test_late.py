"""What the page of a run with a limit of time says of stages that were late."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from detnas_d2.engine.keeping_time import Late
from detnas_d2.recipe.progress import Progress
from detnas_d2.recipe.record import Record, read_record
from detnas_d2.recipe.refitting import Change
from detnas_d2.recipe.replanning import cut
from tests.recipe.values import plan, record_of
from tests.report.folders import config, write_stage
from tests.report.test_page import Page, page_of


def begun(folder: Path) -> Path:
    write_stage(folder / "supernet", config(folder))
    return folder


def cells(page: Page) -> list[str]:
    """Rows of the table of late stages, a text each."""
    table = page.text.split("this was decided.")[1].split(" Facts ")[0]
    return table.removeprefix(" stage when planned then pace ").split(" times the planned time")


def shortened(folder: Path) -> Record:
    """The record of a run whose supernet was late after 120 iterations, two minutes into it."""
    progress = Progress({}, {"supernet": 100.0})
    return cut(record_of(folder), "supernet", Late(120, 3.04), progress, 120.0).written()


def test_a_supernet_that_got_shorter(tmp_path: Path) -> None:
    page_before = page_of(begun(tmp_path))
    assert "Late stages" not in page_before.text and "than planned" not in page_before.text
    now = shortened(tmp_path).schedule.supernet
    assert 120 < now < 1200
    page = page_of(tmp_path)
    assert "shorter than planned, as the run may take 10 min: see Time (supernet)" in page.text
    assert cells(page)[0].strip() == (
        "supernet after 120 iterations, 2 min into the run 1200 iterations "
        f"goes on after 120, to {now} iterations 3.0"
    )


def test_every_kind_of_decision(tmp_path: Path) -> None:
    changes = (
        Change("supernet", 200, 1200, 1200, 1.44, kept=True, worked=90.0, at=95.2),
        Change("search", 3, 6, 4, 2.0, kept=True, worked=30.0),
        Change("search", 1, 4, 1, 2.0, kept=True, worked=30.0),
        Change("searched", 40, 200, 90, 4.0, kept=False, worked=0.0, at=3700.0),
        Change("<b>", 5, 90, 0, 1.0, kept=False, worked=0.0, at=3900.0),
    )
    record_of(begun(tmp_path), changes=changes, seconds=4000.0)
    page = page_of(tmp_path)
    told = [row.strip() for row in cells(page)]
    assert told[:5] == [
        "supernet after 200 iterations, 1 min 35 s into the run 1200 iterations "
        "goes on all the same, and what follows gets shorter 1.4",
        "search after 3 generations 6 generations goes on after 3, to 4 generations 2.0",
        "search after 1 generation 4 generations goes on after 1, to 1 generation 2.0",
        "searched after 40 iterations, 1 h 2 min into the run 200 iterations "
        "begins again, for 90 iterations 4.0",
        "<b> after 5 iterations, 1 h 5 min into the run 90 iterations "
        "given up, as the time is over 1.0",
    ]
    # The supernet lost nothing; a stage that was late twice is named once.
    assert "may take 1 h 7 min: see Time (search, searched, <b>)" in page.text
    assert "b" not in page.counts


def test_a_stage_that_keeps_its_length_is_no_warning(tmp_path: Path) -> None:
    change = Change("supernet", 200, 1200, 1200, 1.44, kept=True, worked=90.0, at=95.2)
    record_of(begun(tmp_path), changes=(change,))
    page = page_of(tmp_path)
    assert "Late stages" in page.text and "than planned" not in page.text


def test_the_search_by_gradient_has_iterations(tmp_path: Path) -> None:
    change = Change("search", 200, 1200, 800, 2.0, kept=True, worked=90.0, at=95.2)
    record_of(begun(tmp_path), plan=plan("hit"), changes=(change,))
    assert "goes on after 200, to 800 iterations" in page_of(tmp_path).text


@pytest.mark.parametrize(
    "damage", ["{", "[]", '{"version": 9}', None], ids=["torn", "list", "version", "change"]
)
def test_a_damaged_record_costs_its_table_alone(tmp_path: Path, damage: str | None) -> None:
    record = shortened(begun(tmp_path))
    file = Path(record.folder, "recipe.json")
    if damage is None:
        value = json.loads(file.read_text())
        value["changes"][0]["now"] = "fewer"
        damage = json.dumps(value)
    file.write_text(damage)
    page = page_of(tmp_path)
    assert "time" in page.ids and "Late stages" in page.text and "into the run" not in page.text


def test_a_run_without_a_limit_has_no_late_stages(tmp_path: Path) -> None:
    replace(shortened(begun(tmp_path)), seconds=None, changes=()).save()
    assert read_record(str(tmp_path)) is not None
    assert "Late stages" not in page_of(tmp_path).text
