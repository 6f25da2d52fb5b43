"""``detnas search`` from a folder of images to a detector, in seconds; resumed; refused."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from detnas_d2.cli.main import main
from detnas_d2.config.tools import load_config, short_yaml
from detnas_d2.engine import evolution_search
from detnas_d2.evaluation.candidate import Evaluation
from detnas_d2.pipeline.run import run_pipeline
from detnas_d2.recipe import decide, refitting, schedule, session
from detnas_d2.recipe.inputs import Settings
from detnas_d2.recipe.record import Record, read_record
from detnas_d2.recipe.schedule import Schedule
from detnas_d2.report import try_report
from detnas_d2.search.front_file import read_front
from detnas_d2.search.history import History
from detnas_d2.search_space import build_cost_table
from detnas_d2.search_space.space import SPACES
from detnas_d2.utils.errors import InputError
from tests.engine.tiny_runs import arguments
from tests.recipe.values import record_of


def test_a_search_ends_in_a_detector(
    short: None,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "out"
    words = ["search", "--data", str(images), "--output", str(output), "--time", "1h"]

    def interrupt(record, progress, used):
        raise KeyboardInterrupt

    with monkeypatch.context() as once, pytest.raises(KeyboardInterrupt):
        once.setattr(session, "fitted", interrupt)
        main(words)
    shown = capsys.readouterr().out
    assert "COCO" in shown and "12 training, 4 test images, 2 classes" in shown
    assert "space    detnas_demo" in shown and "all of it: " in shown and " of 1 h" in shown
    record = read_record(str(output))
    assert record is not None and record.schedule == Schedule(4, 2, 1, 2, 0)
    rates = asdict(record.plan.rates)
    assert rates.pop("baseline") == rates.pop("process") == 0 and min(rates.values()) > 0
    assert {path.name for path in Path(record.folder).iterdir()} == {
        "dataset.yaml", "supernet.yaml", "search.yaml", "finetune.yaml", "pipeline.yaml",
        "recipe.json", "data",
    }  # fmt: skip
    # The same command goes on, and fits what has not begun into the time that is left.
    monkeypatch.setattr(refitting, "MOST_NETWORKS", 1)
    monkeypatch.setattr(refitting, "_MOST_TUNING", {"detnas": 0.75})
    main([*words, "--json"])
    told = capsys.readouterr()
    result = json.loads(told.out)
    assert "Chosen" not in told.err and "supernet: done before" in told.err
    assert (
        "By the time that is left: 3 iterations of each network (planned: 2), 1 random" in told.err
    )
    assert set(result["rows"]) == {"searched", "random", "shufflenetv2", "inherited"}
    assert Path(result["detector"], "model_final.pth").exists()
    after = read_record(str(output))
    assert after is not None and after.schedule == Schedule(4, 2, 1, 3, 1)
    assert load_config(str(output / "searched" / "config.yaml")).SOLVER.MAX_ITER == 3
    assert record.used < after.used <= result["seconds"]
    with pytest.raises(InputError, match="begun with other options .--seed 0 then, 1 now"):
        main([*words, "--seed", "1"])


class FitByCost(dict[str, Evaluation]):
    """Scores of all candidates, with which the more expensive one is the better one."""

    def get(self, path: str, default: object = None) -> Evaluation:
        space = SPACES["detnas_demo"]
        fitness = build_cost_table(space, (224, 224)).cost(space.path(path)).macs / 1e6
        return Evaluation(fitness, {"bbox/AP": fitness})


def test_a_family_is_trained_out_of_one_search(
    short: None,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(schedule, "_MOST_CANDIDATES", 4)
    monkeypatch.setattr(refitting, "MOST_NETWORKS", 0)
    monkeypatch.setattr(evolution_search, "known_scores", lambda *_: FitByCost())
    output = tmp_path / "out"
    words = ["search", "--data", str(images), "--output", str(output), "--time", "1h"]
    main([*words, "--family", "3", "--json"])
    told = capsys.readouterr()
    assert re.search("members +2 x 2 iterations", told.err)
    assert "family   3 networks of the front of AP over multiply-adds" in told.err
    result = json.loads(told.out)
    assert result["family"] == [str(output / name) for name in ("member_1", "member_2")]
    assert list(result["rows"])[:3] == ["searched", "member_2", "member_1"]
    names = ("member_1", "member_2", "searched")
    paths = [load_config(str(output / n / "config.yaml")).MODEL.DETNAS.PATH for n in names]
    costs = [FitByCost().get(path).fitness for path in paths]
    assert costs == sorted(set(costs))
    front = read_front(str(output / "search"), History.read(str(output / "search")))
    assert [front.members[n - 1].path for n in front.spread(3)] == paths
    page = (output / "report.html").read_text()
    assert "member 1 of" in page


def test_networks_side_by_side_are_those_of_one_after_the_other(
    short: None,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(refitting, "MOST_NETWORKS", 1)
    monkeypatch.setattr(refitting, "_MOST_TUNING", {"detnas": 0.5})
    output = tmp_path / "out"
    words = ["search", "--data", str(images), "--output", str(output), "--time", "1h"]
    main([*words, "--jobs", "2"])
    told = capsys.readouterr().out
    assert "then 2 at a time:" in told and told.count(": finished") == 6
    record = read_record(str(output))
    assert record is not None and record.plan.jobs == 2 and record.plan.rates.process > 0
    owners = {
        name: json.loads((output / name / "running.lock").read_text())["pid"]
        for name in ("supernet", "search", "searched", "shufflenetv2", "random_1")
    }
    assert owners["supernet"] == owners["search"] == os.getpid()
    others = {owners[name] for name in ("searched", "shufflenetv2", "random_1")}
    assert os.getpid() not in others and len(others) <= 2
    other = tmp_path / "other"
    for name in ("supernet", "search", "inherited"):  # which ran alone, or train nothing
        shutil.copytree(output / name, other / name)
    assert run_pipeline(arguments(record.pipeline_file, "OUTPUT_DIR", str(other)))
    for name in ("searched", "shufflenetv2", "random_1"):
        weights = (
            torch.load(folder / name / "model_final.pth", weights_only=True)["model"]
            for folder in (output, other)
        )
        torch.testing.assert_close(*weights, rtol=0, atol=0)
    tables = (json.loads((folder / "table.json").read_text()) for folder in (output, other))
    assert next(tables)["rows"] == next(tables)["rows"]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--data", "{tmp}/none"], "--data .*: does not exist; expected a folder of labelled"),
        (["--data", "{tmp}", "--budget", "300"], "--budget 300: expected multiply-adds"),
        (["--data", "{tmp}", "--time", "2"], "--time 2: expected hours, minutes or seconds"),
        (["--data", "{tmp}", "--seed", "-1"], "--seed -1: expected 0 or more"),
        (["--data", "{tmp}", "--family", "9"], "--family 9: expected 2 to 8 networks"),
        (
            ["--data", "{tmp}", "--family", "3", "--method", "hit"],
            "--family: a search by gradient finds one network",
        ),
        (
            ["--data", "{tmp}", "--num-gpus", "0", "--output", "{tmp}/o"],
            "--num-gpus 0: expected 1 or more",
        ),
        (
            ["--data", "{tmp}", "--output", "{tmp}/notes.txt"],
            "notes.txt: a file; expected a folder, or a new name",
        ),
        (["--data", "{tmp}", "--output", "{tmp}"], "holds files of something else .empty."),
        (
            ["--data", "{tmp}", "--weights", "{tmp}/w.pth"],
            "w.pth: no such file; expected a superne",
        ),
        (
            ["--data", "{tmp}/empty", "--output", "{tmp}/o"],
            "empty.*: no labelled images recognised",
        ),
    ],
)
def test_what_cannot_be_searched_is_one_line(
    words: list[str], problem: str, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=problem) as error:
        main(["search", *(word.format(tmp=tmp_path) for word in words)])
    assert "\n" not in str(error.value)


def test_budgets_outside_the_spaces_are_refused_before_anything_is_measured(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decide, "measure", lambda *args: pytest.fail("measured"))
    words = ["search", "--data", str(images), "--output", str(tmp_path / "out")]
    with pytest.raises(InputError, match="--budget 5M: expected .* detnas_demo 14.8M to 98.5M"):
        main([*words, "--budget", "5M"])
    with pytest.raises(InputError, match="--budget: Hit-Detector weighs the cost"):
        main([*words, "--budget", "24M", "--method", "hit"])


def test_resume_goes_on_with_the_run_of_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {}

    def carry_on(record: Record, **options):
        found.update(options, output=record.settings.output)
        return {"next": ["the detector is there"]}

    monkeypatch.setattr(session, "carry_on", carry_on)
    record_of(tmp_path)
    main(["resume", str(tmp_path), "--num-gpus", "2"])
    assert found.pop("after_stage") is try_report
    assert found == {"num_gpus": 2, "verbose": False, "output": str(tmp_path)}
    assert capsys.readouterr().out == "the detector is there\n"


def test_resume_needs_a_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no run of detnas search that has begun"):
        main(["resume", str(tmp_path)])


def with_test_image(run_folder: Path, photo: Path) -> None:
    """Lets the detector of a run have a test image."""
    file = run_folder / "searched" / "config.yaml"
    classes = [{"id": number, "name": name} for number, name in enumerate("abc", start=1)]
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9], "area": 81, "iscrowd": 0}
    image = {"id": 1, "file_name": photo.name, "width": 80, "height": 60}
    annotations = photo.parent / "test.json"
    told = {"images": [image], "annotations": [box], "categories": classes}
    annotations.write_text(json.dumps(told))
    name = photo.parent.name  # datasets of other tests have other names
    entry = {"NAME": name, "FORMAT": "coco", "IMAGES": str(photo.parent)}
    cfg = load_config(str(file))
    cfg.DATASETS.REGISTER = [{**entry, "ANNOTATIONS": str(annotations)}]
    cfg.DATASETS.TEST = (name,)
    file.write_text(short_yaml(cfg))


@pytest.mark.parametrize(
    ("budget", "runtime"), [("10000ms", "pytorch"), ("0.001ms", "onnxruntime"), ("24M", "pytorch")]
)
def test_export_ends_in_a_file_and_its_latency(
    budget: str,
    runtime: str,
    run_folder: Path,
    photo: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with_test_image(run_folder, photo)
    family = [str(run_folder / "member_1")] if budget == "24M" else []
    for member in family:
        shutil.copytree(run_folder / "searched", member)
    monkeypatch.setattr(
        session,
        "carry_on",
        lambda record, **options: {
            "next": ["the detector is there"],
            "detector": str(run_folder / "searched"),
            "family": family,
            "output": str(run_folder),
        },
    )
    record_of(
        tmp_path,
        asked={"data": "/i", "budget": budget, "time": 600.0},
        settings=Settings(str(tmp_path), runtime=runtime),
    )
    main(["resume", str(tmp_path), "--export", "onnx", "--json"])
    told = json.loads(capsys.readouterr().out)
    file = run_folder / "exported" / "model.onnx"
    assert told["export"]["file"] == str(file) and file.stat().st_size > 1000
    found = told["latency"]["runtimes"]
    assert {"pytorch", "onnxruntime"} <= set(found)
    threads = told["latency"]["threads"]
    milliseconds = found["onnxruntime"]["milliseconds"]
    unit = "thread" if threads == 1 else "threads"
    version = found["onnxruntime"]["version"]
    line = f"measured {milliseconds:.1f} ms (ONNX Runtime {version}, {threads} {unit})"
    text = "\n".join(told["next"])
    over = budget == "0.001ms"
    # A budget that was kept in ONNX Runtime is the file's.
    compared = [name for name in found if name != "pytorch" or runtime == "pytorch"]
    assert told["compared"] == ([] if budget == "24M" else compared)
    assert told["over_budget"] == (compared if over else [])
    if budget == "24M":  # of multiply-adds: nothing to compare with
        assert told["budget_ms"] is None and "budget" not in text.lower()
        assert line in told["next"]
    else:
        above = ": ABOVE THE BUDGET by "
        assert text.count(above) == (len(compared) if over else 0)
        assert f"budget {budget.removesuffix('ms')} ms, {line}{above if over else ''}" in text
    smaller = [run_folder / "exported" / Path(member).name / "model.onnx" for member in family]
    assert [each["export"]["file"] for each in told["smaller"]] == list(map(str, smaller))
    assert all(file.exists() for file in smaller)
    for folder in (str(run_folder / "searched"), *family):
        assert Path(folder, "measured_latency.json").exists()  # for the report
