"""``detnas check`` on a small folder."""

from __future__ import annotations

import json
import os

import pytest
from PIL import Image

from detnas_d2.cli import main as command
from detnas_d2.utils.errors import InputError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Six images with a box each, the last without; one row is wrong."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = tmp_path / "cells"
    data.mkdir()
    rows = ["filename,width,height,class,xmin,ymin,xmax,ymax"]
    for i in range(6):
        Image.new("RGB", (40, 30), (i, 0, 0)).save(data / f"{i}.png")
        rows.append(f"{i}.png,40,30,{'red' if i % 2 else 'white'},2,3,{8 + i},13")
    rows[-1] = "5.png,40,30,,,,,"
    rows.append("0.png,40,30,red,5,5,5,9")
    (data / "boxes.csv").write_text("\n".join(rows))
    return data


def test_the_text(folder, capsys):
    command.main(["check", "--data", str(folder)])
    shown = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    assert lines[0] == f"{folder}: CSV of boxes, 2 classes"
    assert "cells 6 1 5 1 boxes.csv" in lines  # images, without boxes, boxes, dropped
    assert "- cells-train 5" in lines and "- cells-test 1" in lines
    assert lines.index("white 3") + 1 == lines.index("red 2")
    assert "box height / width 1.022 1.111 1.25 1.429 1.619" in lines  # 10 / 6, 7, 8, 9, 10
    (dropped,) = [line for line in shown.splitlines() if line.startswith("dropped from cells")]
    listing = dropped.rpartition(" ")[2]
    assert "1 empty_box" in dropped and listing.startswith(os.environ["XDG_CACHE_HOME"])
    with open(listing) as file:
        assert "boxes.csv, line 8" in file.read()
    assert any(line.startswith("note: there is no test set") for line in lines)
    assert sorted(os.listdir(folder)) == sorted([*(f"{i}.png" for i in range(6)), "boxes.csv"])


def test_json(folder, capsys):
    command.main(["check", "--data", str(folder), "--json"])
    first = json.loads(capsys.readouterr().out)
    assert first["parts"][0]["classes"] == {"red": 2, "white": 3}
    assert first["declarations"][0]["SPLITS"] == {"cells-train": 0.8, "cells-test": 0.2}
    command.main(["check", "--data", str(folder / "boxes.csv"), "--json"])
    again = json.loads(capsys.readouterr().out)
    for found in (first, again):
        found["parts"][0].pop("listing")
    assert again == first


def test_many_classes(folder, capsys):
    rows = [f"{i % 6}.png,40,30,{i:03d},2,3,9,9" for i in range(40)]
    head = (folder / "boxes.csv").read_text().splitlines()[0]
    (folder / "boxes.csv").write_text("\n".join([head, *rows, "1.png,40,30,039,1,1,9,9"]))
    command.main(["check", "--data", str(folder)])
    lines = capsys.readouterr().out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("class "))
    found = [line.split()[0] for line in lines[start + 1 : start + 32]]
    assert found == ["039", *(f"{i:03d}" for i in range(29)), "..."]
    assert "... and 10 with fewer" in lines[start + 31]


def test_no_data(tmp_path):
    with pytest.raises(InputError, match=r"no labelled images recognised. Looked for COCO"):
        command.main(["check", "--data", str(tmp_path)])
