"""What a command shows of the stages that it runs, and what is left of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from detnas_d2.engine.outlook import Ahead, Outlook, works_of
from detnas_d2.pipeline import remaining, stage_run
from detnas_d2.pipeline.experiment import read_experiment
from detnas_d2.pipeline.remaining import outlook_of
from detnas_d2.pipeline.run import list_runs, run_pipeline
from detnas_d2.pipeline.state import DONE, NOT_STARTED, running
from detnas_d2.utils.errors import InputError
from tests.engine.tiny_runs import Configs, arguments, write_config

STAGES = (
    {"NAME": "base", "KIND": "train", "CONFIG": "train.yaml"},
    {"NAME": "search", "KIND": "search", "CONFIG": "search.yaml", "WEIGHTS": "base"},
    {"NAME": "again", "KIND": "train", "CONFIG": "train.yaml"},
)
SHORT = ("SOLVER.MAX_ITER", 1, "SOLVER.STEPS", ())


@pytest.fixture
def file(configs: Configs, tmp_path: Path) -> str:
    """A pipeline of a supernet of one iteration, its search, and the supernet again."""
    write_config(configs("faster", *SHORT), tmp_path / "train.yaml")
    write_config(configs.search(), tmp_path / "search.yaml")
    return write(tmp_path, *STAGES)


def write(folder: Path, *stages: dict[str, str]) -> str:
    content = {"OUTPUT_DIR": str(folder / "runs"), "STAGES": stages}
    (folder / "pipeline.yaml").write_text(yaml.safe_dump(content))
    return str(folder / "pipeline.yaml")


def test_a_line_of_progress_and_warnings(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of two stages with the same warning, which stands in the log of each."""
    write(tmp_path, STAGES[0], STAGES[2])
    assert run_pipeline(arguments(file, "MODEL.DEVICE", "cuda"))
    shown = capsys.readouterr()
    disk, *lines = shown.out.splitlines()
    assert disk.startswith("Disk: ")
    assert [line.split(" in ")[0] for line in lines] == [
        "[1/2] base: train train.yaml",
        "[1/2] base: finished",
        "[2/2] again: train train.yaml",
        "[2/2] again: finished",
    ]
    assert shown.err.splitlines() == ["warning: No GPU found: MODEL.DEVICE is set to cpu."]
    for name in ("base", "again"):
        log = (tmp_path / "runs" / name / "log.txt").read_text()
        for text in ("Running with full config", "No GPU found", " iter: 0 ", "is done."):
            assert text in log
        assert not (tmp_path / "runs" / name / "progress.json").exists()


def test_verbose_shows_all_progress(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, STAGES[0])
    args = arguments(file)
    args.verbose = True
    assert run_pipeline(args)
    out = capsys.readouterr().out
    assert " iter: 0 " in out and "[1/1] base: finished" in out
    assert "Running with full config" in out and "Environment info" in out


def test_why_a_stage_failed(
    file: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(args: object) -> None:
        raise InputError("a.jpg: no image")

    monkeypatch.setattr(stage_run, "_run_stage", fail)
    assert not run_pipeline(arguments(file, "SEEDS", "0,1"))
    shown = capsys.readouterr()
    assert "[1/6] seed 0: base: failed: a.jpg: no image" in shown.out.splitlines()
    assert "Traceback" not in shown.out + shown.err


def test_progress_of_another_process(file: str) -> None:
    experiment = read_experiment(file)
    folder = Path(experiment.runs()[0].folder)
    with running(str(folder), "mark"):
        assert list_runs(experiment).splitlines()[0].endswith(")")
        status = {"what": "iterations", "done": 1, "total": 4, "part": "", "note": "loss 0.500"}
        left = {"eta_seconds": 90.0, "all_seconds": 100.0, "all_measured": True}
        (folder / "progress.json").write_text(json.dumps({**status, **left}))
        line = list_runs(experiment).splitlines()[0]
    assert line.endswith("): 25 % of 4 iterations | ETA 1 min 30 s | loss 0.500")


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """Names of the stages that are done."""
    names: set[str] = set()
    state = lambda pipeline, stage: DONE if stage.name in names else NOT_STARTED  # noqa: E731
    monkeypatch.setattr(remaining, "stage_state", state)
    yield names


def test_outlook(file: str, configs: Configs, done: set[str], tmp_path: Path) -> None:
    check = ("SUPERNET.CHECK.PATHS", "1")
    base, search, again = runs = read_experiment(file, check).runs()
    main, rest = works_of(configs("faster", *SHORT, "SUPERNET.CHECK.PATHS", 1), "train")
    candidates, _ = works_of(configs.search(), "search")
    train, searching = str(tmp_path / "train.yaml"), str(tmp_path / "search.yaml")
    expected = [
        Ahead("search", searching, candidates),
        Ahead("train", train, main + rest),
    ]
    assert rest > 0
    assert outlook_of(runs, base) == Outlook(
        Ahead("train", train, main), tuple(expected), rest=rest
    )
    done.add("base")
    Path(base.folder).mkdir(parents=True)
    Path(base.folder, "done.json").write_text('{"seconds": 7.0}')
    assert outlook_of(runs, search) == Outlook(expected[0], (expected[1],), ((expected[1], 7.0),))
    # Estimates of some stages are not used, those of all are: seconds.
    assert not outlook_of(runs, search, {"base": 5.0}).estimated
    told = outlook_of(runs, again, {"base": 5.0, "search": 60.0, "again": 10.0})
    assert told.estimated and told.later == (Ahead("search", searching, 60.0),)
    assert told.running.work + told.rest == pytest.approx(10.0)
    assert told.rest / 10.0 == pytest.approx(rest / (main + rest))
    assert told.finished == ((Ahead("train", train, pytest.approx(5.0)), 7.0),)


def test_all_seeds_are_left(file: str, done: set[str]) -> None:
    runs = read_experiment(file, ("SEEDS", "0,1,2")).runs()
    assert len(outlook_of(runs, runs[0]).later) == 8
