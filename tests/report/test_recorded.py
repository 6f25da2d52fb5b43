"""What the page says of a run's data and of all its time."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from detnas_d2.recipe.record import read_record
from tests.recipe.values import record_of
from tests.report.folders import config, write_stage
from tests.report.test_page import page_of


def test_remarks_about_the_data_and_the_whole_time(tmp_path: Path) -> None:
    write_stage(tmp_path / "supernet", config(tmp_path))
    record = record_of(tmp_path)
    text = "left out of cells-train: 2 empty_box, one by one in <b>"
    replace(record, data=replace(record.data, remarks=(text,)), used=577.0, seconds=600.0).save()
    page = page_of(tmp_path)
    assert f"data: {text}" in page.text and "b" not in page.counts
    assert "last stage that is done: 9 min 37 s of the 10 min that it may take." in page.text
    replace(record, seconds=None, used=61.0).save()
    page = page_of(tmp_path)
    assert "data: " not in page.text and "that is done: 1 min 1 s." in page.text


def test_what_was_chosen(tmp_path: Path) -> None:
    write_stage(tmp_path / "supernet", config(tmp_path))
    record = record_of(tmp_path)
    start = replace(record.settings.start, text="a supernet of <i>")
    replace(record, settings=replace(record.settings, start=start)).save()
    page = page_of(tmp_path)
    lengths = "lengths supernet 1200 iterations, search 6 generations of "
    assert f"machine {record.machine}" in page.text and lengths in page.text
    assert "weights a supernet of <i>" in page.text
    assert "family " not in page.text and "i" not in page.counts


def test_a_record_without_remarks_reads_back(tmp_path: Path) -> None:
    record = record_of(tmp_path)
    record.save()
    file = Path(record.folder, "recipe.json")
    value = json.loads(file.read_text())
    del value["data"]["remarks"]
    file.write_text(json.dumps(value))
    assert read_record(str(tmp_path)) == record
