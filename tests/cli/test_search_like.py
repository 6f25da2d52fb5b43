"""``detnas search --like``: the same figures in another format; what is told, what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from detnas_d2.cli.main import main
from detnas_d2.recipe import decide, likeness, refitting, session
from detnas_d2.recipe.record import read_record
from detnas_d2.recipe.schedule import Schedule
from detnas_d2.search.history import RECORDS_FILE
from detnas_d2.utils.errors import InputError
from tests.recipe.values import RATES, record_of


def as_yolo(coco: Path, folder: Path) -> Path:
    """A folder of YOLO's format with the images of a COCO one, classes in another order."""
    for part in ("train", "test"):
        content = json.loads((coco / part / "_annotations.coco.json").read_text())
        (folder / part / "images").mkdir(parents=True)
        (folder / part / "labels").mkdir()
        for image in content["images"]:
            Image.open(coco / part / image["file_name"]).save(
                folder / part / "images" / image["file_name"]
            )
            lines = []
            for annotation in content["annotations"]:
                x, y, width, height = annotation["bbox"]
                shares = (x + width / 2) / 64, (y + height / 2) / 48, width / 64, height / 48
                if annotation["image_id"] == image["id"]:
                    words = [2 - annotation["category_id"], *(f"{share:.6f}" for share in shares)]
                    lines.append(" ".join(map(str, words)))
            file = folder / part / "labels" / f"{Path(image['file_name']).stem}.txt"
            file.write_text("\n".join(lines))
    text = "train: train/images\nval: test/images\ntest: test/images\nnames: [dark, light]\n"
    (folder / "data.yaml").write_text(text)
    return folder


def found(run: Path) -> list[tuple[str, float]]:
    """Paths of a search and their scores, in order."""
    lines = (run / "search" / RECORDS_FILE).read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [(record["path"], record["fitness"]) for record in records]


def test_a_search_like_another_of_the_same_data_in_another_format_has_its_figures(
    short: None,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("detnas_d2.report.try_report", lambda folder: None)
    one, other = tmp_path / "one", tmp_path / "other"
    with monkeypatch.context() as replanned:
        replanned.setattr(decide, "measure", lambda *_: RATES)
        replanned.setattr(refitting, "MOST_NETWORKS", 1)
        replanned.setattr(refitting, "_MOST_TUNING", {"detnas": 0.75})
        main(["search", "--data", str(images), "--output", str(one), "--time", "1h"])
    capsys.readouterr()
    words = ["search", "--data", str(as_yolo(images, tmp_path / f"{tmp_path.name}-yolo"))]
    words += ["--like", str(one), "--output", str(other)]
    monkeypatch.setattr(likeness, "measure", lambda *_: pytest.fail("measured"))
    main(words)
    told = capsys.readouterr().out
    shown = os.path.relpath(one)
    assert f"Chosen by {shown}:" in told and "classes  " not in told
    assert f"Estimate, by what the stages of {shown} took:" in told
    record = read_record(str(other))
    assert record is not None and record.seconds is None
    assert record.schedule == Schedule(4, 2, 1, 3, 1)  # as it was in the end
    tables = [json.loads((run / "table.json").read_text())["rows"] for run in (one, other)]
    for rows in tables:
        for row in rows.values():
            row.pop("seconds", None)
    assert tables[0] == tables[1] and found(one) == found(other)
    weights = (
        torch.load(run / "searched" / "model_final.pth", weights_only=True)["model"]
        for run in (one, other)
    )
    torch.testing.assert_close(*weights, rtol=0, atol=0)
    # The same command goes on, another one does not.
    main(words)
    assert "Chosen" not in capsys.readouterr().out
    with pytest.raises(InputError, match="begun with other options .--seed none then, 1 now"):
        main([*words, "--seed", "1"])
    with pytest.raises(InputError, match=f"--like {one} then, none now"):
        main([*words[:3], "--output", str(other)])


def test_a_search_like_one_that_is_not_done_is_measured(
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fewer = record_of(tmp_path / "cells").plan.recipe
    small = json.loads((tmp_path / "cells" / "config" / "recipe.json").read_text())
    small["plan"]["recipe"] |= {"validation": 4, "calibration": 8}
    (tmp_path / "cells" / "config" / "recipe.json").write_text(json.dumps(small))
    monkeypatch.setattr(likeness, "measure", lambda *_: RATES.times(2))
    monkeypatch.setattr(session, "carry_on", lambda record, **_: {"next": []})
    words = ["search", "--data", str(images), "--like", str(tmp_path / "cells")]
    main([*words, "--seed", "7", "--output", str(tmp_path / "out")])
    told = capsys.readouterr().out
    assert "of looking and measuring:" in told
    assert "data     292 training, 72 test images there" in told
    assert "classes  RBC, WBC, Platelets there" in told
    assert "lengths  as planned there by now: it is not done" in told
    record = read_record(str(tmp_path / "out"))
    assert record is not None and record.settings.seed == 7
    assert record.plan.rates == RATES.times(2) and record.plan.recipe.anchors == fewer.anchors
    assert "\nSEED: 7\n" in (tmp_path / "out" / "config" / "dataset.yaml").read_text()


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--time", "1h"], "--time: --like {tmp}/cells has its own; leave it out"),
        (["--budget", "24M"], "--budget: --like"),
        (["--method", "detnas"], "--method: --like"),
        (["--family", "3"], "--family: --like"),
        (["--output", "{tmp}/cells"], "cells: the search that --like names; name a new folder"),
        (["--num-gpus", "3"], "--num-gpus 3: the search in {tmp}/cells has 4 images an iteration"),
        ([], "--like {tmp}/cells: 58 training images score candidates there, and 64 others"),
    ],
)
def test_what_contradicts_another_search_is_one_line(
    words: list[str], problem: str, images: Path, tmp_path: Path
) -> None:
    record_of(tmp_path / "cells")
    command = ["search", "--data", str(images), "--like", str(tmp_path / "cells")]
    command += ["--output", str(tmp_path / "out")] * ("--output" not in words)
    with pytest.raises(InputError) as error:
        main([*command, *(word.format(tmp=tmp_path) for word in words)])
    assert problem.format(tmp=tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_a_folder_without_a_search_is_told_without_torch(tmp_path: Path) -> None:
    words = ["search", "--data", str(tmp_path), "--like", str(tmp_path)]
    code = (
        "import sys; from detnas_d2.cli.main import main\n"
        f"try: main({words})\n"
        "finally: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["False"]
    assert f"--like {tmp_path}: no run of detnas search that has begun" in done.stderr


def test_edited_configs_and_files_that_are_gone_are_told(tmp_path: Path) -> None:
    record = record_of(tmp_path / "one")
    moved = tmp_path / "moved"
    (tmp_path / "one").rename(moved)
    assert likeness.model_record(str(moved)).folder == str(moved / "config")
    assert not likeness.is_done(likeness.model_record(str(moved)))
    file = moved / "config" / "finetune.yaml"
    file.write_text(file.read_text() + "SEED: 1\n")
    with pytest.raises(InputError, match="its configs were edited, and config/recipe.json does"):
        likeness.model_record(str(moved))
    file.write_text(file.read_text().removesuffix("SEED: 1\n"))
    file = moved / "config" / "recipe.json"
    value = json.loads(file.read_text())
    value["settings"]["start"]["supernet"] = str(tmp_path / "supernet.pth")
    file.write_text(json.dumps(value))
    with pytest.raises(InputError, match="its search needs .*supernet.pth, which is gone"):
        likeness.model_record(str(moved))
    assert record.files
