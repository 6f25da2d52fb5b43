"""What a person reads about data before a run starts, and what the run keeps of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from detnas_d2.data.recognition import recognise
from detnas_d2.recipe.data_telling import data_lines, remarks
from detnas_d2.recipe.decide import read_facts
from detnas_d2.recipe.inputs import Data
from detnas_d2.recipe.one_form import in_one_form


def written(folder: Path, faults: int) -> Path:
    """Ten images with a box of 12 x 12 pixels each, and rows of boxes without height."""
    folder.mkdir()
    rows = ["filename,width,height,class,xmin,ymin,xmax,ymax"]
    for i in range(10):
        Image.new("RGB", (60, 40), (i, 0, 0)).save(folder / f"{i}.png")
        rows.append(f"{i}.png,60,40,{'red' if i % 5 else 'white'},2,3,14,15")
    rows += [f"{i}.png,60,40,red,5,9,9,9" for i in range(faults)]
    (folder / "boxes.csv").write_text("\n".join(rows))
    return folder


@pytest.mark.parametrize("faults", [0, 2, 5])
def test_what_was_found_and_what_was_left_out(
    faults: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = recognise(str(written(tmp_path / tmp_path.name, faults)))
    names = found.train, found.test, found.val
    data = Data(found.declarations, *names, found.classes, remarks(found))
    data = in_one_form(data, str(tmp_path / "out"))
    facts = read_facts(data, str(tmp_path / "out"))
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    lines = data_lines(found, facts)
    assert lines[0] == f"CSV of boxes: {facts.train} training, {facts.test} test images, 2 classes"
    assert facts.train + facts.test == 10
    name = tmp_path.name  # datasets are registered once
    assert lines[1] == f"boxes    10 in {name}: red 8, white 2"
    assert lines[2] == (
        "sizes    boxes of 12 to 12 pixels (root of the area, nine of ten); images of 60 and 40 "
        "pixels, medians of their sides"
    )
    split = f"images are split into {facts.train} images"
    assert split in lines[-1] and data.remarks[-1] == lines[-1]
    listing = found.parts[0].listing
    left = [f"left out of {name}: {faults} empty_box"] * bool(faults)
    assert [*data.remarks[:-1]] == [f"{text}, one by one in {listing}" for text in left]
    assert [line for line in lines if line.startswith("left out")] == [f"{text}:" for text in left]
    entries = [line for line in lines if line.startswith("  [empty_box] ")]
    assert len(entries) == min(faults, 3)
    assert (f"  and 2 more, in {listing}" in lines) == (faults == 5)


def test_many_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    name = tmp_path.name
    file = written(tmp_path / tmp_path.name, 0) / "boxes.csv"
    more = [f"{i}.png,60,40,{i:02d},2,3,14,15" for i in range(10)]
    file.write_text("\n".join([file.read_text(), *more]))
    found = recognise(str(tmp_path / tmp_path.name))
    data = Data(found.declarations, found.train, found.test, found.val, found.classes)
    facts = read_facts(in_one_form(data, str(tmp_path / "out")), str(tmp_path / "out"))
    assert data_lines(found, facts)[1] == (
        f"boxes    20 in {name}: red 8, white 2, 00 1, 01 1, 02 1, 03 1, 04 1, 05 1 and 4 with "
        "fewer (detnas check lists them)"
    )
